"""Work under a lease: taken before, given back after, and named by its winner if it was lost in between.

The one idea: an attempt's folder is the ownership. As long as it is there, whatever fails is the work's own failure; when
it is gone, the attempt was taken over, and whatever fails for that is `Overtaken`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from model import durable
from pipelines.engine import lease as leases
from pipelines.engine.lease import Owner


@contextlib.contextmanager
def owning(folder: Path, seconds: float, wait: bool, on_wait: Callable[[Owner], None]) -> Iterator[Path]:
    """Own the step in `folder`; yields the attempt's folder. It stays to be looked at if the work fails. Busy, Overtaken."""
    lease = leases.acquire(folder, seconds, wait, on_wait)
    try:
        with overtaking_named(folder, lease.attempt):
            yield lease.attempt
    except BaseException as error:
        try:
            lease.release(keep_attempt=True)
        except OSError as second:  # of the disk that made the work fail: the first failure says more
            error.add_note(f"and the lease could not be given back: {second}")
        raise
    lease.release()


@contextlib.contextmanager
def overtaking_named(folder: Path, scratch: Path) -> Iterator[None]:
    """Whatever fails because the attempt was taken away is Overtaken, and no fault of the work."""
    try:
        yield
    except Exception as error:
        if scratch.is_dir() or isinstance(error, leases.Overtaken):
            raise
        if not (folder / "lease").is_dir():
            raise leases.Overtaken(
                f"step {folder.name}: somebody removed {folder} while this process worked on it"
            ) from error
        raise leases.Overtaken(
            f"step {folder.name}: attempt {scratch.name} was taken over by {leases.latest_owner(folder)} while this "
            "process made no sign of life; its results were dropped and the new owner's count"
        ) from error


def let_go(checkpoints: Path, scratch: Path) -> None:
    """Take checkpoints that nobody needs any more into the attempt, with which they go. Whoever was overtaken cannot."""
    if checkpoints.exists():
        durable.rename(checkpoints, scratch / "checkpoints")


def sweep(folder: Path, seconds: float) -> None:
    """Remove what a kill has left of a finished step's work. Not while somebody owns the step."""
    attempts = folder / "attempts"
    if (folder / "checkpoints").exists() or (attempts.is_dir() and any(path.is_dir() for path in attempts.iterdir())):
        with contextlib.suppress(leases.Busy):
            lease = leases.acquire(folder, seconds, wait=False)
            let_go(folder / "checkpoints", lease.attempt)
            lease.release()
