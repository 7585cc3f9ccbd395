"""What a pipeline does to MLflow in its whole life, small: tracking, registration, pulling. And drivers that do it.

Run as a program it is a nursery of drivers: it imports mlflow once, and forks a driver for each line of JSON that it
reads, ["function", arguments...]. It answers with the driver's process id, and when that has ended with its status.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from pipelines import mlflow_runs, patience, registry
from pipelines.metric_files import loss_curve
from pipelines.model_card import Card
from pipelines.package import build_package
from pipelines.patience import patiently
from pipelines.pull import pull
from pipelines.registry import GateResult
from pipelines.store import set_up_mlflow
from pipelines.tracking import Tracker
from tests.pipelines.tiny_exports import safetensors

ROOT = Path(__file__).parents[2]
RECIPE = {"name": "tiny", "pretrain": {"max_steps": 4}}
CONFIG, TAGS = {"train": {"max_steps": 4}}, {"gptline.input.tokens": "d" * 64}
RESULT = {"final_loss": 2.5, "verdict": "good"}
POINTS = [(step, 10.0 / step) for step in range(1, 5)]
_NOISE = ("mlflow.", "gptline.owner", "gptline.work", "gptline.execution", "gptline.fingerprint", "gptline.reused")


def track(uri: str, where: str, key: str) -> None:
    """One execution with one step, done as the pipeline does it: what has a record is confirmed, not done again."""
    folder = Path(where)
    tracker = Tracker(uri, folder / "outbox.json")
    tracker.start_execution(key, RECIPE, {"gptline.work": where})
    if (folder / "record.json").exists():
        tracker.confirm_step("pretrain", f"f-{key}", CONFIG, TAGS, RESULT, folder / "metrics.jsonl", _kept(folder))
    else:
        step = _trained(tracker, folder, key)
        (folder / "record.json").touch()
        step.finish("FINISHED", RESULT, _kept(folder))
    (folder / "said").touch()
    problem = tracker.finish_execution("FINISHED")
    assert problem is None, problem


def train_for_ever(uri: str, where: str, key: str) -> None:
    """The same up to the last point; it is killed then, if it was not before."""
    tracker = Tracker(uri, Path(where) / "outbox.json")
    tracker.start_execution(key, RECIPE, {"gptline.work": where})
    _trained(tracker, Path(where), key)
    (Path(where) / "said").touch()
    time.sleep(3600)


def _trained(tracker: Tracker, folder: Path, key: str) -> Any:
    lines = [json.dumps({"step": step, "loss": loss}) + "\n" for step, loss in POINTS]
    (folder / "metrics.jsonl").write_text("".join(lines))
    (folder / "samples.txt").write_text("Once upon a time")
    step = tracker.start_step("pretrain", f"f-{key}", CONFIG, TAGS)
    step.follow(folder / "metrics.jsonl")
    return step


def _kept(folder: Path) -> list[Path]:
    return [folder / "samples.txt"]


def release(uri: str, where: str, name: str) -> None:
    """Register the package in `where`, promote it, pull it."""
    package, tags = Path(where) / "package", {"gptline.step": f"register-{name}", "gptline.fingerprint": f"f-{name}"}

    gates = [GateResult("accuracy", True, "accuracy 0.8 is at least 0.7")]
    version = patiently(uri, 60, f"registering {name}", lambda: registry.register(uri, name, package, tags))
    assert patiently(uri, 60, f"promoting {name}", lambda: registry.promote(uri, version, gates))
    pull(uri, f"{name}@champion", Path(where) / "pulled", patience=60)


def write_package(folder: Path) -> None:
    """The smallest package, in `folder`/package: nobody loads it."""
    export = folder / "export"
    export.mkdir()
    (export / "config.json").write_text("{}")
    (export / "model.safetensors").write_bytes(safetensors(bytes(range(256)) * 40))
    build_package(export, folder / "package", Card("small", "text-classification", "A test."))


def tracked(uri: str, key: str) -> dict[str, Any]:
    """All that the store has of the execution: equal for equal lives, whatever happened in them."""
    client = registry.connect(uri)
    parents = mlflow_runs.find_runs(client, {"gptline.execution": key})
    steps = mlflow_runs.find_runs(client, {"gptline.fingerprint": f"f-{key}"})
    linked = [bool(parents) and step.data.tags.get("mlflow.parentRunId") == parents[0].info.run_id for step in steps]
    return {"parents": [_seen(client, run) for run in parents], "steps": [_seen(client, run) for run in steps],
            "linked": linked}  # fmt: skip


def _seen(client: Any, run: Any) -> dict[str, Any]:
    keys = [key for key in run.data.metrics if not key.startswith("system/")]
    return {
        "name": run.info.run_name, "status": run.info.status, "params": run.data.params,
        "tags": {key: value for key, value in run.data.tags.items() if not key.startswith(_NOISE)},
        "points": {key: [(p.step, p.value) for p in client.get_metric_history(run.info.run_id, key)] for key in keys},
        "files": sorted(item.path for item in client.list_artifacts(run.info.run_id)),
    }  # fmt: skip


def released(uri: str, where: Path, name: str) -> dict[str, Any]:
    """All that the registry has of the model, and what was pulled."""
    client = registry.connect(uri)
    versions = client.search_model_versions(f"name = '{name}'")
    runs = mlflow_runs.find_runs(client, {"gptline.fingerprint": f"f-{name}"})
    return {
        "versions": [(version.version, {key: value.replace(name, "") for key, value in version.tags.items()},
                      version.run_id == runs[0].info.run_id) for version in versions],
        "aliases": dict(client.get_registered_model(name).aliases),
        "runs": len(runs),
        "pulled": {path.name: path.read_bytes() for path in (where / "pulled").iterdir()},
        "beside": sorted(path.name for path in where.iterdir()),
    }  # fmt: skip


class Drivers:
    """The nursery, and the driver that it has in hand."""

    def __init__(self, log: Path) -> None:
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        with open(log, "wb") as errors:
            self._nursery = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.mlflow_life"], cwd=ROOT, env=environment,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True,
            )  # fmt: skip

    def begin(self, life: str, *arguments: str) -> int:
        """Start a driver; its process id."""
        assert self._nursery.stdin is not None
        self._nursery.stdin.write(json.dumps([life, *arguments]) + "\n")
        self._nursery.stdin.flush()
        return self._said()

    def end(self) -> int:
        """Wait for the driver's end: its exit status, negative for a signal."""
        return self._said()

    def close(self) -> None:
        """End the nursery."""
        self._nursery.kill()
        self._nursery.wait()

    def _said(self) -> int:
        assert self._nursery.stdout is not None
        return int(self._nursery.stdout.readline())


def main() -> None:
    """Fork drivers as told."""
    set_up_mlflow()
    loss_curve([], "")  # imports matplotlib
    patience._FIRST_PAUSE = 0.05
    for line in sys.stdin:
        life, *arguments = json.loads(line)
        pid = os.fork()
        if pid == 0:
            try:
                globals()[life](*arguments)
            except BaseException:
                traceback.print_exc()
                sys.stderr.flush()
                os._exit(1)
            os._exit(0)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
