"""Whichever request to MLflow is cut, and whoever is killed at it: what the store has afterwards is the same."""

from __future__ import annotations

import os
import random
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipelines import mlflow_runs, patience, registry, tracking
from pipelines.tracking import Tracker
from tests.faults import mlflow_life
from tests.faults.mlflow_life import POINTS, Drivers, released, tracked
from tests.mlflow_server import MlflowServer
from tests.pipelines.lossy_proxy import LossyProxy, Request, waits

SIDES = ("before", "after")
THOROUGH = ("before", pytest.param("after", marks=pytest.mark.thorough))  # where either takes half a minute
ALL = os.environ.get("GPTLINE_CUTS") == "all"  # minutes; else a choice


def chosen(requests: list[Request], side: str, kills: bool = False) -> list[Request]:
    """The requests to cut, or to kill a driver at: the last of each kind, and after they were forwarded the first of those
    that change the store.

    A question that is cut after it was answered is like one that was cut before. And who is killed at a question leaves
    what is left by whoever is killed at the next change: so drivers are killed at questions only after the last of these.
    """
    if ALL:
        return requests
    changes = [request.number for request in requests if not _asks(request)]
    kinds: dict[str, list[Request]] = {}
    for request in requests:
        if not _asks(request) or (side == "before" and not (kills and request.number < changes[-1])):
            kinds.setdefault(re.sub(r"/[^/]+[.][^/]+$", "/FILE", str(request)), []).append(request)
    return sorted((kind[-1 if side == "before" else 0] for kind in kinds.values()), key=lambda request: request.number)


def _asks(request: Request) -> bool:
    """Whether a request changes nothing in the store."""
    return request.method == "GET" or "search" in request.path


@pytest.fixture(scope="module")
def proxy(shared_server: MlflowServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LossyProxy]:
    shared_server.ensure_up()
    proxy = LossyProxy(shared_server.port)
    mlflow_runs.experiment_id(registry.connect(proxy.uri))  # who comes first makes it; see the test of that
    first = tmp_path_factory.mktemp("first")
    mlflow_life.write_package(first)
    mlflow_life.release(proxy.uri, str(first), "first")  # a process asks once what kind of server this is
    yield proxy
    proxy.close()


@pytest.fixture(scope="module")
def drivers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Drivers]:
    nursery = Drivers(tmp_path_factory.mktemp("drivers") / "errors")
    yield nursery
    nursery.close()


@pytest.fixture(autouse=True)
def hurried(proxy: LossyProxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No waiting between two looks: what is tested is what is asked again, not when."""
    monkeypatch.setattr(tracking, "_POLL", 0.02)
    monkeypatch.setattr(patience, "_FIRST_PAUSE", 0.02)
    monkeypatch.setattr(patience, "_LONGEST_PAUSE", 0.2)
    proxy.reset()
    yield
    proxy.reset()


def said_first(folder: Path) -> Callable[[Request], object]:
    """Hold the first request until the pipeline has said everything: so the sequence of requests is always the same."""
    return lambda request: request.number == 0 and not waits((folder / "said").exists)


def cut(proxy: LossyProxy, number: int, side: str, gate: Callable[[Request], object]) -> list[Request]:
    """Cut request `number` at that side; the requests that were cut come in the list that is returned."""
    fired: list[Request] = []
    proxy.reset()

    def rule(request: Request) -> bool:
        if request.number == number:
            fired.append(request)
        return request.number == number

    proxy.before = lambda request: gate(request) or (side == "before" and rule(request))
    proxy.after = lambda request: side == "after" and rule(request)
    return fired


def reference(proxy: LossyProxy, root: Path, life: str, key: str) -> list[Request]:
    """The requests of an undisturbed life."""
    folder = root / key
    folder.mkdir()
    proxy.reset()
    if life == "release":
        mlflow_life.write_package(folder)
    else:
        proxy.before = said_first(folder)
    getattr(mlflow_life, life)(proxy.uri, str(folder), key)
    seen = list(proxy.seen)
    proxy.reset()
    return seen


@pytest.mark.parametrize("side", SIDES)
def test_whichever_request_of_tracking_is_cut_the_same_process_catches_up(
    proxy: LossyProxy, tmp_path: Path, side: str
) -> None:
    requests = reference(proxy, tmp_path, "track", f"undisturbed-{side}")
    undisturbed = tracked(proxy.uri, f"undisturbed-{side}")
    assert undisturbed["steps"][0]["points"]["loss"] == POINTS
    assert [run["status"] for kind in ("parents", "steps") for run in undisturbed[kind]] == ["FINISHED", "FINISHED"]
    for request in chosen(requests, side):
        key = f"cut-{side}-{request.number}"
        folder = tmp_path / key
        folder.mkdir()
        fired = cut(proxy, request.number, side, said_first(folder))
        mlflow_life.track(proxy.uri, str(folder), key)
        proxy.reset()
        assert [str(one) for one in fired] == [str(request)], f"no request {request.number}"
        assert tracked(proxy.uri, key) == undisturbed, f"{request} cut {side} it was forwarded"
        assert not (folder / "outbox.json").exists()


@pytest.mark.parametrize("side", SIDES)
def test_a_cut_while_the_experiment_is_made_leaves_one_experiment(proxy: LossyProxy, tmp_path: Path, side: str) -> None:
    fired: list[str] = []

    def creation(request: Request) -> bool:
        found = "experiments/create" in request.path and not fired
        fired.extend([str(request)] * found)
        return found

    setattr(proxy, side, creation)
    tracker = Tracker(proxy.uri, tmp_path / "outbox.json", f"fresh-{side}")
    tracker.start_execution("fresh", {"name": "tiny"}, {})
    assert tracker.finish_execution("FINISHED") is None
    assert fired
    client = registry.connect(proxy.uri)
    number = mlflow_runs.experiment_id(client, f"fresh-{side}")
    assert [run.info.status for run in client.search_runs([number])] == ["FINISHED"]


@pytest.mark.parametrize("side", SIDES)
def test_whichever_request_of_registering_and_pulling_is_cut_there_is_one_version_with_its_aliases(
    proxy: LossyProxy, tmp_path: Path, side: str
) -> None:
    requests = reference(proxy, tmp_path, "release", f"whole-{side}")
    undisturbed = released(proxy.uri, tmp_path / f"whole-{side}", f"whole-{side}")
    assert undisturbed["aliases"] == {"candidate": "1", "champion": "1"}
    assert len(undisturbed["versions"]) == 1
    for request in chosen(requests, side):
        name = f"torn-{side}-{request.number}"
        folder = tmp_path / name
        folder.mkdir()
        mlflow_life.write_package(folder)
        fired = cut(proxy, request.number, side, lambda request: False)
        mlflow_life.release(proxy.uri, str(folder), name)
        proxy.reset()
        asked = [str(one).replace(name, f"whole-{side}") for one in fired]
        assert asked == [str(request)], f"no request {request.number}"
        assert released(proxy.uri, folder, name) == undisturbed, f"{request} cut {side} it was forwarded"


@pytest.mark.parametrize("side", THOROUGH)
def test_a_network_that_loses_requests_all_the_time_delays_and_stops_nothing(
    proxy: LossyProxy, tmp_path: Path, side: str
) -> None:
    """One request in ten, here and there: what arrived is not asked for again and again."""
    for life in ("track", "release"):
        sound, noisy = f"sound-{life}-{side}", f"noisy-{life}-{side}"
        reference(proxy, tmp_path, life, sound)
        (tmp_path / noisy).mkdir()
        if life == "release":
            mlflow_life.write_package(tmp_path / noisy)
        proxy.reset()
        lost: list[Request] = []

        def lose(request: Request, lost: list[Request] = lost) -> bool:
            # Not every tenth: a retry that takes as many requests would meet the same loss for ever.
            unlucky = random.Random(f"d{request.number}").random() < 0.1
            lost.extend([request] * unlucky)
            return unlucky

        setattr(proxy, side, lose)
        getattr(mlflow_life, life)(proxy.uri, str(tmp_path / noisy), noisy)
        proxy.reset()
        assert len(lost) > 2
        seen = [
            tracked(proxy.uri, key) if life == "track" else released(proxy.uri, tmp_path / key, key)
            for key in (sound, noisy)
        ]
        assert seen[0] == seen[1]


def killed_at(proxy: LossyProxy, drivers: Drivers, number: int, side: str, life: str, folder: Path, key: str) -> bool:
    """Run a driver that is killed at that request; whether it was."""
    victim: list[int] = []
    gate = said_first(folder) if life != "release" else lambda request: False

    def kill(request: Request) -> bool:
        if request.number == number:
            assert waits(lambda: victim)
            os.kill(victim[0], signal.SIGKILL)
        return request.number == number

    proxy.reset()
    proxy.before = lambda request: gate(request) or (side == "before" and kill(request))
    proxy.after = lambda request: side == "after" and kill(request)
    victim.append(drivers.begin(life, proxy.uri, str(folder), key))
    status = drivers.end()
    proxy.reset()
    return status == -signal.SIGKILL


@pytest.mark.parametrize("side", SIDES)
def test_a_driver_killed_at_any_request_of_tracking_is_made_up_for_by_the_next(
    proxy: LossyProxy, drivers: Drivers, tmp_path: Path, side: str
) -> None:
    requests = reference(proxy, tmp_path, "track", f"calm-{side}")
    undisturbed = tracked(proxy.uri, f"calm-{side}")
    for request in chosen(requests, side, kills=True):
        key = f"dead-{side}-{request.number}"
        folder = tmp_path / key
        folder.mkdir()
        assert killed_at(proxy, drivers, request.number, side, "track", folder, key), f"no request {request.number}"
        assert (folder / "outbox.json").exists(), "who finds it knows that somebody was killed"
        drivers.begin("track", proxy.uri, str(folder), key)
        assert drivers.end() == 0
        assert tracked(proxy.uri, key) == undisturbed, f"killed {side} {request} was forwarded"
        assert not (folder / "outbox.json").exists()


def training_requests(proxy: LossyProxy, drivers: Drivers, folder: Path, key: str) -> list[Request]:
    """The requests of a pipeline up to the last point of a step that goes on."""
    folder.mkdir()
    proxy.reset()
    proxy.before = said_first(folder)
    pid = drivers.begin("train_for_ever", proxy.uri, str(folder), key)

    def arrived() -> bool:
        seen = tracked(f"http://127.0.0.1:{proxy.target}", key)  # past the proxy: not to be counted
        return any(step["points"].get("loss") == POINTS for step in seen["steps"])

    assert waits(arrived)
    os.kill(pid, signal.SIGKILL)
    assert drivers.end() == -signal.SIGKILL
    return list(proxy.seen)


@pytest.mark.parametrize("side", SIDES)
def test_a_driver_killed_while_it_trains_leaves_its_runs_running_and_the_next_one_finishes_them(
    proxy: LossyProxy, drivers: Drivers, tmp_path: Path, side: str
) -> None:
    reference(proxy, tmp_path, "track", f"quiet-{side}")
    undisturbed = tracked(proxy.uri, f"quiet-{side}")
    for request in chosen(training_requests(proxy, drivers, tmp_path / "counted", f"counted-{side}"), side, kills=True):
        key = f"training-{side}-{request.number}"
        folder = tmp_path / key
        folder.mkdir()
        assert killed_at(proxy, drivers, request.number, side, "train_for_ever", folder, key), str(request)
        seen = tracked(proxy.uri, key)
        assert {run["status"] for kind in ("parents", "steps") for run in seen[kind]} <= {"RUNNING"}
        drivers.begin("track", proxy.uri, str(folder), key)
        assert drivers.end() == 0
        assert tracked(proxy.uri, key) == undisturbed, f"killed {side} {request} was forwarded"


@pytest.mark.parametrize("side", THOROUGH)
def test_a_driver_killed_at_any_request_of_registering_and_pulling_leaves_one_version_to_the_next(
    proxy: LossyProxy, drivers: Drivers, tmp_path: Path, side: str
) -> None:
    requests = reference(proxy, tmp_path, "release", f"intact-{side}")
    undisturbed = released(proxy.uri, tmp_path / f"intact-{side}", f"intact-{side}")
    for request in chosen(requests, side, kills=True):
        name = f"shot-{side}-{request.number}"
        folder = tmp_path / name
        folder.mkdir()
        mlflow_life.write_package(folder)
        assert killed_at(proxy, drivers, request.number, side, "release", folder, name), f"no request {request.number}"
        drivers.begin("release", proxy.uri, str(folder), name)
        assert drivers.end() == 0
        assert released(proxy.uri, folder, name) == undisturbed, f"killed {side} {request} was forwarded"
