"""Patience with a store that is away.

The one idea: registering and pulling may be repeated, because they look before they make. So while the store is away
(refused connections, lost answers, 5xx) they are, for `execution.registry_patience` seconds; then it is an error that
says what to do. What the store understands and refuses is an error at once.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pipelines.store import StoreDamaged, tracking_uri

_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 15.0  # seconds between two tries
_BUSY = (408, 429)  # HTTP: asked too slowly, asked too often

Answer = TypeVar("Answer")
log = logging.getLogger(__name__)


def patiently(location: str | Path, seconds: float, what: str, do: Callable[[], Answer]) -> Answer:
    """What `do` returns; it is tried again for `seconds` while the store is away. ConnectionError after that."""
    began, pause, told = time.monotonic(), _FIRST_PAUSE, ""
    while True:
        try:
            return do()
        except Exception as error:
            if not is_away(error):
                raise
            trouble = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
            waited = time.monotonic() - began
            if waited >= seconds:
                raise ConnectionError(
                    f"{what}: MLflow at {tracking_uri(location)} did not answer for {waited:.0f} s "
                    f"(execution.registry_patience={seconds:g}); the last trouble was {trouble}\n"
                    "next: bring MLflow back and give the same command; what is finished is kept"
                ) from error
        if trouble != told:
            log.warning("%s: %s; tried again for %.0f s more", what, trouble, seconds - waited)
            told = trouble
        time.sleep(min(pause, max(0.0, seconds - waited)))
        pause = min(2 * pause, _LONGEST_PAUSE)


def is_away(error: Exception) -> bool:
    """Whether asking again later may help: no connection, no or half an answer, or the server's own trouble."""
    if isinstance(error, StoreDamaged):
        return False
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    if hasattr(error, "get_http_status_code"):  # MLflow's own
        status = error.get_http_status_code()
        return status >= 500 or status in _BUSY
    if type(error).__module__.partition(".")[0] in ("requests", "urllib3"):
        status = getattr(getattr(error, "response", None), "status_code", 503)
        return status >= 500 or status in _BUSY
    return False
