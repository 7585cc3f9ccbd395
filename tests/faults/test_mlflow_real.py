"""The whole line over a bad network: requests are cut all the time, and the MLflow server is killed while it trains."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from model import durable
from pipelines import registry, store_check
from tests.faults.mlflow_life import ROOT
from tests.mlflow_server import MlflowServer
from tests.pipelines.lossy_proxy import LossyProxy
from tests.pipelines.mlflow_views import history, runs

BEFORE, AFTER = 29, 37  # every so manieth request never arrives; the answer to every so manieth is lost


def run(work: Path, uri: str) -> subprocess.CompletedProcess[str]:
    """`gptline run` of the tiny recipe."""
    settings = {"execution.registry": uri, "execution.cache": ROOT / ".cache" / "gptline"}
    options = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    command = [sys.executable, "-m", "pipelines", "run", "--recipe", "tiny", "--work", str(work), *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.thorough
def test_the_line_finishes_over_a_bad_network_and_mlflow_has_everything_once(store: Path, tmp_path: Path) -> None:
    server = MlflowServer(store, tmp_path)
    proxy = LossyProxy(server.port)
    over, downtime = threading.Event(), []
    proxy.before = lambda request: request.number % BEFORE == BEFORE - 1
    proxy.after = lambda request: request.number % AFTER == AFTER - 1

    def kill_and_start() -> None:
        while not any((tmp_path / "work").glob("steps/pretrain-*/attempts/*/metrics.jsonl")):
            if over.wait(0.05):
                return
        server.kill()
        downtime.append(time.monotonic())
        time.sleep(2)
        server.start()

    killer = threading.Thread(target=kill_and_start)
    killer.start()
    try:
        done = run(tmp_path / "work", proxy.uri)
        over.set()
        killer.join()
        assert done.returncode == 0, done.stdout + done.stderr
        assert downtime and "tracking:" not in done.stdout, done.stdout
        check_store(f"http://127.0.0.1:{server.port}", tmp_path / "work")
    finally:
        over.set()
        proxy.close()
        server.kill()
    report = store_check.check(tmp_path / "mlflow.db")
    assert (report.damaged, report.remarks, report.versions) == ([], [], 2)


def check_store(uri: str, work: Path) -> None:
    """One parent, one finished run a step, each point once and as it was, one version a model with its aliases."""
    client = registry.connect(uri)
    everything = client.search_runs([registry.experiment_id(client)])
    assert {run.info.status for run in everything} == {"FINISHED"}
    records = [durable.read_json(path) for path in sorted(work.glob("steps/*/record.json"))]
    assert len(everything) == 1 + len(records)
    for record in records:
        (found,) = runs(uri, {"gptline.fingerprint": record["fingerprint"]})
        assert found.data.tags["gptline.step"] == record["step"]
    for path in work.glob("steps/*/outputs/metrics.jsonl"):
        step = durable.read_json(path.parents[1] / "record.json")
        (found,) = runs(uri, {"gptline.fingerprint": step["fingerprint"]})
        assert history(uri, found) == losses(path)
    for model in client.search_registered_models():
        assert len(client.search_model_versions(f"name = '{model.name}'")) == 1
        assert set(model.aliases) <= {"candidate", "champion"} and set(map(str, model.aliases.values())) == {"1"}


def losses(path: Path) -> list[tuple[int, float]]:
    """The loss curve as training wrote it."""
    rows: list[dict[str, Any]] = [json.loads(line) for line in path.read_text().splitlines()]
    return [(row["step"], row["loss"]) for row in rows if "loss" in row]
