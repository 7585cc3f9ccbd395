"""The same over a tracking server: registered and pulled through its artifact proxy, and mirrored through its deaths."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pipelines import registry
from pipelines.model_card import Card
from pipelines.package import build_package
from pipelines.pull import pull
from pipelines.tracking import Tracker
from tests.pipelines.test_tracking import RECIPE, _eventually, _history, _line, _runs
from tests.pipelines.tiny_exports import write_classifier


@dataclass
class Server:
    """An MLflow server that can be killed and started again at the same address."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = field(default=None)

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [
            sys.executable,
            "-m",
            "mlflow",
            "server",
            "--host",
            "127.0.0.1",
            "--port",
            str(self.port),
            "--workers",
            "1",
        ]
        stores = [
            "--backend-store-uri",
            f"sqlite:///{self.folder}/mlflow.db",
            "--artifacts-destination",
            str(self.folder / "kept"),
        ]
        with open(self.folder / "server.log", "ab") as log:
            self.process = subprocess.Popen([*command, *stores], stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + 120
        while not self._healthy():
            assert time.monotonic() < deadline and self.process.poll() is None, (self.folder / "server.log").read_text()
            time.sleep(0.2)

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def _healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


@pytest.fixture(scope="module")
def server(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(store / "mlflow.db", folder / "mlflow.db")
    # The copied experiment keeps its artifacts in a local folder; the server shall make one that it serves itself.
    client = registry.connect(folder)
    client.rename_experiment(registry.experiment_id(client), "local")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    made = Server(folder, port)
    yield made
    made.kill()


def test_points_logged_while_the_server_is_down_arrive_once_and_in_order(server: Server, tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    tracker = Tracker(server.uri, tmp_path / "outbox.json")
    tracker.start_execution("outage", RECIPE, {})
    step = tracker.start_step("pretrain", "f-outage", {"a": 1}, {})
    step.follow(metrics)
    metrics.write_text(_line(1) + _line(2))
    time.sleep(1)  # the first attempts find nobody
    server.start()
    _eventually(
        lambda: [len(_history(server.uri, run)) for run in _runs(server.uri, {"gptline.step": "pretrain"})] == [2]
    )
    server.kill()
    with open(metrics, "a") as log:
        log.write(_line(3) + _line(4))
    time.sleep(3)
    server.start()
    step.finish("FINISHED", {"final_loss": 2.5})
    assert tracker.finish_execution("FINISHED") is None
    [parent], [run] = (
        _runs(server.uri, {"gptline.execution": "outage"}),
        _runs(server.uri, {"gptline.fingerprint": "f-outage"}),
    )
    assert _history(server.uri, run) == [(n, 10.0 / n) for n in range(1, 5)]
    assert (parent.info.status, run.info.status) == ("FINISHED", "FINISHED")
    assert "loss.png" in {item.path for item in registry.connect(server.uri).list_artifacts(run.info.run_id)}


def test_a_server_registers_once_and_serves_what_was_registered(server: Server, tmp_path: Path) -> None:
    if server.process is None:
        server.start()
    build_package(
        write_classifier(tmp_path / "export"), tmp_path / "package", Card("served", "text-classification", "A test.")
    )
    version = registry.register(server.uri, "served", tmp_path / "package", {"a": "b"})
    assert registry.register(server.uri, "served", tmp_path / "package", {"a": "b"}) == version
    assert version.source.startswith("mlflow-artifacts:")
    assert registry.promote(server.uri, version, [])
    assert registry.version_exists(server.uri, "served", 1, version.digest)
    assert not registry.version_exists(server.uri, "served", 2)
    assert pull(server.uri, "served@champion", tmp_path / "dest").fetched
    for path in (tmp_path / "package").iterdir():
        assert (tmp_path / "dest" / path.name).read_bytes() == path.read_bytes()


def test_asking_a_server_that_is_away_says_so(server: Server) -> None:
    server.kill()
    with pytest.raises(ConnectionError, match="is the MLflow server up"):
        registry.version_exists(server.uri, "served", 1)
