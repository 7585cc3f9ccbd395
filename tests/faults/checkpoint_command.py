"""Rank 0's part of checkpoints, with plain state for DeepSpeed's: opened, staged, hashed, published, retired."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist

from model import checkpoint, durable
from model.checkpoint import Shelf
from model.saving import Saver
from model.world import World
from pipelines.errors import StepFailed

STEPS, KEEP = 2, 1
_AHEAD = 100  # calls that the thread of a Saver makes first: more than the main thread makes in all


@functools.cache
def _alone() -> World:
    """A world of one rank: the group is real, and nobody else is in it."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    return World(0, 1, torch.device("cpu"), dist.group.WORLD)


def _write(path: Path, name: str, data: bytes) -> dict[str, Any]:
    with durable.hashing(path / name) as file:
        file.write(data)
    return {"path": name, "size": file.size, "sha256": file.sha256}


def train(root: Path) -> None:
    """Go on from the newest good checkpoint to the last step, under a new attempt, as after a crash; tells from which.

    What checkpoints say of a refusing disk is a step's failure, as `pipelines.narrate` has it.
    """
    with _failure_told():
        shelf = _opened(root)
        for step in _steps(shelf):
            staging = shelf.stage(step)
            files = [
                _write(staging, "metrics.jsonl", b"{}\n" * step),
                _write(staging, "state/shard", bytes(100 * step)),
            ]
            facts = {"step": step, "world_size": 1, "zero_stage": 1, "history": [], "files": files}
            shelf.publish(staging, facts, permanent=False)


def train_beside(root: Path) -> None:
    """The same as a rank does it: a thread writes and publishes, through `saving.Saver`."""
    with _failure_told():
        shelf = _opened(root)
        engine = _Engine()
        saver = Saver(engine, _alone(), shelf, zero_stage=1)
        saver._thread.submit(_get_ahead).result()
        for step in _steps(shelf):
            engine.step = step
            saver.begin(step, {"metrics.jsonl": b"{}\n" * step}, [], permanent=False)
        saver.finish()
        saver.close()


class _Engine:
    """As much of DeepSpeed's engine as a copy of its state needs."""

    def __init__(self) -> None:
        self.step, self.checkpoint_engine = 0, SimpleNamespace()
        self.module = torch.nn.Linear(1, 1)

    def save_checkpoint(self, folder: str, tag: str, **options: Any) -> None:
        """Save a file of state."""
        state = {"step": self.step, "weights": torch.full((100,), self.step)}
        self.checkpoint_engine.save(state, f"{folder}/{tag}/shard")


def _get_ahead() -> None:
    """Make many calls that change nothing. strace counts each thread's own: whoever is aimed at by a number is met here only."""
    for _ in range(_AHEAD):
        with open(os.devnull, "wb", buffering=0) as file:
            file.write(b"-")
        with contextlib.suppress(FileExistsError):
            os.mkdir("/")


def _opened(root: Path) -> Shelf:
    (root / "checkpoints").mkdir(parents=True, exist_ok=True)
    attempt = root / f"attempt-{len(list(root.glob('attempt-*')))}"
    attempt.mkdir()
    return checkpoint.open_shelf(root / "checkpoints", None, attempt, KEEP, _alone())


def _steps(shelf: Shelf) -> range:
    resumed = shelf.newest.step if shelf.newest else 0
    print(f"resumed from {resumed}", flush=True)
    return range(resumed + 1, STEPS + 1)


@contextlib.contextmanager
def _failure_told() -> Iterator[None]:
    try:
        yield
    except checkpoint.CheckpointError as error:
        raise StepFailed(str(error)) from error
