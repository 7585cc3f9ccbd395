"""Who watches the ranks of a training step goes by what they write, tells what they passed over, and places none that nobody wants."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from model import durable
from pipelines.stages import recovery
from pipelines.stages.stop import STOP, Interrupted, Stop

FOLDER = "/work/steps/pretrain-1/checkpoints/step-000008"


class FakeGang:
    """Ranks that do something before each look at them, then have ended."""

    def __init__(self, deeds: list[Callable[[], object]]) -> None:
        self._deeds, self.prepared = deeds, 0

    def wait(self, seconds: float) -> bool:
        if self._deeds:
            self._deeds.pop(0)()
            return False
        return True

    def prepare(self) -> None:
        self.prepared += 1

    def results(self) -> list[dict[str, Any]]:
        return [{"steps": 2}]


def watched(folder: Path, deeds: list[Callable[[], object]]) -> tuple[list[int], int]:
    """The steps that were shown of ranks that do these deeds, and how often standbys were seen to."""
    attempt: Any = SimpleNamespace(name="pretrain", scratch=folder)
    growth: Any = SimpleNamespace(due=lambda: False)
    ranks: Any = FakeGang(deeds)
    stop = Stop(folder / STOP, 30.0)
    told: Iterator[recovery.Told] = recovery._watched(ranks, attempt, {"train": {"max_steps": 9}}, stop, growth)
    return [what["done"] for _, what in told], ranks.prepared


def reach(folder: Path, step: int, clock: float) -> None:
    """Write down a step, as rank 0 does by its clock."""
    line = {"step": step, "tokens_per_second": 1.0, "mfu": 0.1, "time": clock, "loss": 1.0}
    for name in ("metrics.jsonl", "progress.jsonl"):
        durable.append(folder / name, json.dumps(line).encode() + b"\n")


def test_steps_of_a_rank_whose_clock_is_behind_are_shown_and_those_of_earlier_starts_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "_STANDBY_AFTER", 0.0)
    hour_ago, in_an_hour = time.time() - 3600, time.time() + 3600
    reach(tmp_path, 7, in_an_hour)
    deeds = [lambda: None, lambda: reach(tmp_path, 5, hour_ago), lambda: reach(tmp_path, 6, hour_ago)]
    steps, prepared = watched(tmp_path, deeds)
    assert steps == [5, 6] and prepared > 0


def test_a_checkpoint_that_was_passed_over_is_told_once_with_its_folder_and_its_damage(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def pass_over() -> None:
        told = {"checkpoint": FOLDER, "damage": f"{FOLDER}/state/a.pt is missing"}
        durable.write_json(tmp_path / "damaged-checkpoints-step-000008.json", told)

    watched(tmp_path, [pass_over, lambda: None])
    watched(tmp_path, [lambda: None])  # the ranks were started again
    said = f"pretrain: checkpoint {FOLDER} is damaged and passed over: {FOLDER}/state/a.pt is missing"
    assert [record.getMessage() for record in caplog.records] == [said]


def test_ranks_that_nobody_wants_any_more_are_not_placed(tmp_path: Path) -> None:
    attempt: Any = SimpleNamespace(name="pretrain")
    stop = Stop(tmp_path / STOP, 30.0)
    recovery._interrupted_if_asked(attempt, stop)
    stop.ask()
    with pytest.raises(Interrupted, match="pretrain stopped while its ranks were being started; run again"):
        recovery._interrupted_if_asked(attempt, stop)
