"""A real Ray head for tests: token authentication, ports and a folder of its own, so that several live on one machine."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
_PORTS = (
    "port",
    "dashboard-port",
    "dashboard-agent-listen-port",
    "metrics-export-port",
    "runtime-env-agent-port",
    "ray-client-server-port",
)
_PATIENCE = 180  # seconds for the dashboard to answer


@dataclass(frozen=True)
class Head:
    """Where the head's dashboard is, and the file with its token."""

    dashboard: str
    token_file: Path
    process: subprocess.Popen[bytes]

    @property
    def environment(self) -> dict[str, str]:
        """For commands that ask it."""
        named = {"GPTLINE_DASHBOARD": self.dashboard, "GPTLINE_TOKEN_FILE": str(self.token_file)}
        return os.environ | named | {"PYTHONPATH": str(ROOT)}

    def end(self) -> None:
        """End it, and whatever runs on it."""
        self.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)  # it waits half a minute for jobs that still run
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(20)


@contextlib.contextmanager
def head() -> Iterator[Head]:
    """A head for the duration of the `with` block."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # Ray's sockets allow no long path
    token = folder / "token"
    token.touch(0o600)
    token.write_text(secrets.token_hex(24))
    ports = dict(zip(_PORTS, _free_ports(len(_PORTS)), strict=True))
    options = [f"--{name}={port}" for name, port in ports.items()]
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--node-ip-address=127.0.0.1"),
        *("--dashboard-host=127.0.0.1", f"--temp-dir={folder / 'ray'}", "--num-cpus=4", *options),
    ]
    environment = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": str(ROOT),
    }
    with (folder / "head.log").open("wb") as log:
        process = subprocess.Popen(
            command, env=os.environ | environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    started = Head(f"http://127.0.0.1:{ports['dashboard-port']}", token, process)
    try:
        _await(started, folder / "head.log")
        yield started
    finally:
        started.end()
        shutil.rmtree(folder, ignore_errors=True)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _await(started: Head, log: Path) -> None:
    """Wait until the Jobs API answers; what the head has said if it ends or does not."""
    request = urllib.request.Request(
        f"{started.dashboard}/api/jobs/", headers={"Authorization": f"Bearer {started.token_file.read_text()}"}
    )
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end and started.process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=5):
            return
        time.sleep(0.2)
    raise RuntimeError(f"the head does not answer: {log.read_text()}")
