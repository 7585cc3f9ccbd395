"""The wish to stop a training step, and what becomes of it.

The one idea: ranks look for a file, because they may be on other machines. SIGTERM and Ctrl-C create it; the ranks
save, and end. Whoever has not saved when the grace period is over is killed, and loses what came after the last checkpoint.
"""

from __future__ import annotations

import signal
import time
from pathlib import Path
from types import TracebackType
from typing import Any


class Interrupted(RuntimeError):
    """The step was asked to stop (SIGTERM or Ctrl-C); the next run continues from its checkpoint."""


class Stop:
    """Within the `with` block SIGTERM and SIGINT ask the ranks to save and stop, instead of ending this process; a second one ends it.

    `file` is what ranks look for, `grace_seconds` what they have to save.
    """

    def __init__(self, file: Path, grace_seconds: float) -> None:
        self._file, self._grace = file, grace_seconds
        self._asked_at: float | None = None

    def __enter__(self) -> Stop:
        self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def asked(self) -> bool:
        """Whether somebody asked this step to stop."""
        return self._asked_at is not None

    def _ask(self, number: int, frame: Any) -> None:
        if self.asked:
            raise KeyboardInterrupt(f"a second signal {number}: the ranks are not waited for")
        self._asked_at = time.monotonic()
        self._file.touch()

    def check(self, name: str) -> None:
        """Interrupted if the grace period is over."""
        if self._asked_at is not None and time.monotonic() - self._asked_at > self._grace:
            raise Interrupted(
                f"{name} did not save within execution.grace_seconds={self._grace:g} and was killed; run again to go on "
                "from its last checkpoint"
            )

    def pause(self) -> None:
        """Ask the ranks to save and end, to start them again: nobody asked the step to stop."""
        self._file.touch()

    def resume(self) -> None:
        """Take back `pause`."""
        self._file.unlink(missing_ok=True)
        if self.asked:  # a signal came between
            self._file.touch()
