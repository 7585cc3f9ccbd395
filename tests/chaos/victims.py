"""Who can be killed: the roles of a line's processes, found by ancestry from its driver.

The one idea: a role is looked up at the moment of the kill; a role that nobody plays just then is no victim.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

import psutil

from tests.chaos.site import Site

# How often each is drawn where it exists, by what the stage computes with.
DATA = {"driver": 3, "worker": 5, "power": 2, "raylet": 1, "gcs": 0.5, "apart": 1}
TRAINING = {"driver": 3, "rank0": 3, "rank": 3, "power": 2, "raylet": 1, "gcs": 0.5, "apart": 1}
ALONE = {"driver": 3, "power": 2, "raylet": 0.3, "gcs": 0.2, "apart": 0.2}
WEIGHTS = {
    "shard": DATA, "tokenize": DATA, "evaluate": DATA, "pretrain": TRAINING, "finetune": TRAINING,
    "prepare_task": ALONE, "train_tokenizer": ALONE, "register": ALONE, "pull": ALONE,
}  # fmt: skip
OUTSIDE = {"driver": 3, "power": 2}  # before the first lease and after the last record
STARTING = {"raylet": 2, "gcs": 2, "apart": 1}  # while a Ray starts
ALL = ("driver", "worker", "rank0", "rank", "raylet", "gcs", "apart", "power", "server")
# After these the driver lives and has to recover by itself.
SURVIVED = frozenset(ALL) - {"driver", "power"}


def find(role: str, site: Site, driver: psutil.Process) -> list[psutil.Process]:
    """The processes to kill for `role`; none if there are none now."""
    if role == "driver":
        return [driver] if driver.is_running() else []
    if role == "power":
        return site.processes()
    if role == "server":
        return site.server.processes() if site.server else []
    return _descendants(driver, role)


def _descendants(driver: psutil.Process, role: str) -> list[psutil.Process]:
    try:
        children = driver.children(recursive=True)
    except psutil.Error:
        return []
    if role in ("raylet", "gcs"):
        return _called(children, lambda title: title.endswith({"raylet": "/raylet", "gcs": "/gcs_server"}[role]))
    if role == "apart":  # the process that uses Ray
        return [one for one in children if _uses_ray(one)][:1]
    if role == "worker":
        others = ("IDLE", "Agent", "Rank")
        return _called(children, lambda title: title.startswith("ray::") and not any(o in title for o in others))[:1]
    # Those that run the job; a process that only stands by, or a rank that is still asked for its place, is second choice.
    ranks = _called(children, lambda title: title.startswith("ray::") and "Rank.run" in title)
    ranks = ranks or _called(children, lambda title: title.startswith("ray::") and "Rank" in title)
    first = max(ranks, key=_open_listeners, default=None)  # of equals the oldest: they have not met yet
    return [process for process in ranks if (process == first) == (role == "rank0")][:1]


def ray_age(driver: psutil.Process) -> float | None:
    """Seconds since the newest Ray below the driver began to start; None if there is none."""
    stores = _descendants(driver, "gcs")
    with contextlib.suppress(psutil.Error):
        return time.time() - stores[-1].create_time() if stores else None
    return None


def _uses_ray(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return "apart.serve" in "".join(process.cmdline()[:3])
    return False


def _called(processes: list[psutil.Process], wanted: Callable[[str], bool]) -> list[psutil.Process]:
    """The processes with such a program or title, oldest first."""
    found = []
    for process in processes:
        with contextlib.suppress(psutil.Error, IndexError):
            if wanted(process.cmdline()[0]):
                found.append((process.create_time(), process.pid, process))
    return [process for *_, process in sorted(found, key=lambda entry: entry[:2])]


def _open_listeners(process: psutil.Process) -> int:
    """Ports on which the process listens for everybody: rank 0, who holds the rendezvous store, has one more."""
    with contextlib.suppress(psutil.Error):
        found = process.net_connections("tcp")
        return sum(one.status == psutil.CONN_LISTEN and one.laddr.ip == "::" for one in found)
    return 0
