"""A driver of one training step, as a process of its own that tests kill things under.

    python -m tests.cluster.training_driver FOLDER '{"name": .., "attempt": .., "train": {..}, "execution": {..}, "nodes": [..]}'

FOLDER holds the data that `tests.model.training_runs.Jobs` made. With "nodes", a list of [step, "remove" or "add"], the step
runs on a cluster of two nodes beside the head, which loses and gets nodes when checkpoints of those steps are there.
Prints the step's metrics and numerics as JSON.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from pipelines import run
from pipelines.engine.step import Attempt
from pipelines.engine.units import UnitStore
from pipelines.execution import Execution
from pipelines.stages.budget import newest_checkpoint
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


def home(folder: Path, spec: dict[str, Any]) -> Path:
    """The folder of the attempt."""
    return folder / "work" / "steps" / spec["name"] / "attempts" / spec.get("attempt", "a")


def attempt_of(folder: Path, spec: dict[str, Any], address: str) -> Attempt:
    """The attempt that this process owns."""
    root, scratch, execution = folder / "work", home(folder, spec), {"ray_address": address} | spec.get("execution", {})
    (scratch / "outputs").mkdir(parents=True)
    (scratch.parents[1] / "checkpoints").mkdir(exist_ok=True)
    settings = run.settings(Execution(work=str(root), **(EXECUTION | execution)))
    return Attempt(spec["name"], {}, {}, {}, root, scratch.parents[1], scratch, UnitStore(root), settings, "0" * 64, {})


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


def cluster_of_two(folder: Path, spec: dict[str, Any]) -> Any:
    """A real cluster of a head and two nodes with room for one rank each, that changes as `spec` says."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    cluster.wait_for_nodes()
    checkpoints = home(folder, spec).parents[1] / "checkpoints"

    # A node is started in the main thread, because Ray sets signal handlers there.
    signal.signal(signal.SIGUSR1, lambda *_: nodes.append(cluster.add_node(num_cpus=1)))

    def change() -> None:
        for step, what in spec["nodes"]:
            while newest_checkpoint(checkpoints) < step:
                time.sleep(0.05)
            if what == "remove":
                cluster.remove_node(nodes.pop(), allow_graceful=False)
            else:
                os.kill(os.getpid(), signal.SIGUSR1)
            print(f"{what} a node", file=sys.stderr, flush=True)

    threading.Thread(target=change, daemon=True).start()
    return cluster


def main(folder: Path, spec: dict[str, Any]) -> None:
    """Train; exit code 75 when interrupted."""
    from cluster import apart
    from pipelines.stages import training

    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    cluster = cluster_of_two(folder, spec) if "nodes" in spec else None
    attempt = attempt_of(folder, spec, cluster.address if cluster else "local")
    try:
        metrics = training.train(attempt, job_of(folder, spec["train"]))
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        sys.exit(75)
    finally:
        apart.end()
        if cluster:
            cluster.shutdown()
    print(json.dumps({"metrics": metrics, "numerics": attempt.numerics}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
