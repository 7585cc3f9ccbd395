"""What MLflow has not been told yet, kept in the work directory for the next pipeline.

The one idea: the outbox is there from the start to the end of a pipeline. Who finds it knows that one was killed, or
could not deliver. Its content is a help, never the truth: a damaged one is set aside and said, and what it held of
finished steps is told again from their records.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import time
from collections.abc import Sequence
from pathlib import Path

from model import durable
from pipelines.wanted_runs import WantedRun

_DEAD = 60.0  # seconds after which a draft, which is written in milliseconds, is nobody's

log = logging.getLogger(__name__)


class Outbox:
    """The outbox file of one pipeline. `lost` once a damaged one was found: the caller tells what records say."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lost = False
        self._mine: tuple[int, int] | None = None  # which file we wrote, among those of pipelines at the same time

    def take(self) -> list[WantedRun]:
        """What an earlier pipeline could not deliver. A damaged file is set aside, with a message."""
        self._sweep()
        try:
            return read(self.path)
        except FileNotFoundError:
            return []
        except ValueError as error:
            aside = self.path.with_name(f"{self.path.name}.damaged")
            durable.rename(self.path, aside)
            self.lost = True
            log.warning(
                "%s is damaged (%s); set aside as %s. What it held of finished steps is told to MLflow again from "
                "their records; points of unfinished ones come with their checkpoints",
                self.path, error, aside.name,
            )  # fmt: skip
            return []

    def _sweep(self) -> None:
        """Remove the drafts of pipelines that were killed while they wrote."""
        for draft in self.path.parent.glob(f".{self.path.name}.*.tmp"):
            with contextlib.suppress(FileNotFoundError):  # it was alive, and is written
                if time.time() - draft.stat().st_mtime > _DEAD:
                    draft.unlink()

    def keep(self, runs: Sequence[WantedRun]) -> None:
        """Replace the content, whole or not at all; what another pipeline has kept meanwhile stays."""
        others = [] if self._mine in (None, _identity(self.path)) else self.take()
        told = [run.as_json() for run in [*others, *runs]]
        durable.write_json(self.path, {"digest": _digest(told), "runs": told})
        self._mine = _identity(self.path)

    def clear(self) -> None:
        """All is delivered. A file that another pipeline wrote meanwhile is left to be found."""
        if self._mine == _identity(self.path):
            self.path.unlink(missing_ok=True)


def read(path: Path) -> list[WantedRun]:
    """What an outbox holds. FileNotFoundError if there is none, ValueError if it is damaged."""
    try:
        content = durable.read_json(path)
        runs = [WantedRun.from_json(run) for run in content["runs"]]
        if content["digest"] != _digest(content["runs"]):
            raise ValueError("its content does not have the digest that it states")
    except (KeyError, TypeError, AttributeError, IsADirectoryError) as error:
        raise ValueError(f"it is no outbox: {error!r}") from error
    return runs


def _digest(runs: Sequence[object]) -> str:
    return hashlib.sha256(durable.to_json(runs)).hexdigest()


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return stat.st_ino, stat.st_mtime_ns
