"""Rank 0's part of checkpoints, with plain files for DeepSpeed's: opened, staged, hashed, published, retired."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from model import checkpoint, durable
from model.world import World
from pipelines.errors import StepFailed

STEPS, KEEP = 2, 1


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
    """Go on from the newest good checkpoint to the last step, under a new attempt, as after a crash.

    What checkpoints say of a refusing disk is a step's failure, as `pipelines.narrate` has it.
    """
    try:
        _train(root)
    except checkpoint.CheckpointError as error:
        raise StepFailed(str(error)) from error


def _train(root: Path) -> None:
    (root / "checkpoints").mkdir(parents=True, exist_ok=True)
    attempt = root / f"attempt-{len(list(root.glob('attempt-*')))}"
    attempt.mkdir()
    shelf = checkpoint.open_shelf(root / "checkpoints", None, attempt, KEEP, _alone())
    for step in range((shelf.newest.step if shelf.newest else 0) + 1, STEPS + 1):
        staging = shelf.stage(step)
        files = [_write(staging, "metrics.jsonl", b"{}\n" * step), _write(staging, "state/shard", bytes(100 * step))]
        facts = {"step": step, "world_size": 1, "zero_stage": 1, "history": [], "files": files}
        shelf.publish(staging, facts, permanent=False)
