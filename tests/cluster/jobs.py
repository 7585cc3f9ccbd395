"""Functions that Ray tasks and gangs run in the tests, by dotted name."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def square(item: int) -> int:
    return item * item


def refuse(item: Any) -> None:
    raise ValueError(f"corpus.txt:{item}: not what it should be")


def end_this_process(code: int) -> Iterator[None]:
    """As Ray does with a process that uses it; for `apart.each`."""
    os._exit(code)
    yield


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


def network(job: dict[str, Any]) -> dict[str, str]:
    return {name: os.environ[name] for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "MASTER_ADDR")}


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


def speak(job: dict[str, Any]) -> None:
    print(f"printed by {os.environ['RANK']}")
    logging.getLogger("tests").info("logged by %s", os.environ["RANK"])


def one_rank_loses_the_other(job: dict[str, Any]) -> None:
    """Rank 1 closes its connections and lives on; rank 0's collective fails."""
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    dist.all_reduce(torch.ones(1))
    if os.environ["RANK"] == "1":
        dist.destroy_process_group()
        time.sleep(600)
    dist.all_reduce(torch.ones(1))


def one_rank_is_told_to_go(job: dict[str, Any]) -> None:
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(600)


def warm_up(job: dict[str, Any]) -> None:
    (Path(job["folder"]) / f"warm-{os.getpid()}").touch()


def wait_for_the_end(job: dict[str, Any]) -> dict[str, str]:
    """Say which process this is, and wait for a file `end`."""
    folder, rank = Path(job["folder"]), os.environ["RANK"]
    with (folder / "ran").open("a") as file:
        file.write(f"{os.getpid()}\n")
    (folder / f".rank-{rank}").write_text(str(os.getpid()))
    (folder / f".rank-{rank}").rename(folder / f"rank-{rank}")
    while not (folder / "end").exists():
        time.sleep(0.05)
    return {"rank": rank}


def die_always(item: Any) -> None:
    """What an item does that needs more memory than there is."""
    print("reading", item, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def fail_once(folder: str) -> str:
    mark = Path(folder) / "failed"
    if not mark.exists():
        mark.touch()
        raise ConnectionError("reset by peer")
    return "second"


def slow_square(item: dict[str, Any]) -> int:
    """A square, and a file that says it was begun."""
    (Path(item["folder"]) / f"begun-{item['number']}").touch()
    time.sleep(0.5)
    return item["number"] ** 2
