"""A driver of one training step, as a process of its own that tests kill things under.

    python -m tests.cluster.training_driver FOLDER '{"name": .., "train": {..}, "execution": {..}}'

FOLDER holds the data that `tests.model.training_runs.Jobs` made. Prints the step's metrics and numerics as JSON.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

from pipelines import run
from pipelines.config import Execution
from pipelines.engine.step import Attempt
from pipelines.engine.units import UnitStore
from pipelines.stages.stop import Interrupted

EXECUTION: dict[str, Any] = {"device": "cpu", "ranks": 2, "threads": 1, "workers": 2, "checkpoint_every": 10}
MODEL = {
    "n_positions": 48,
    "n_embd": 30,
    "n_layer": 2,
    "n_head": 3,
    "n_inner": 71,
    "embd_pdrop": 0.1,
    "resid_pdrop": 0.1,
}
TRAIN = {"global_batch_size": 12, "sequence_length": 32, "learning_rate": 1e-2, "warmup_steps": 2, "zero_stage": 2}


def home(folder: Path, name: str) -> Path:
    """The attempt's folder of the step `name`."""
    return folder / "work" / "steps" / name / "attempts" / "a"


def attempt_of(folder: Path, name: str, execution: dict[str, Any]) -> Attempt:
    """The attempt that this process owns."""
    root, scratch = folder / "work", home(folder, name)
    (scratch / "outputs").mkdir(parents=True, exist_ok=True)
    (scratch.parents[1] / "checkpoints").mkdir(exist_ok=True)
    settings = run.settings(Execution(work=str(root), **(EXECUTION | execution)))
    return Attempt(name, {}, {}, {}, root, scratch.parents[1], scratch, UnitStore(root), settings, "0" * 64, {})


def job_of(folder: Path, train: dict[str, Any]) -> dict[str, Any]:
    """The job, on the data in `folder`."""
    vocabulary = json.loads((folder / "train.json").read_text())["vocab_size"]
    return {
        "objective": "causal_lm",
        "data": {"manifest": str(folder / "train.json"), "root": str(folder)},
        "model": MODEL | {"vocab_size": vocabulary, "eot_token_id": 0},
        "train": TRAIN | train,
        "init": None,
        "tokenizer": str(folder / "tokenizer"),
    }


def main(folder: Path, spec: dict[str, Any]) -> None:
    """Train; exit code 75 when interrupted."""
    from cluster import services
    from pipelines.stages import training

    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    attempt = attempt_of(folder, spec["name"], spec.get("execution", {}))
    try:
        metrics = training.train(attempt, job_of(folder, spec["train"]))
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        sys.exit(75)
    finally:
        services.disconnect()
    print(json.dumps({"metrics": metrics, "numerics": attempt.numerics}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
