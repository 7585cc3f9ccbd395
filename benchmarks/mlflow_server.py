"""An MLflow server of a benchmark's own, that can be killed and started again.

The one idea: it is what a user starts, with its artifacts in a folder; nothing in it is tuned.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks import contender


class Server:
    """`mlflow server` with database and artifacts below `folder`, on loopback."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.uri = f"http://127.0.0.1:{probe.getsockname()[1]}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        port = self.uri.rpartition(":")[2]
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", port, "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{self._folder}/mlflow.db", "--artifacts-destination"]
        with open(self._folder / "server.log", "ab") as log:
            self._process = subprocess.Popen(
                [*command, str(self._folder / "kept")], stdout=log, stderr=log, start_new_session=True,
                env=contender.environment(1),
            )  # fmt: skip
        end = time.monotonic() + 180
        while time.monotonic() < end and self._process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=5):
                    return
            except OSError:
                time.sleep(0.1)
        raise contender.ContenderFailed((self._folder / "server.log").read_text()[-3000:])

    def kill(self) -> None:
        """SIGKILL it with its workers."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """A server that is up, and gone afterwards."""
    folder.mkdir(parents=True)
    server = Server(folder)
    try:
        server.start()
        yield server
    finally:
        server.kill()
