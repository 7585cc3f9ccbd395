"""Functions that Ray tasks and gangs run in the tests, by dotted name."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any


def square(item: int) -> int:
    return item * item


def refuse(item: Any) -> None:
    raise ValueError(f"corpus.txt:{item}: not what it should be")


def die_once(folder: str) -> str:
    """Kill the worker at the first call, as the kernel does when memory runs out."""
    mark = Path(folder) / "died"
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "second"


def in_flight(folder: str) -> int:
    """How many of these run at the same time."""
    mark = Path(folder) / str(os.getpid())
    mark.touch()
    time.sleep(0.2)
    seen = len(list(Path(folder).iterdir()))
    mark.unlink()
    return seen


def environment(job: dict[str, Any]) -> dict[str, str]:
    return {
        name: os.environ[name]
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS")
    }


def all_reduce(job: dict[str, Any]) -> float:
    """A real collective over gloo: the sum of the ranks' numbers."""
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    value = torch.tensor([float(dist.get_rank() + job["plus"])])
    dist.all_reduce(value)
    dist.destroy_process_group()
    return value.item()


def one_rank_dies(job: dict[str, Any]) -> None:
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(600)


def one_rank_raises(job: dict[str, Any]) -> None:
    if os.environ["RANK"] == "1":
        raise ValueError("shard 7 is damaged")
    time.sleep(600)


def one_rank_dies_after_its_peer_noticed(job: dict[str, Any]) -> None:
    """What a broken connection does: the survivor fails first, and the death becomes known after it."""
    if os.environ["RANK"] == "0":
        raise RuntimeError("connection reset by peer")
    time.sleep(1.5)
    os.kill(os.getpid(), signal.SIGKILL)
