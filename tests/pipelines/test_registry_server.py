"""The same over a tracking server: registered and pulled through its artifact proxy, and mirrored through a bad network."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines import promotion_log, registry
from pipelines.aliased import aliased
from pipelines.model_card import Card
from pipelines.package import build_package
from pipelines.pull import pull
from pipelines.tracking import Tracker
from tests.mlflow_server import MlflowServer
from tests.pipelines.lossy_proxy import LossyProxy
from tests.pipelines.mlflow_views import RECIPE, eventually, history, line, runs
from tests.pipelines.tiny_exports import write_classifier


@pytest.fixture
def served(mlflow_server: MlflowServer) -> Iterator[LossyProxy]:
    """An MLflow server behind a network that can fail."""
    proxy = LossyProxy(mlflow_server.port)
    yield proxy
    proxy.close()


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("package")
    export = write_classifier(folder / "export")
    build_package(export, folder / "package", Card("served", "text-classification", "A test."))
    return folder / "package"


def _uri(served: LossyProxy) -> str:
    return f"http://127.0.0.1:{served.port}"


def test_points_logged_while_the_server_is_away_arrive_once_and_in_order(served: LossyProxy, tmp_path: Path) -> None:
    metrics, uri = tmp_path / "metrics.jsonl", _uri(served)
    served.lose = {b"runs/create"}
    tracker = Tracker(uri, tmp_path / "outbox.json")
    tracker.start_execution("outage", RECIPE, {})
    step = tracker.start_step("pretrain", "f-outage", {"a": 1}, {})
    step.follow(metrics)
    metrics.write_text(line(1) + line(2))
    eventually(lambda: [len(history(uri, run)) for run in runs(uri, {"gptline.fingerprint": "f-outage"})] == [2])
    served.lose = {b"runs/log-batch"}
    with open(metrics, "a") as log:
        log.write(line(3) + line(4))
    eventually(lambda: not served.lose)
    served.away = True
    with open(metrics, "a") as log:
        log.write(line(5) + line(6))
    time.sleep(3)
    served.away = False
    step.finish("FINISHED", {"final_loss": 2.5})
    assert tracker.finish_execution("FINISHED") is None
    [parent], [run] = runs(uri, {"gptline.execution": "outage"}), runs(uri, {"gptline.fingerprint": "f-outage"})
    assert history(uri, run) == [(n, 10.0 / n) for n in range(1, 7)]
    assert (parent.info.status, run.info.status) == ("FINISHED", "FINISHED")
    assert "loss.png" in {item.path for item in registry.connect(uri).list_artifacts(run.info.run_id)}


@pytest.mark.parametrize("request_line", [b"runs/create", b"registered-models/create", b"model-versions/create"])
def test_a_registration_whose_answer_was_lost_is_repeated_into_one_version(
    served: LossyProxy, package: Path, request_line: bytes
) -> None:
    from mlflow.exceptions import MlflowException

    name = f"lost-{request_line.decode().partition('/')[0]}"
    tags = {"gptline.step": name, "gptline.fingerprint": name}
    served.lose = {request_line}
    with pytest.raises(MlflowException):
        registry.register(_uri(served), name, package, tags)
    assert not served.lose
    version = registry.register(_uri(served), name, package, tags)
    assert version.version == 1
    assert len(registry.connect(_uri(served)).search_model_versions(f"name = '{name}'")) == 1
    assert len(runs(_uri(served), tags)) == 1


def test_a_server_registers_once_and_serves_what_was_registered(
    served: LossyProxy, package: Path, tmp_path: Path
) -> None:
    uri = _uri(served)
    version = registry.register(uri, "served", package, {"a": "b"})
    assert registry.register(uri, "served", package, {"a": "b"}) == version
    assert version.source.startswith("mlflow-artifacts:")
    assert registry.promote(uri, version, [])
    assert registry.version_exists(uri, "served", 1, version.digest)
    assert not registry.version_exists(uri, "served", 2)
    assert pull(uri, "served@champion", tmp_path / "dest").fetched
    assert (registry.version_tags(uri, "served", 1) or {})["gptline.verified"] == version.digest
    assert [(entry.by, entry.before, entry.to) for entry in promotion_log.read(uri, "served")] == [("run", None, 1)]
    assert promotion_log.read(uri, "unheard-of") == []
    for path in package.iterdir():
        assert (tmp_path / "dest" / path.name).read_bytes() == path.read_bytes()


def test_asking_a_server_that_is_away_says_so() -> None:
    with pytest.raises(ConnectionError, match="is the MLflow server up"):
        registry.version_exists("http://127.0.0.1:9", "served", 1)


def test_gc_asks_a_server_for_its_aliases(served: LossyProxy, package: Path, tmp_path: Path) -> None:
    version = registry.register(_uri(served), "aliased-here", package, {})
    registry.release(_uri(served), version, [])
    found = aliased(tmp_path, _uri(served))
    assert found[("aliased-here", 1)] == "aliased-here@candidate, aliased-here@champion is its version"
    served.away = True
    try:
        with pytest.raises(ConnectionError):
            aliased(tmp_path, _uri(served))
    finally:
        served.away = False
