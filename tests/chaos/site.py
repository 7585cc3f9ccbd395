"""One line under test: a folder with its work directory, registry and Ray, and the processes that belong to it.

The one idea: every process that the line starts inherits a mark in its environment, so that the harness touches its
own processes only, finds those that outlive their parents, and can pull the plug on all of them in one go. Ray's
workers write their title over their environment: those are noted while they are somebody's descendants.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
MARK = "GPTLINE_CHAOS"
# More units and more steps than `tiny` has, so that there is something to be lost, and checkpoints to lose it between.
SETTINGS: Mapping[str, object] = {
    "shard.shard_bytes": 65536,
    "pretrain.max_steps": 60,
    "finetune.max_steps": 60,
    "execution.checkpoint_every": 5,
}
_AGENTS = ("ray::RuntimeEnvAgent", "ray::DashboardAgent")


@dataclass
class Site:
    """A work directory and a registry of their own. `tree` is the code that runs, `until` the last step it is asked for."""

    folder: Path
    tree: Path = ROOT
    recipe: str = "tiny"
    until: str | None = None
    settings: Mapping[str, object] = field(default_factory=lambda: dict(SETTINGS))
    server: Server | None = None
    starts: int = 0
    driver: psutil.Popen | None = None
    lingering: list[psutil.Process] = field(default_factory=list)
    _noted: set[psutil.Process] = field(default_factory=set)

    @property
    def work(self) -> Path:
        """The work directory."""
        return self.folder / "work"

    @property
    def registry(self) -> Path:
        """The folder of MLflow's database and artifacts, also where a server serves them."""
        return self.folder / "registry"

    @property
    def log(self) -> Path:
        """What the newest driver says."""
        return self.folder / f"driver-{self.starts}.log"

    def command(self, verb: str, *arguments: str) -> list[str]:
        """The command line, as a user gives it."""
        address = self.server.address if self.server else str(self.registry)
        chosen = {"execution.cache": ROOT / ".cache" / "gptline", "execution.registry": address, **self.settings}
        options = [part for key, value in chosen.items() for part in ("--set", f"{key}={value}")]
        where = ["--recipe", self.recipe, "--work", str(self.work)]
        return [sys.executable, "-m", "pipelines", verb, *arguments, *where, *options]

    def start(self) -> psutil.Popen:
        """Start `run`; it is the only command that is ever given again."""
        self.starts += 1
        until = ["--until", self.until] if self.until else []
        with open(self.log, "wb") as log:
            self.driver = psutil.Popen(
                self.command("run", *until),
                cwd=self.tree, env=self.environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        return self.driver

    def ask(self, verb: str) -> subprocess.CompletedProcess[str]:
        """Give another command and wait for it."""
        return subprocess.run(
            self.command(verb), cwd=self.tree, env=self.environment(), capture_output=True, text=True, check=False
        )

    def environment(self) -> dict[str, str]:
        """The environment of the line's processes: the mark, and temporary files that are removed with the folder."""
        for name in ("t", "r"):
            (self.folder / name).mkdir(exist_ok=True)
        return os.environ | {
            MARK: str(self.folder),
            "PYTHONPATH": str(self.tree),
            "TMPDIR": str(self.folder / "t"),
            "RAY_TMPDIR": str(self.folder / "r"),
            "HF_HUB_OFFLINE": "1",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }

    def note(self) -> None:
        """Remember the driver's descendants. To be called now and then."""
        with contextlib.suppress(psutil.Error):
            self._noted |= set(self.driver.children(recursive=True)) if self.driver else set()

    def processes(self) -> list[psutil.Process]:
        """All living processes of the line, whoever their parent is now; not the server."""
        self.note()
        self._noted = {process for process in self._noted if _lives(process)}
        return list(self._noted | set(marked(str(self.folder))))

    def left(self, seconds: float) -> list[psutil.Process]:
        """Wait until no process is left, for `seconds` at most; those that are, apart from Ray's agents.

        Those ask a Ray that is dead for another minute before they end: they go to `lingering`, to be looked at later.
        """
        deadline = time.monotonic() + seconds
        while True:
            found = self.processes()
            self.lingering = [process for process in found if process.name() in _AGENTS]
            others = [process for process in found if process not in self.lingering]
            if not others or time.monotonic() > deadline:
                return others
            time.sleep(0.1)

    def close(self) -> None:
        """End whatever still runs, apart from what lingers, and remove the folder."""
        if self.server:
            self.server.kill()
        while left := [process for process in self.processes() if process not in self.lingering]:
            kill_all(left)
        shutil.rmtree(self.folder, ignore_errors=True)


@contextlib.contextmanager
def site(**given: object) -> Iterator[Site]:
    """A new Site in a fresh folder with a short name (Ray's sockets lie below it), closed at the end."""
    made = Site(Path(tempfile.mkdtemp(prefix="ch", dir="/tmp")), **given)  # type: ignore[arg-type]
    try:
        yield made
    finally:
        made.close()


def marked(mark: str) -> list[psutil.Process]:
    """The living processes that carry the mark."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def _lives(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def kill_all(processes: list[psutil.Process]) -> None:
    """SIGKILL them all at one moment: none sees another die, because all are stopped first."""
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for process in processes:
            with contextlib.suppress(psutil.Error):
                process.send_signal(number)
    psutil.wait_procs(processes, timeout=10)


class Server:
    """An MLflow server over a site's registry folder, on one port however often it is killed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._mark = f"{folder} server"

    @property
    def address(self) -> str:
        """What `execution.registry` is set to."""
        return f"http://127.0.0.1:{self.port}"

    def processes(self) -> list[psutil.Process]:
        """The server and its workers."""
        return marked(self._mark)

    def start(self) -> None:
        """Start the server; `wait` for it."""
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        stores = ["--backend-store-uri", f"sqlite:///{self._folder}/mlflow.db", "--artifacts-destination", str(self._folder / "artifacts")]  # fmt: skip
        environment = os.environ | {
            MARK: self._mark,
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }
        with open(self._folder / "server.log", "ab") as log:
            subprocess.Popen([*command, *stores, "--workers", "1"], env=environment, stdout=log, stderr=log, start_new_session=True)  # fmt: skip

    def wait(self) -> None:
        """Until it answers."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.address}/health", timeout=5):
                return
            time.sleep(0.1)
        raise RuntimeError(f"the MLflow server does not answer: {(self._folder / 'server.log').read_text()[-2000:]}")

    def kill(self) -> None:
        """SIGKILL, workers too."""
        kill_all(self.processes())


def seed_registry(site: Site, template: Path | None, served: bool) -> None:
    """Give the site a migrated copy of the database `template`, or let the line make one, which takes it seconds.

    Where a server serves, a line that begins makes its experiment anew, with artifacts at the server.
    """
    if template is None:
        return
    site.registry.mkdir()
    shutil.copyfile(template, site.registry / "mlflow.db")
    change, value = ("name = ?", "local") if served else ("artifact_location = ?", f"{site.registry}/artifacts/gptline")
    with contextlib.closing(sqlite3.connect(site.registry / "mlflow.db")) as database, database:
        database.execute(f"update experiments set {change} where name = 'gptline'", (value,))
    if served:
        site.server = Server(site.registry)
        site.server.start()
        site.server.wait()
