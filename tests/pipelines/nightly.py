"""A toy line for retraining: files become units, a model is "trained" with checkpoints and registered. Real steps, no Ray.

Small files are grouped as the real sharding does it, so each night's new file replaces the unit of the last group.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from model import durable
from pipelines import recipes, run
from pipelines.engine.digests import Digests
from pipelines.engine.step import Attempt, Input, Stage, Step
from pipelines.engine.units import unit_key
from pipelines.execution import Execution

GROUP = 8  # files in one unit
STEPS = 3  # of training, each with a checkpoint


class Crash(RuntimeError):
    """What a night's training was told to end with."""


def shard(attempt: Attempt) -> dict[str, Any]:
    """One unit for each group of files."""
    names = []
    files = [json.loads(file) for file in attempt.config["files"]]
    for start in range(0, len(files), GROUP):
        group = files[start : start + GROUP]
        key = unit_key("nightly", 1, {}, group)
        unit = attempt.units.find("text", key)
        if unit is None:
            draft = attempt.scratch / f"{start}.draft"
            durable.write_bytes(draft, json.dumps(group).encode() * 20)
            unit = attempt.units.publish("text", key, {"txt": draft}, {})
        attempt.add_outputs(list(unit.files.values()))
        names.append(unit.files["txt"].path)
    durable.write_json(attempt.outputs / "train.json", names)
    return {"units": len(names)}


def tokenizer(attempt: Attempt) -> dict[str, Any]:
    """Something that is made once and used for ever."""
    durable.write_bytes(attempt.outputs / "tokenizer.json", b"tokenizer")
    return {}


def train(attempt: Attempt) -> dict[str, Any]:
    """Go on from the latest checkpoint; end with Crash after one step if a file says so."""
    done = [int(path.name) for path in attempt.checkpoints.iterdir()]
    first = max(done, default=0)
    for step in range(first + 1, STEPS + 1):
        durable.write_bytes(attempt.checkpoints / str(step), b"state" * 2000)
        if (attempt.root.parent / "crash").exists():
            raise Crash(f"after step {step}")
    weights = "".join(
        (attempt.root / path).read_text() for path in durable.read_json(attempt.inputs["data"].path("train.json"))
    )
    durable.write_bytes(attempt.outputs / "weights", weights.encode()[-5000:].rjust(5000))
    return {"went_on_from": first}


def register(attempt: Attempt) -> dict[str, Any]:
    """A version for each package, with its aliases: what `gc` reads of MLflow's database."""
    uri = str(attempt.execution["registry"])
    with contextlib.closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as database, database:
        rows = database.execute("select max(version) from versions").fetchone()
        version = (rows[0] or 0) + 1
        database.execute("insert into versions values (?)", (version,))
        for alias in ("candidate", "champion") if attempt.config["champion"] else ("candidate",):
            database.execute(
                "insert or replace into registered_model_aliases values ('toy', ?, ?)", (alias, str(version))
            )
    durable.write_json(attempt.outputs / "registered.json", {"version": version})
    return {"name": "toy", "version": version, "digest": attempt.fingerprint, "registry": uri}


def registry(folder: Path) -> str:
    """The address of an empty registry: the table that `gc` reads."""
    folder.mkdir(parents=True)
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as database, database:
        database.execute("create table versions (version integer)")
        database.execute(
            "create table registered_model_aliases (name text, alias text, version text, primary key (name, alias))"
        )
    return f"sqlite:///{folder / 'mlflow.db'}"


def _stage(name: str) -> Stage:
    return Stage(name, 1, f"tests.pipelines.nightly:{name}")


def flow(files: list[str], champion: bool = False) -> list[Step]:
    """The line over these files; its version becomes champion if the night says so."""
    return [
        Step("shard", _stage("shard"), {"files": [json.dumps(file) for file in files]}),
        Step("train_tokenizer", _stage("tokenizer"), {}),
        Step("pretrain", _stage("train"), {}, {"data": Input("shard", "train.json"), "tokenizer": Input("train_tokenizer", "tokenizer")}),
        Step("register-task", _stage("register"), {"champion": champion}, {"export": Input("pretrain", "weights")}),
    ]  # fmt: skip


def workspace(root: Path, steps: list[Step], registry: str, lease_seconds: float = 2.0) -> run.Workspace:
    """The line in `root`."""
    settings = {"lease_seconds": lease_seconds, "registry": registry}
    return run.Workspace(recipes.tiny(), Execution(), root, steps, Digests(root / "digests.json"), settings)


def go(root: Path, steps: list[Step], registry: str) -> list[run.Outcome]:
    """Do what is to do."""
    root.mkdir(parents=True, exist_ok=True)
    return list(run.run(workspace(root, steps, registry), run.unwatched, lambda owner: None, lambda damage: None))


@contextlib.contextmanager
def crashing(root: Path) -> Iterator[None]:
    """Training ends with Crash meanwhile."""
    (root.parent / "crash").touch()
    try:
        yield
    finally:
        (root.parent / "crash").unlink()


def as_of(root: Path, moment: datetime.datetime) -> None:
    """Everything that was written just now was written at this earlier moment."""
    stamp = moment.timestamp()
    for folder, _, names in os.walk(root):
        for path in (folder, *(os.path.join(folder, name) for name in names)):
            if os.stat(path).st_mtime > stamp:
                os.utime(path, (stamp, stamp))
