"""Which errors are somebody's to mend, and the exit code of each. Light: imports nothing heavy.

The one idea: an expected error is said in its own words; any other is a bug and keeps its traceback.
"""

from __future__ import annotations

import errno

from cluster.every import BadSchedule
from cluster.schedule import ScheduleError
from pipelines import credentials
from pipelines.config import ConfigError
from pipelines.engine.lease import Busy, Overtaken
from pipelines.engine.record import RecordDamaged, UnknownSchema
from pipelines.engine.step import Damaged
from pipelines.follow import NotYet
from pipelines.harness import HarnessFailed
from pipelines.package import PackageDamaged
from pipelines.promotion import PromotionRefused
from pipelines.pull import PullRefused
from pipelines.registry import UnknownModel
from pipelines.samples import SampleUnavailable
from pipelines.slots import SlotDamaged
from pipelines.sources import SourceError
from pipelines.store import StoreDamaged

FAILED, USAGE, DAMAGED, INTERRUPTED = 1, 2, 3, 75


class StepFailed(RuntimeError):
    """A step failed; the message says which, why, and where its files and logs are."""


class StepInterrupted(RuntimeError):
    """A step was asked to stop and saved its state; the same command goes on."""


class GivenUp(RuntimeError):
    """A retraining slot was given up, or its sources are those of one that was. The message says why and what to do."""


EXPECTED = (
    ConfigError, SourceError, SampleUnavailable, Busy, Overtaken, Damaged, RecordDamaged, UnknownSchema, UnknownModel,
    PullRefused, PackageDamaged, StepFailed, StepInterrupted, StoreDamaged, NotYet, ConnectionError, GivenUp,
    SlotDamaged, PromotionRefused, BadSchedule, ScheduleError, HarnessFailed,
)  # fmt: skip


# What to do about an error of the operating system. Any other OSError is a bug: a file that should have been there was not.
_ADVICE = {
    errno.ENOSPC: "the disk is full: make room on it",
    errno.EDQUOT: "the quota is used up: make room, or have it raised",
    errno.EROFS: "the file system is read-only: mount it for writing, or choose another folder",
    errno.EACCES: "this user may not: mend the permissions, or run as the folder's owner",
    errno.EPERM: "this user may not: mend the permissions, or run as the folder's owner",
    errno.EMFILE: "too many files are open: raise the limit (ulimit -n)",
    errno.ENFILE: "too many files are open on this machine: raise fs.file-max, or end what holds them",
    errno.ENOMEM: "no memory is left: end what holds it, or use fewer workers",
    errno.EIO: "the disk fails: look into the kernel's log (dmesg), and run `verify` before going on",
    errno.EMLINK: "the file has as many names as this file system allows: choose a folder on another one",
    errno.EOPNOTSUPP: "this file system has no hard links: choose a folder on one that has",
    errno.ESTALE: "the network file system lost the file: mount it again",
}


def disk_trouble(error: BaseException) -> str | None:
    """Which file, what was seen and what to do, if `error` is one that the machine's owner can mend; else None."""
    if not isinstance(error, OSError) or error.errno not in _ADVICE:
        return None
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror}; {_ADVICE[error.errno]}, and give the same command again; what is finished is kept"


def told(error: BaseException) -> str | None:
    """What to say of an error that was to be expected; None for a bug, which keeps its traceback."""
    return str(error) if isinstance(error, EXPECTED) else disk_trouble(error) or credentials.refusal(error)


def exit_code(error: BaseException) -> int:
    """The exit code that says what kind of error it was."""
    if isinstance(error, StepInterrupted | NotYet):
        return INTERRUPTED
    if isinstance(error, PackageDamaged | Damaged | RecordDamaged | StoreDamaged | SlotDamaged):
        return DAMAGED
    return (
        USAGE
        if isinstance(error, ConfigError | UnknownModel | PullRefused | PromotionRefused | BadSchedule)
        else FAILED
    )
