"""A training step's ranks are started again after losses, without a Ray: rooms and gangs are played."""

from __future__ import annotations

import signal
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster import services
from cluster.gang import NodeLost
from pipelines.stages import recovery, training
from pipelines.stages.stop import STOP, Interrupted


class Room:
    ranks = 1

    def __enter__(self) -> Room:
        return self

    def __exit__(self, *error: object) -> None:
        pass


class Growing:
    """Room for more ranks is found in the first room, at once."""

    rooms = 0

    def __init__(self, *given: object) -> None:
        Growing.rooms += 1
        self.used = False

    def __enter__(self) -> Growing:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def due(self) -> bool:
        self.used = Growing.rooms == 1 and not self.used
        return self.used


class Ranks:
    """Two looks and they are done: lost at the second one in the first room; in others, they end as the file says."""

    def __init__(self, file: Path, loss: Exception) -> None:
        self.file, self.loss, self.looks, self.steps = file, loss, 0, 0

    def __call__(self, *given: object, **how: object) -> Ranks:
        self.looks = 0
        return self

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def wait(self, seconds: float) -> bool:
        self.looks += 1
        if Growing.rooms == 1 and self.looks == 2:
            assert self.file.exists(), "they were asked to pause"
            raise self.loss
        return self.looks == 2

    def results(self) -> list[dict[str, Any]]:
        self.steps += 1
        return [{"stopped": self.file.exists(), "steps": self.steps}]

    def restart(self) -> None:
        self.looks = 0


@pytest.mark.parametrize("loss", [services.RayLost("the raylet died"), NodeLost("a node died")])
def test_ranks_that_are_lost_while_they_pause_for_more_room_train_on_in_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: Exception
) -> None:
    Growing.rooms = 0
    ranks = Ranks(tmp_path / STOP, loss)
    monkeypatch.setattr(recovery, "found_room", lambda *given: Room())
    monkeypatch.setattr(recovery, "Growth", Growing)
    monkeypatch.setattr(recovery, "Gang", ranks)
    monkeypatch.setattr(services, "reconnect", lambda: None)
    execution = {
        "max_failures": 2, "max_preemptions": 2, "grace_seconds": 9.0, "standby": False, "network_interface": None,
    }  # fmt: skip
    attempt: Any = SimpleNamespace(
        name="pretrain", scratch=tmp_path, checkpoints=tmp_path / "checkpoints", execution=execution
    )
    job = {"micro_batch_size": 1, "train": {"global_batch_size": 1, "max_steps": 9}}
    told = list(recovery.supervised(attempt, job))
    assert told == [("result", {"stopped": False, "steps": 1})] and Growing.rooms == 2


def test_a_stop_that_comes_with_the_last_step_ends_the_run_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranks that are done do not look for it any more, and the next step of the recipe would begin as if nothing had come."""

    def done(*given: object) -> dict[str, Any]:
        signal.raise_signal(signal.SIGTERM)
        return {"stopped": False, "steps": 4, "numerics": {}}

    monkeypatch.setattr(training, "connect", lambda attempt: None)
    monkeypatch.setattr(training, "_result", done)
    folders = dict.fromkeys(("scratch", "outputs", "checkpoints", "folder"), tmp_path)
    attempt: Any = SimpleNamespace(name="finetune", config={}, execution=defaultdict(int), numerics={}, **folders)
    with pytest.raises(Interrupted, match="finetune stopped after step 4 of 4; run again to go on"):
        training.train(attempt, {"train": {"max_steps": 4}})
