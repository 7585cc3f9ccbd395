"""MLflow killed, refusing, slow or away: training goes on, and afterwards everything is there, once and in order."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines import patience, registry, tracking
from pipelines.engine.record import Record
from pipelines.patience import patiently
from pipelines.stages import pull as pull_stage
from pipelines.stages import register as register_stage
from pipelines.tracking import Tracker
from tests.faults.mlflow_life import RECIPE, release, released, write_package
from tests.mlflow_server import MlflowServer
from tests.pipelines.lossy_proxy import LossyProxy, waits
from tests.pipelines.mlflow_views import history, line, runs


@pytest.fixture
def server(mlflow_server: MlflowServer) -> MlflowServer:
    return mlflow_server


@pytest.fixture
def proxy(server: MlflowServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[LossyProxy]:
    monkeypatch.setattr(tracking, "_POLL", 0.05)
    monkeypatch.setattr(patience, "_FIRST_PAUSE", 0.05)
    proxy = LossyProxy(server.port)
    yield proxy
    proxy.close()


def begun(uri: str, folder: Path, key: str) -> tuple[Tracker, tracking.StepRun]:
    tracker = Tracker(uri, folder / "outbox.json")
    tracker.start_execution(key, RECIPE, {"gptline.work": str(folder)})
    step = tracker.start_step("pretrain", f"f-{key}", {"a": 1}, {})
    step.follow(folder / "metrics.jsonl")
    return tracker, step


def more(folder: Path, first: int, last: int) -> None:
    with open(folder / "metrics.jsonl", "a") as log:
        log.write("".join(line(step) for step in range(first, last + 1)))


def arrived(server: MlflowServer, key: str) -> list[tuple[int, float]]:
    """The loss curve, asked of the server itself."""
    uri = f"http://127.0.0.1:{server.port}"
    return [point for run in runs(uri, {"gptline.fingerprint": f"f-{key}"}) for point in history(uri, run)]


def whole(server: MlflowServer, key: str, last: int) -> bool:
    """Whether the execution and its step are finished, once, with each point once and in order."""
    uri = f"http://127.0.0.1:{server.port}"
    found = runs(uri, {"gptline.execution": key}) + runs(uri, {"gptline.fingerprint": f"f-{key}"})
    assert [run.info.status for run in found] == ["FINISHED", "FINISHED"]
    assert arrived(server, key) == [(step, 10.0 / step) for step in range(1, last + 1)]
    return True


def test_a_server_killed_in_the_middle_and_started_again_lacks_nothing(
    server: MlflowServer, proxy: LossyProxy, tmp_path: Path
) -> None:
    tracker, step = begun(proxy.uri, tmp_path, "killed-server")
    more(tmp_path, 1, 5)
    assert waits(lambda: len(arrived(server, "killed-server")) == 5)
    server.kill()
    more(tmp_path, 6, 10)
    assert waits(lambda: tracker._trouble), "it was not asked while it was down"
    server.start()
    more(tmp_path, 11, 12)
    step.finish("FINISHED", {"final_loss": 1.0})
    assert tracker.finish_execution("FINISHED") is None
    assert whole(server, "killed-server", 12)


@pytest.mark.parametrize("side", ["before", "after"])
def test_a_server_killed_at_the_points_before_or_after_it_took_them_has_each_once(
    server: MlflowServer, proxy: LossyProxy, tmp_path: Path, side: str
) -> None:
    key, killed = f"killed-{side}", threading.Event()

    def kill_at_points(request: object) -> bool:
        if "log-batch" not in str(request) or killed.is_set():
            return False
        server.kill()
        killed.set()
        return True  # no answer comes

    tracker, step = begun(proxy.uri, tmp_path, key)
    more(tmp_path, 1, 2)
    assert waits(lambda: len(arrived(server, key)) == 2)
    setattr(proxy, side, kill_at_points)
    more(tmp_path, 3, 6)
    assert waits(killed.is_set)
    server.start()
    step.finish("FINISHED", {})
    assert tracker.finish_execution("FINISHED") is None
    assert whole(server, key, 6)


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_refusing_server_is_asked_until_it_takes_everything(
    server: MlflowServer, proxy: LossyProxy, tmp_path: Path, status: int
) -> None:
    key, refused = f"refusing-{status}", []

    def refuse(request: object) -> object:
        if str(request).endswith(("log-batch", "runs/create", "runs/update")) and len(refused) < 6:
            refused.append(request)
            return status
        return False

    proxy.before = refuse
    tracker, step = begun(proxy.uri, tmp_path, key)
    more(tmp_path, 1, 3)
    step.finish("FINISHED", {})
    assert tracker.finish_execution("FINISHED") is None
    assert len(refused) == 6
    assert whole(server, key, 3)


def test_training_waits_for_no_answer_of_mlflow(server: MlflowServer, proxy: LossyProxy, tmp_path: Path) -> None:
    """Every request is held until the step has said everything: if anything waited for one, this would never end."""
    said, held = threading.Event(), []
    proxy.before = lambda request: held.append(request) or not said.wait(60)
    tracker, step = begun(proxy.uri, tmp_path, "held")
    assert waits(lambda: held), "nothing was asked"
    more(tmp_path, 1, 3)
    step.read()
    other = tracker.start_step("evaluate", "f-held-2", {}, {})
    other.finish("FINISHED", {"accuracy": 0.8})
    tracker.reuse_step("shard", "f-shard")
    tracker.confirm_step("tokenize", "f-held-3", {}, {}, {}, tmp_path / "none.jsonl")
    step.finish("FINISHED", {"final_loss": 1.0})
    assert len(held) == 1, "the one request has not been answered yet"
    said.set()
    assert tracker.finish_execution("FINISHED") is None
    assert whole(server, "held", 3)


def test_what_a_pipeline_could_not_deliver_the_next_one_does_though_it_trains_on(
    server: MlflowServer, proxy: LossyProxy, tmp_path: Path
) -> None:
    proxy.away = True
    tracker, step = begun(proxy.uri, tmp_path, "undelivered")
    more(tmp_path, 1, 4)
    step.finish("KILLED", {})
    problem = tracker.finish_execution("KILLED", patience=0.5)
    assert problem is not None and "kept in" in problem
    proxy.away = False
    tracker, step = begun(proxy.uri, tmp_path, "undelivered")
    more(tmp_path, 5, 8)
    step.finish("FINISHED", {})
    assert tracker.finish_execution("FINISHED") is None
    assert whole(server, "undelivered", 8)
    assert not (tmp_path / "outbox.json").exists()


def test_registering_and_pulling_wait_for_a_server_that_comes_back(
    server: MlflowServer, proxy: LossyProxy, tmp_path: Path
) -> None:
    write_package(tmp_path)
    server.kill()
    asked = threading.Event()
    proxy.before = lambda request: asked.set()
    releasing = threading.Thread(target=release, args=(proxy.uri, str(tmp_path), "patient"))
    releasing.start()
    assert asked.wait(60)
    server.start()
    releasing.join(120)
    assert not releasing.is_alive()
    found = released(proxy.uri, tmp_path, "patient")
    assert (len(found["versions"]), found["aliases"]) == (1, {"candidate": "1", "champion": "1"})


def test_patience_that_ends_says_what_to_do_and_the_same_again_finishes(proxy: LossyProxy, tmp_path: Path) -> None:
    write_package(tmp_path)
    proxy.away = True

    def register() -> registry.ModelVersion:
        return registry.register(proxy.uri, "impatient", tmp_path / "package", {})

    with pytest.raises(
        ConnectionError, match=r"registering impatient: MLflow at http.*registry_patience=0.2"
    ) as failed:
        patiently(proxy.uri, 0.2, "registering impatient", register)
    assert "give the same command" in str(failed.value)
    proxy.away = False
    assert patiently(proxy.uri, 0.2, "registering impatient", register).version == 1


def test_what_mlflow_understands_and_refuses_is_not_asked_again(proxy: LossyProxy, tmp_path: Path) -> None:
    with pytest.raises(registry.UnknownModel, match="no model 'unheard'"):
        patiently(proxy.uri, 3600, "resolving", lambda: registry.resolve(proxy.uri, "unheard@champion"))
    write_package(tmp_path)
    from mlflow.exceptions import MlflowException

    with pytest.raises(MlflowException):
        patiently(proxy.uri, 3600, "registering", lambda: registry.register(proxy.uri, "", tmp_path / "package", {}))


def test_a_registration_that_cannot_be_checked_now_is_to_do_and_stops_nobody(proxy: LossyProxy) -> None:
    proxy.away = True
    metrics = {"name": "n", "version": 1, "digest": "d", "registry": proxy.uri, "alias": "candidate"}
    record = Record("register", "register-base", 1, "f", {}, {}, [], metrics, {}, {}, {}, "", "", 0.0, "")
    for stage in (register_stage, pull_stage):
        reason = stage.check(record, {"registry": proxy.uri})
        assert reason is not None and "cannot be checked now" in reason and "is the MLflow server up?" in reason


def test_a_slow_server_gets_everything(server: MlflowServer, proxy: LossyProxy, tmp_path: Path) -> None:
    """Each answer comes two seconds late, for a while: then it is as if nothing had been."""
    slow: list[object] = []
    proxy.after = lambda request: threading.Event().wait(2.0) if len(slow) < 4 and not slow.append(request) else False
    tracker, step = begun(proxy.uri, tmp_path, "slow")
    for number in range(1, 9):
        more(tmp_path, number, number)
    step.finish("FINISHED", {})
    assert tracker.finish_execution("FINISHED", patience=120) is None
    assert len(slow) == 4
    assert whole(server, "slow", 8)
