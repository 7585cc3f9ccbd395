"""What a gang makes of what is hard to have of a real Ray: memory that runs out, places that do not come."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray import exceptions

from cluster import gang
from cluster.rank_process import Place

ENDED = exceptions.OutOfMemoryError(
    "Task was killed due to the node running low on memory.\nMemory on the node was 61.2GB / 64.0GB (0.96), which exceeds "
    "the memory usage threshold of 0.95. Ray killed this worker (ID: 07) because it was the most recently scheduled task"
)
WHY = r"killed due to the node running low on memory\. Memory on the node was 61.2GB / 64.0GB \(0.96\)[^R]*threshold of 0.95"


class FakeRay:
    """As much of Ray as a gang asks about its ranks: each answers at once, as `answers` has it."""

    exceptions = exceptions

    def __init__(self, answers: dict[str, Any]) -> None:
        self.answers = answers

    def wait(self, references: list[str], timeout: float, num_returns: int = 1) -> tuple[list[str], list[str]]:
        ready = [reference for reference in references if reference in self.answers][:num_returns]
        return ready, [reference for reference in references if reference not in ready]

    def get(self, reference: str) -> Any:
        if isinstance(answer := self.answers[reference], Exception):
            raise answer
        return answer

    def nodes(self) -> list[dict[str, Any]]:
        return []


def of_two(logs: Path, monkeypatch: pytest.MonkeyPatch, answers: dict[str, Any], **how: Any) -> gang.Gang:
    room: Any = SimpleNamespace(ranks=2, threads=1, gpu=False)
    monkeypatch.setattr(gang, "ray", FakeRay(answers))
    return gang.Gang("a:b", {}, room, logs=logs, **how)


def test_a_rank_that_ray_ended_for_want_of_memory_is_a_death_with_its_rank_and_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = of_two(tmp_path, monkeypatch, {"of rank 1": ENDED})
    running._running = running._waiting = ["of rank 0", "of rank 1"]
    with pytest.raises(gang.RankDied, match=f"^rank 1 died: .*{WHY} \\(its log is .*rank-1.log\\)$"):
        running.wait(0.0)


def test_a_process_that_was_ended_so_before_it_became_a_rank_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    place = Place("host", "127.0.0.1", "lo", 1, "node", 1, "")
    running = of_two(tmp_path, monkeypatch, {"first": ENDED, "second": place})
    running._actors = ["first", "other"]
    monkeypatch.setattr(running, "_actor", lambda index, reserve: "second")
    monkeypatch.setattr(running, "_asked", lambda actor: actor)
    assert running._placed(0, "first") == place
    assert running._actors == ["second", "other"] and "low on memory" in caplog.text


class Asked(Exception):
    """Somebody wants the ranks no more."""


def asked() -> None:
    raise Asked


def test_who_waits_for_ranks_to_be_placed_looks_whether_they_are_still_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = of_two(tmp_path, monkeypatch, {}, look=asked)
    with pytest.raises(Asked):
        running._placed(0, "never up")
    running._room.wait = lambda seconds: False  # type: ignore[method-assign]
    with pytest.raises(Asked):
        running.__enter__()
