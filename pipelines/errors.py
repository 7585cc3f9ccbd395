"""Which errors are somebody's to mend, and the exit code of each. Light: imports nothing heavy.

The one idea: an expected error is said in its own words; any other is a bug and keeps its traceback.
"""

from __future__ import annotations

from pipelines.config import ConfigError
from pipelines.engine.lease import Busy, Overtaken
from pipelines.engine.record import RecordDamaged
from pipelines.engine.step import Damaged
from pipelines.package import PackageDamaged
from pipelines.pull import PullRefused
from pipelines.registry import UnknownModel
from pipelines.samples import SampleUnavailable
from pipelines.sources import SourceError
from pipelines.store import StoreDamaged

FAILED, USAGE, DAMAGED, INTERRUPTED = 1, 2, 3, 75


class StepFailed(RuntimeError):
    """A step failed; the message says which, why, and where its files and logs are."""


class StepInterrupted(RuntimeError):
    """A step was asked to stop and saved its state; the same command goes on."""


EXPECTED = (
    ConfigError, SourceError, SampleUnavailable, Busy, Overtaken, Damaged, RecordDamaged, UnknownModel, PullRefused,
    PackageDamaged, StepFailed, StepInterrupted, StoreDamaged, ConnectionError,
)  # fmt: skip


def exit_code(error: BaseException) -> int:
    """The exit code that says what kind of error it was."""
    if isinstance(error, StepInterrupted):
        return INTERRUPTED
    if isinstance(error, PackageDamaged | Damaged | RecordDamaged | StoreDamaged):
        return DAMAGED
    return USAGE if isinstance(error, ConfigError | UnknownModel | PullRefused) else FAILED
