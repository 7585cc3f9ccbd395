"""The wish to stop a training step, and what becomes of it.

The one idea: ranks look for a file, because they may be on other machines. SIGTERM and Ctrl-C create it; the ranks
save, and end. Whoever has not saved when the grace period is over is killed, and loses what came after the last checkpoint.
Ranks are also asked to end in order to be started again: a second file says that somebody asked the step itself.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

STOP = "stop"  # the name of the file, in the attempt's folder


class Interrupted(RuntimeError):
    """The step was asked to stop (SIGTERM or Ctrl-C); the next run continues from its checkpoint."""


class Stop:
    """What is known of the wish. `file` is what ranks look for, `grace_seconds` what they have to save."""

    def __init__(self, file: Path, grace_seconds: float) -> None:
        self._file, self._grace = file, grace_seconds
        self._asked = file.with_name(f"{file.name}-asked")
        self._seen_at: float | None = None

    @property
    def asked(self) -> bool:
        """Whether somebody asked this step to stop."""
        if self._seen_at is None and self._asked.exists():
            self._seen_at = time.monotonic()
        return self._seen_at is not None

    def ask(self) -> None:
        """Ask the step to stop."""
        self._asked.touch()
        self._file.touch()

    def check(self, name: str) -> None:
        """Interrupted if the grace period is over."""
        if self.asked and self._seen_at is not None and time.monotonic() - self._seen_at > self._grace:
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
        if self._asked.exists():  # a signal came between
            self._file.touch()


@contextlib.contextmanager
def signals_ask(stop: Stop) -> Iterator[None]:
    """Within the `with` block SIGTERM and SIGINT ask the step to stop, instead of ending this process; a second one ends it."""

    def ask(number: int, frame: Any) -> None:
        if stop.asked:
            raise KeyboardInterrupt(f"a second signal {number}: the ranks are not waited for")
        stop.ask()

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
