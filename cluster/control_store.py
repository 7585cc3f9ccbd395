"""What becomes of this process when Ray's control store (GCS) is gone and a request to it stays unanswered.

The one idea: such a request blocks its caller for ever, in Ray's own code, and after a minute Ray ends the process in
the middle of whatever it does (`_Exit`), even if it has long left that Ray and works on another one. Instead, a
process that noticed and went on is left alone, and one that hangs is ended: `apart.py` begins another one.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator

_INTERVAL = 1.0  # seconds between two looks
_SETTING = "RAY_gcs_rpc_server_reconnect_timeout_s"


@contextlib.contextmanager
def unanswered_requests_survived() -> Iterator[None]:
    """A Ray that is started in here ends no process for requests to its control store, when that is gone.

    Ray reads the setting while it starts. Its children get it too; those of a local Ray end with their parents all the same.
    """
    before = os.environ.get(_SETTING)
    os.environ.setdefault(_SETTING, str(10**6))
    try:
        yield
    finally:
        if before is None:
            del os.environ[_SETTING]


class Watch:
    """Looks whether Ray is `gone` until `end`. Ends this process when it was for `patience` seconds, and nobody noticed."""

    def __init__(self, gone: Callable[[], bool], patience: float) -> None:
        self._gone, self._patience = gone, patience
        self._over = threading.Event()
        threading.Thread(target=self._look, name="control store", daemon=True).start()

    def end(self) -> None:
        """The process has left that Ray, or works on another."""
        self._over.set()

    def _look(self) -> None:
        there = time.monotonic()
        while not self._over.wait(_INTERVAL):
            if not self._gone():
                there = time.monotonic()
            elif time.monotonic() - there > self._patience and not self._over.is_set():
                sys.stderr.write(
                    "gptline: Ray, or its control store, is gone, and what was asked of it will never be answered; "
                    "going on without this process\n"
                )
                sys.stderr.flush()
                os._exit(os.EX_TEMPFAIL)


def listens(address: str, timeout: float) -> bool:
    """Whether something accepts connections at "host:port" within `timeout` seconds."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout).close()
    except OSError:
        return False
    return True
