"""The consumers in examples/ do what they say, with a real server, real requests and a real data set."""

from __future__ import annotations

import http.client
import importlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipelines import registry
from pipelines.model_card import Card
from pipelines.package import build_package
from pipelines.registry import ModelVersion
from tests.mlflow_server import MlflowServer
from tests.pipelines.lossy_proxy import waits
from tests.pipelines.tiny_exports import write_classifier

ROOT = Path(__file__).parents[2]
NAME = "opinions"


@pytest.fixture(scope="module")
def versions(shared_server: MlflowServer, tmp_path_factory: pytest.TempPathFactory) -> list[ModelVersion]:
    """Two versions of one name that answer differently."""
    shared_server.ensure_up()
    folder, found = tmp_path_factory.mktemp("opinions"), []
    for seed in (0, 1):
        build_package(
            write_classifier(folder / f"export-{seed}", seed), folder / f"package-{seed}",
            Card(NAME, "text-classification", "A test."),
        )  # fmt: skip
        found.append(registry.register(shared_server.uri, NAME, folder / f"package-{seed}", {}))
    return found


def environment(server: MlflowServer, folder: Path) -> dict[str, str]:
    return os.environ | {
        "PYTHONPATH": str(ROOT), "GPTLINE": f"{sys.executable} -m pipelines", "MLFLOW_TRACKING_URI": server.uri,
        "MODEL": f"{NAME}@champion", "FOLDER": str(folder / "model"), "GPTLINE_MODEL_CACHE": str(folder / "cache"),
        "EVERY": "0.2", "HF_HOME": str(folder / "hf"), "TOKENIZERS_PARALLELISM": "false",
    }  # fmt: skip


@pytest.fixture
def served(mlflow_server: MlflowServer, versions: list[ModelVersion], tmp_path: Path) -> Iterator[int]:
    """The port of the example service, up, with the first version as champion."""
    registry.promote(mlflow_server.uri, versions[0], [])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "--app-dir", "examples", "--port", str(port), "serve:app"]
    service = subprocess.Popen(command, cwd=ROOT, env=environment(mlflow_server, tmp_path))
    try:
        assert waits(lambda: service.poll() is not None or _listens(port), 120)
        yield port
    finally:
        service.terminate()
        service.wait(30)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def ask(port: int) -> tuple[int, dict[str, Any]]:
    """Status and answer of one request, over a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(
            "POST", "/classify", json.dumps(["a warm film", "dull ."]), {"Content-Type": "application/json"}
        )
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def test_the_service_follows_the_champion_and_drops_no_request(
    served: int, mlflow_server: MlflowServer, versions: list[ModelVersion]
) -> None:
    said: list[tuple[int, dict[str, Any]]] = []
    failed: list[BaseException] = []
    ending = threading.Event()

    def client() -> None:
        while not ending.is_set():
            try:
                said.append(ask(served))
            except BaseException as error:
                failed.append(error)
            time.sleep(0.01)

    clients = [threading.Thread(target=client) for _ in range(4)]
    for one in clients:
        one.start()

    def answers_with(version: ModelVersion) -> bool:
        return waits(lambda: bool(said) and said[-1][1].get("version") == version.version)

    try:
        assert answers_with(versions[0])
        registry.promote(mlflow_server.uri, versions[1], [])
        assert answers_with(versions[1])
        registry.promote(mlflow_server.uri, versions[0], [])  # taken back
        assert answers_with(versions[0])
    finally:
        ending.set()
        for one in clients:
            one.join()
    assert failed == [] and {status for status, _ in said} == {200}
    by_version = {
        number: {json.dumps(answer["answers"]) for _, answer in said if answer["version"] == number}
        for number in (1, 2)
    }
    assert [len(answers) for answers in by_version.values()] == [1, 1], "each version answers as itself"
    assert by_version[1] != by_version[2]


def test_the_service_goes_on_following_when_a_model_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    monkeypatch.setenv("EVERY", "0")
    serve = importlib.import_module("serve")
    ending, troubles = threading.Event(), [RuntimeError("no memory"), OSError("no config.json"), None]

    def pipeline(*given: Any, **named: Any) -> str:
        if trouble := troubles.pop(0):
            raise trouble
        ending.set()
        return "the new model"

    pulled = SimpleNamespace(communicate=lambda: (b'{"version": 2, "dest": "model"}', b""))
    monkeypatch.setattr(serve, "subprocess", SimpleNamespace(Popen=lambda *given, **named: pulled, PIPE=None))
    monkeypatch.setattr(serve, "pipeline", pipeline)
    monkeypatch.setattr(serve, "serving", (1, "the old model"))
    serve.follow(ending)
    assert serve.serving == (2, "the new model") and troubles == []


def test_the_batch_job_labels_every_row_with_the_version_that_did(
    mlflow_server: MlflowServer, versions: list[ModelVersion], tmp_path: Path
) -> None:
    import pyarrow.parquet as pq

    registry.promote(mlflow_server.uri, versions[0], [])
    rows = [{"text": f"film number {number} is fine", "film": number} for number in range(300)]
    (tmp_path / "reviews.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [sys.executable, "examples/batch.py", str(tmp_path / "reviews.jsonl"), str(tmp_path / "labelled.parquet")]
    subprocess.run(command, cwd=ROOT, env=environment(mlflow_server, tmp_path), check=True, capture_output=True)
    table = pq.read_table(tmp_path / "labelled.parquet").to_pylist()
    assert [row["film"] for row in table] == list(range(300))
    assert {row["label"] for row in table} <= {"rotten", "fresh"} and {row["version"] for row in table} == {1}
    assert all(0.5 <= row["score"] <= 1 for row in table)
