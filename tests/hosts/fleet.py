"""A cluster of such hosts: a shared folder, Ray on each host as a service that is started again, and the command line on the head.

The one idea: what a site has and no more. Whatever ends on a living host is started again, as systemd does; what is
known of a run is its log, its files and its registry.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.hosts.machines import Host, Switch, switch

ROOT = Path(__file__).parents[2]
PORT = 6379
# Ray of a site where a host is taken for dead after ten seconds of silence.
IMPATIENT = {
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}
_SERVICE = 'while true; do "$@"; sleep 1; done'


@dataclass
class Fleet:
    """Hosts 1 (the head), 2, 3.. on one network. `settings` are those of the recipe and the execution of every run."""

    folder: Path
    network: Switch
    settings: dict[str, object] = field(default_factory=dict)
    cpus: int = 1  # that Ray has on each host
    head_cpus: int | None = None  # that it has on the head, if not as many
    ray: Mapping[str, str] = field(default_factory=dict)  # more of Ray's environment
    hosts: dict[int, Host] = field(default_factory=dict)
    token: str = field(default_factory=lambda: secrets.token_hex(32))
    runs: int = 0
    driver: subprocess.Popen[bytes] | None = None

    @property
    def work(self) -> Path:
        """The shared work directory."""
        return self.folder / "work"

    @property
    def registry(self) -> Path:
        """MLflow's store, in the shared folder too."""
        return self.folder / "registry"

    @property
    def log(self) -> Path:
        """What the newest run says."""
        return self.folder / f"run-{self.runs}.log"

    def said(self) -> str:
        """What the newest run said so far."""
        return self.log.read_text() if self.log.exists() else ""

    def add(self, number: int, hidden: Path | None = None, stale: Path | None = None) -> Host:
        """A new host with Ray on it, which joins the head's, or is the head. `hidden` and `stale` as a Host has them."""
        self.hosts[number] = Host(self.network, number, hidden, stale)
        self.serve(number)
        return self.hosts[number]

    def boot(self, number: int) -> None:
        """Switch a host that was killed on again; its services start by themselves."""
        self.hosts[number].boot()
        self.serve(number)

    def serve(self, number: int) -> None:
        """Start Ray's service on a host."""
        host, head = self.hosts[number], self.hosts[1].address
        place = (
            ["--head", "--port", str(PORT), "--include-dashboard=false"]
            if number == 1
            else ["--address", f"{head}:{PORT}"]
        )
        command = [str(Path(sys.executable).parent / "ray"), "start", "--block", "--disable-usage-stats", *place]
        cpus = self.cpus if self.head_cpus is None or number > 1 else self.head_cpus
        options = ["--node-ip-address", host.address, "--num-cpus", str(cpus), "--num-gpus", "0"]
        options += ["--object-store-memory", str(80_000_000)]
        host.start(
            "bash", "-c", _SERVICE, "ray", *command, *options, log=self.folder / f"ray-{host.name}.log",
            env=self.environment(), cwd="/",
        )  # fmt: skip

    def environment(self) -> dict[str, str]:
        """The environment of everything on the hosts."""
        return os.environ | {
            "PYTHONPATH": str(ROOT),
            "HF_HUB_OFFLINE": "1",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            **self.ray,
        }

    def start(self, *arguments: str) -> None:
        """Give `run` on the head; it is the only command that is ever given again."""
        self.runs += 1
        chosen = {
            "execution.cache": ROOT / ".cache" / "gptline", "execution.registry": self.registry,
            "execution.ray_address": f"{self.hosts[1].address}:{PORT}", **self.settings,
        }  # fmt: skip
        options = [part for key, value in chosen.items() for part in ("--set", f"{key}={value}")]
        command = [sys.executable, "-m", "pipelines", "run", "--recipe", "tiny", "--work", str(self.work)]
        self.driver = self.hosts[1].start(
            *command, *options, *arguments, log=self.log, env=self.environment(), cwd=self.folder
        )

    def until(self, ready: Callable[[], object], seconds: float = 400) -> None:
        """Wait until `ready` while the run goes on."""
        deadline = time.monotonic() + seconds
        while not ready():
            assert self.driver is None or self.driver.poll() is None, self.said()[-5000:]
            assert time.monotonic() < deadline, f"not ready after {seconds:.0f} s: {self.said()[-5000:]}"
            time.sleep(0.05)

    def ended(self, code: int = 0, seconds: float = 300) -> str:
        """What the run said, when it has ended with this exit code."""
        assert self.driver
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.driver.wait(seconds)
        assert self.driver.returncode == code, f"{self.driver.returncode}: {self.said()[-5000:]}"
        print(self.said())  # shown when the test fails
        return self.said()

    def ranks_on(self) -> list[int]:
        """The numbers of the hosts that the ranks were placed on last, by rank."""
        line = re.findall(r"\d+ ranks? on \d+ hosts?: (.*)", self.said())[-1]
        placed = {
            rank: int(host) for ranks, host in re.findall(r"([\d, ]+) on gp(\d+)", line) for rank in ranks.split(", ")
        }
        return [placed[rank] for rank in sorted(placed)]

    def workers(self, number: int) -> int:
        """How many processes Ray has started on a host to work for a driver; none before there is work for it."""
        return len(self.hosts[number].run("sh", "-c", "ls /tmp/ray/session_2*/logs/python-core-worker-*").split())

    def when_up(self, count: int, seconds: float = 240) -> None:
        """Wait until the head's Ray counts `count` living nodes."""
        deadline = time.monotonic() + seconds
        while (found := self.nodes()) != count:
            assert time.monotonic() < deadline, f"{found} nodes instead of {count} after {seconds:.0f} s"

    def nodes(self) -> int:
        """How many living nodes the head's Ray counts."""
        ask = "import ray; ray.init(address='auto', logging_level='ERROR'); print(sum(n['Alive'] for n in ray.nodes()))"
        with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
            said = self.hosts[1].run(sys.executable, "-c", ask, env=self.environment(), timeout=60)
            return int(said.splitlines()[-1])
        return 0


@contextlib.contextmanager
def fleet(count: int, **given: object) -> Iterator[Fleet]:
    """A new fleet of `count` hosts in a fresh shared folder. At the end hosts, network and folder are gone."""
    folder = Path(tempfile.mkdtemp(prefix="gptline-hosts-", dir="/var/tmp"))
    try:
        with switch() as network:
            made = Fleet(folder, network, **given)  # type: ignore[arg-type]
            for number in range(1, count + 1):
                made.add(number)
            yield made
    finally:
        shutil.rmtree(folder, ignore_errors=True)
