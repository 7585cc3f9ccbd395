"""A lock file that is waited for, but not for ever and not in silence.

The one idea: whoever is killed lets its lock go, and whoever is stopped or hangs does not. So who waits says for what,
goes on as long as what it waits for makes progress, and then gives up with the lock's name, so that a person can look.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

_POLL = 0.5  # seconds between two looks at the progress
_SILENT = 5.0  # seconds of waiting that are not worth a word
log = logging.getLogger(__name__)


@contextlib.contextmanager
def locked(
    path: Path,
    seconds: float,
    why: Callable[[], str],
    progress: Callable[[], object] = lambda: None,
    silent: float = _SILENT,
) -> Iterator[None]:
    """Hold the lock file at `path`. ConnectionError after `seconds` in which the value of `progress` stayed the same.

    `why` says who would hold it meanwhile, for people.
    """
    from filelock import FileLock, Timeout

    lock, seen, began = FileLock(path), progress(), time.monotonic()
    since, told = began, False
    while True:
        try:
            lock.acquire(timeout=min(_POLL, seconds))
            break
        except Timeout:
            now, found = time.monotonic(), progress()
            if found != seen:
                seen, since = found, now
            if now - since >= seconds:
                raise ConnectionError(
                    f"{why()}, and nothing came of it for {now - since:.0f} s; is it hanging? It holds {path} (lslocks says "
                    "who does): end it, and give the same command again"
                ) from None
            if not told and now - began >= silent:
                log.warning("waiting: %s; it holds %s", why(), path)
                told = True
    try:
        yield
    finally:
        lock.release()
