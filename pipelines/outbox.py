"""What MLflow has not been told yet, kept in the work directory for the next pipeline.

The one idea: each execution has an outbox file of its own, which is there from its start to its end. Who finds the file
of a dead one knows that it was killed, and takes the file over. Its content is a help, never the truth: what the dead had
not written down any more, or what a damaged file held, is told again from the records of finished steps.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from model import durable
from pipelines.engine import lease as leases
from pipelines.engine.lease import Owner
from pipelines.wanted_runs import WantedRun

_DEAD = 60.0  # seconds after which a draft, which is written in milliseconds, is nobody's
FILES = "outbox*.json"  # in the work directory

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Content:
    """What an outbox holds. `owner` is nobody once its pipeline has ended, and what is `incomplete` lacks what others' killed pipelines had to say.

    `identity` is that of the file.
    """

    runs: list[WantedRun]
    owner: Owner | None
    incomplete: bool
    identity: tuple[int, int] | None


class Outbox:
    """The outbox file of one execution. `incomplete` once more has to be told than it holds: the caller tells what records say."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.incomplete = False
        self._mine: tuple[int, int] | None = None  # which file we wrote, among those of pipelines at the same time
        self._taken_over: dict[Path, tuple[int, int] | None] = {}  # and which file it was

    def take(self) -> list[WantedRun]:
        """What earlier pipelines could not deliver: this execution's own, and those of others that are dead or have ended.

        A damaged file is set aside, with a message.
        """
        self._sweep()
        runs = self._own()
        for path, content in _left(self.path):
            if content is None:
                self._set_aside(path)
            else:
                self._taken_over[path] = content.identity
                self.incomplete |= content.incomplete or content.owner is not None
                runs += content.runs
        return runs

    def _own(self) -> list[WantedRun]:
        try:
            content = read(self.path)
        except FileNotFoundError:
            return []
        except ValueError:
            self._set_aside(self.path)
            return []
        self.incomplete |= content.incomplete
        return content.runs

    def _set_aside(self, path: Path) -> None:
        aside = path.with_name(f"{path.name}.damaged")
        with contextlib.suppress(FileNotFoundError):  # another pipeline did just now
            durable.rename(path, aside)
        self.incomplete = True
        log.warning(
            "%s is damaged; set aside as %s. What it held of finished steps is told to MLflow again from "
            "their records; points of unfinished ones come with their checkpoints",
            path, aside.name,
        )  # fmt: skip

    def _sweep(self) -> None:
        """Remove the drafts of pipelines that were killed while they wrote."""
        for draft in self.path.parent.glob(".outbox*.json.*.tmp"):
            with contextlib.suppress(FileNotFoundError):  # it was alive, and is written
                if time.time() - draft.stat().st_mtime > _DEAD:
                    draft.unlink()

    def keep(self, runs: Sequence[WantedRun], ended: bool = False) -> None:
        """Replace the content, whole or not at all; what another pipeline of this execution has kept meanwhile stays.

        Once this pipeline has `ended` whoever comes next may take it over.
        """
        others = [] if self._mine in (None, _identity(self.path)) else self._own()
        content = {
            "runs": [run.as_json() for run in [*others, *runs]],
            "owner": None if ended else asdict(leases.this_process(self.path.stem)),
            "incomplete": self.incomplete,
        }
        durable.write_json(self.path, {"digest": _digest(content), **content})
        self._mine = _identity(self.path)
        for path, taken in self._taken_over.items():  # only now: what they held is here
            if _identity(path) == taken:  # and not the file of one who goes on with that execution meanwhile
                path.unlink(missing_ok=True)
        self._taken_over.clear()

    def clear(self) -> None:
        """All is delivered. A file that another pipeline of this execution wrote meanwhile is left to be found."""
        if self._mine == _identity(self.path):
            self.path.unlink(missing_ok=True)


def is_waiting(path: Path) -> bool:
    """Whether there is something to deliver: this execution's outbox, or that of one that is dead or has ended."""
    return path.exists() or any(_left(path))


def read(path: Path) -> Content:
    """What an outbox holds. FileNotFoundError if there is none, ValueError if it is damaged."""
    identity = _identity(path)  # before: a file that takes its place meanwhile is not taken for the one that was read
    try:
        found: dict[str, Any] = durable.read_json(path)
        if found.pop("digest") != _digest(found):
            raise ValueError("its content does not have the digest that it states")
        owner = found["owner"] and Owner(**found["owner"])
        return Content([WantedRun.from_json(run) for run in found["runs"]], owner, found["incomplete"], identity)
    except (KeyError, TypeError, AttributeError, IsADirectoryError) as error:
        raise ValueError(f"it is no outbox: {error!r}") from error


def _left(own: Path) -> Iterator[tuple[Path, Content | None]]:
    """The outboxes of other executions that nobody will deliver himself; no content where one is damaged."""
    for path in sorted(own.parent.glob(FILES)):
        if path != own:
            try:
                content = read(path)
            except FileNotFoundError:
                continue
            except ValueError:
                yield path, None
                continue
            if content.owner is None or leases.is_dead(content.owner):
                yield path, content


def _digest(content: object) -> str:
    return hashlib.sha256(durable.to_json(content)).hexdigest()


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return stat.st_ino, stat.st_mtime_ns
