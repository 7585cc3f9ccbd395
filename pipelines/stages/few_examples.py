"""few_examples: a draw of a task's training examples, as if no more had been labelled.

The one idea: the order of the draw is a hash of (seed, example), so the 300 of a draw contain its 100, and a new example
moves no other.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from model import durable
from pipelines.engine.step import Attempt, Stage

STAGE = Stage("few_examples", 1, "pipelines.stages.few_examples:run")


def run(attempt: Attempt) -> dict[str, Any]:
    """Write the `labels` examples of draw `seed` to train.jsonl, in the order of the file. ValueError if there are fewer."""
    count, seed, source = attempt.config["labels"], attempt.config["seed"], attempt.inputs["train"].path("train.jsonl")
    lines = source.read_bytes().splitlines(keepends=True)
    kept = drawn([json.loads(line)["id"] for line in lines], count, seed)
    durable.write_bytes(attempt.outputs / "train.jsonl", b"".join(lines[index] for index in kept))
    return {"train_examples": len(kept)}


def drawn(ids: list[str], count: int, seed: int) -> list[int]:
    """The indices of the `count` of `ids` that draw `seed` takes, ascending. ValueError if there are not so many."""
    if count > len(ids):
        raise ValueError(
            f"{count} labels were asked for and the task has {len(ids)}: choose fewer in few_labels.labels"
        )
    order = sorted(range(len(ids)), key=lambda index: hashlib.sha256(f"{seed}:{ids[index]}".encode()).digest())
    return sorted(order[:count])
