"""MLflow's runs and versions tell the truth after kills: nobody is RUNNING whose process is gone, nothing is there twice."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines import mlflow_runs, registry, store_check
from pipelines.engine import lease as leases
from pipelines.registry import promote, register, resolve
from pipelines.tracking import Tracker
from tests.faults.mlflow_life import ROOT, write_package
from tests.pipelines.lossy_proxy import waits
from tests.pipelines.mlflow_views import runs

_DRIVER = """
import sys, time
from pathlib import Path
from pipelines.tracking import Tracker
store, work, key = sys.argv[1:]
tracker = Tracker(store, Path(work) / f"outbox-{key}.json")
tracker.start_execution(key, {"name": "tiny"}, {"gptline.work": work})
tracker.start_step("shard", f"f-{key}-done", {}, {}).finish("FINISHED", {})
tracker.start_step("pretrain", f"f-{key}", {}, {})
time.sleep(3600)
"""


@contextlib.contextmanager
def driver(store: Path, work: Path, key: str) -> Iterator[subprocess.Popen[bytes]]:
    """A pipeline that trains for ever, once MLflow says so; dead at the end, if it was not before."""
    work.mkdir(exist_ok=True)
    command = [sys.executable, "-c", _DRIVER, str(store), str(work), key]
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
    try:
        assert waits(lambda: statuses(store, key) == ["RUNNING", "FINISHED", "RUNNING"])
        yield process
    finally:
        process.kill()
        process.wait()


def statuses(store: Path, key: str) -> list[str]:
    """Of the parent run, its finished step and its unfinished step."""
    wanted = ({"gptline.execution": key}, {"gptline.fingerprint": f"f-{key}-done"}, {"gptline.fingerprint": f"f-{key}"})
    return [run.info.status for identity in wanted for run in runs(store, identity)]


def next_pipeline(store: Path, work: Path, key: str) -> None:
    tracker = Tracker(store, work / "outbox.json")
    tracker.start_execution(key, {"name": "tiny"}, {"gptline.work": str(work)})
    assert tracker.finish_execution("FINISHED") is None


def test_a_killed_execution_followed_by_another_one_is_killed_to_mlflow_too(store: Path, tmp_path: Path) -> None:
    with driver(store, tmp_path, "alive"):
        with driver(store, tmp_path, "dead"), driver(store, tmp_path / "elsewhere", "elsewhere"):
            pass
        assert statuses(store, "dead") == ["RUNNING", "FINISHED", "RUNNING"], "nobody could say so yet"
        next_pipeline(store, tmp_path, "other data")
        assert statuses(store, "dead") == ["KILLED", "FINISHED", "KILLED"]
        assert statuses(store, "alive") == ["RUNNING", "FINISHED", "RUNNING"], "it lives: it is not ours to end"
        assert statuses(store, "elsewhere") == ["RUNNING", "FINISHED", "RUNNING"], "another work directory's"
    next_pipeline(store, tmp_path, "alive")
    assert statuses(store, "alive") == ["FINISHED", "FINISHED", "KILLED"], "it went on without its last step"


def test_a_frozen_execution_is_not_taken_for_dead(store: Path, tmp_path: Path) -> None:
    with driver(store, tmp_path, "frozen") as frozen:
        frozen.send_signal(signal.SIGSTOP)
        next_pipeline(store, tmp_path, "other data while frozen")
        assert statuses(store, "frozen") == ["RUNNING", "FINISHED", "RUNNING"]


def test_an_owner_is_dead_if_its_machine_was_started_again_and_unknown_on_another_machine() -> None:
    us = leases.this_process("t")
    assert not leases.is_dead(us)
    boot, _, space = us.space.partition(" ")
    assert leases.is_dead(leases.Owner("t", us.host, f"another-boot {space}", us.pid, us.started))
    assert not leases.is_dead(leases.Owner("t", "elsewhere", f"another-boot {space}", us.pid, us.started))
    assert not leases.is_dead(leases.Owner("t", us.host, f"{boot} another-container", us.pid, us.started))
    assert leases.is_dead(leases.Owner("t", us.host, us.space, us.pid, "earlier"))
    assert not mlflow_runs.is_orphan({}) and not mlflow_runs.is_orphan({mlflow_runs.OWNER_TAG: "?"})


@pytest.mark.parametrize("older", [True, False])
def test_a_run_that_a_late_request_made_twice_is_there_once_when_it_is_finished(
    store: Path, tmp_path: Path, older: bool
) -> None:
    key = f"late-{older}"
    identity = {"gptline.step": "pretrain", "gptline.fingerprint": f"f-{key}"}
    tracker = Tracker(store, tmp_path / "outbox.json")
    tracker.start_execution(key, {"name": "tiny"}, {})
    step = tracker.start_step("pretrain", f"f-{key}", {}, {})
    assert waits(lambda: runs(store, identity))
    used = runs(store, identity)[0].info.run_id
    client = registry.connect(store)
    moment = int(1000 * time.time()) + (-100_000 if older else 100_000)
    client.create_run(mlflow_runs.experiment_id(client), start_time=moment, tags=identity)
    step.finish("FINISHED", {"final_loss": 1.0})
    assert tracker.finish_execution("FINISHED") is None
    assert [(run.info.run_id, run.info.status) for run in runs(store, identity)] == [(used, "FINISHED")]


def test_a_version_that_a_late_request_made_twice_is_marked_and_no_alias_stays_on_it(
    store: Path, tmp_path: Path
) -> None:
    write_package(tmp_path)
    first = register(store, "late", tmp_path / "package", {"a": "b"})
    client = registry.connect(store)
    client.create_model_version("late", first.source, first.run_id, tags={registry.DIGEST_TAG: str(first.digest)})
    client.set_registered_model_alias("late", "champion", "2")
    database = store_check.local_database(str(store))
    assert any(
        "late@champion points at version 2, which repeats version 1" in d for d in store_check.check(database).damaged
    )
    assert register(store, "late", tmp_path / "package", {"a": "b"}) == first
    assert promote(store, first, [])
    assert client.get_model_version("late", "2").tags[registry.DOUBLE_TAG] == "1"
    assert registry.DOUBLE_TAG not in client.get_model_version("late", "1").tags
    assert {resolve(store, f"late@{alias}").version for alias in ("champion", "candidate")} == {1}
    assert not [line for line in store_check.check(database).damaged if "late" in line]
