"""Keep one command running in the foreground: started again when it ends by itself, ended when we are told to end.

The one idea: a machine with systemd and one without run the very same thing. Under either, a service that dies comes
back by itself, more slowly each time it dies young, and SIGTERM ends it with everything it started.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType

from cluster import processes

_YOUNG = 60.0  # seconds; what lived longer is started again at once
_LONGEST = 30.0  # seconds between two starts
GRACE = 20.0  # seconds that a service has to end in, before it is killed
_LOOK = 0.1  # seconds between two looks at the process
log = logging.getLogger(__name__)


class DiedYoung(ChildProcessError):
    """The command cannot run here: it ended each time it was started."""


class Told(Exception):
    """SIGTERM or SIGINT came."""


class _Signals:
    """SIGTERM and SIGINT: noted at any time, raised as Told only where nothing runs that it would leave behind."""

    def __init__(self) -> None:
        self.told, self._raises = False, False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._come)

    @contextmanager
    def raised(self) -> Iterator[None]:
        """Whoever waits in here is interrupted."""
        self._raises = True
        try:
            if self.told:
                raise Told
            yield
        finally:
            self._raises = False

    def _come(self, number: int, frame: FrameType | None) -> None:
        first, self.told = not self.told, True
        if first and self._raises:
            raise Told


def supervise(
    command: Sequence[str],
    environment: Mapping[str, str],
    before: Callable[[], None] = lambda: None,
    after: Callable[[Callable[[], bool]], None] | None = None,
) -> None:
    """Run the command until SIGTERM or SIGINT, again whenever it ends; then end it.

    `before` each start may raise, which ends all. `after` each start runs in a thread; it is given a function that
    says whether the started process still runs.
    """
    signals, pause, old = _Signals(), 1.0, False
    try:
        while True:
            with signals.raised():
                before()
            began, child = time.monotonic(), processes.start_below(command, environment)
            ours = processes.known(child.pid)
            log.info("process %d runs: %s", child.pid, " ".join(command))
            if after is not None:
                threading.Thread(target=after, args=(ours.alive,), daemon=True).start()
            while child.poll() is None and not signals.told:
                time.sleep(_LOOK)
            code = child.poll()
            processes.end(ours, environment[processes.MARK], GRACE)  # and what it may have left
            with signals.raised():
                old = old or time.monotonic() - began > _YOUNG
                if not old and pause > 1:
                    raise DiedYoung(
                        f"{command[:4]} ended by itself twice, the last time with {code}, and never lived a minute"
                    )
                pause = 1.0 if time.monotonic() - began > _YOUNG else min(2 * pause, _LONGEST)
                log.warning("process %d ended by itself with %s; starting it again in %.0f s", child.pid, code, pause)
                time.sleep(pause)
    except Told:
        log.info("ended as told")
