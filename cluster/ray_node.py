"""The Ray of one node, as a command to run in the foreground: a head, or a worker that joins one.

The one idea: whatever says yes to a stranger is closed. Token authentication is always on, its token in a file; a
head on 127.0.0.1 keeps all of Ray's ports on loopback (Ray itself would quietly take the machine's outer address).
With any other address Ray listens on all interfaces with its inner ports, and only the token keeps strangers out.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

LOOPBACK = "127.0.0.1"
# Ray's switch for machines that are no cluster, which makes it stay on loopback; it is not for Windows and macOS only.
_CLUSTER = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"


@dataclass(frozen=True)
class RayNode:
    """A node to start. `head` is the host:port to join; None makes this node the head, at `host`:`port`."""

    host: str
    port: int
    head: str | None
    dashboard_port: int
    client_port: int
    temp: str
    token_file: str
    cpus: int | None  # None: all of the machine
    gpus: int | None
    worker_ports: str  # "low-high"; "0-0" lets the system choose
    autoscaling: str | None = None  # the file with which Ray's cluster launcher tells its head what to start

    @property
    def address(self) -> str:
        """The head's host:port."""
        return self.head or f"{self.host}:{self.port}"

    @property
    def dashboard(self) -> str | None:
        """The address of the dashboard and of the Jobs API: on loopback, wherever Ray itself listens."""
        return None if self.head else f"http://{LOOPBACK}:{self.dashboard_port}"


def command(node: RayNode) -> list[str]:
    """`ray start ... --block`: runs until it is told to stop, or one of its processes is lost."""
    low, high = node.worker_ports.split("-")
    role = (
        [f"--address={node.head}"]
        if node.head
        else [
            "--head", f"--port={node.port}", f"--dashboard-host={LOOPBACK}", f"--dashboard-port={node.dashboard_port}",
            f"--ray-client-server-port={node.client_port}",
            # Ray's monitor opens a port of its own, and scales only what a launcher describes.
            f"--autoscaling-config={node.autoscaling}" if node.autoscaling else "--no-monitor",
        ]
    )  # fmt: skip
    amounts = [f"--num-cpus={node.cpus}"] if node.cpus is not None else []
    amounts += [f"--num-gpus={node.gpus}"] if node.gpus is not None else []
    start = "from ray.scripts.scripts import main; main()"
    return [
        sys.executable, "-c", start, "start", "--block", *role, f"--node-ip-address={node.host}",
        f"--temp-dir={node.temp}", "--dashboard-agent-listen-port=0", f"--min-worker-port={low}",
        f"--max-worker-port={high}", "--disable-usage-stats", "--log-style=record", "--log-color=false", *amounts,
    ]  # fmt: skip


def environment(token_file: str | Path, host: str) -> Mapping[str, str]:
    """What a process of Ray, or one that asks it, needs in its environment. It names the token's file, not the token."""
    found = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_file),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }
    return found | ({_CLUSTER: "0"} if host in (LOOPBACK, "localhost") else {})
