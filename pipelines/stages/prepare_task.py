"""prepare_task: labelled data in, examples (text and label, split by group) out.

The one idea: examples are text, made before any tokenizer exists, so that the corpus can be cleaned of the
held-out ones before anything is trained on it.
"""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path
from typing import Any

from pipelines.engine.step import Attempt, Stage

STAGE = Stage("prepare_task", 1, "pipelines.stages.prepare_task:run")


def run(attempt: Attempt) -> dict[str, Any]:
    """Write train.jsonl, validation.jsonl, test.jsonl, labels.json and report.json; return the counts."""
    task = importlib.import_module(f"pipelines.tasks.{attempt.config['name']}")
    (file,) = attempt.sources["labelled"]
    prepared = task.prepare(
        Path(file["path"]), validation=attempt.config["validation_fraction"], test=attempt.config["test_fraction"]
    )
    if attempt.config["max_examples"]:
        prepared = dataclasses.replace(prepared, splits=_first(prepared.splits, attempt.config["max_examples"]))
    task.write(prepared, attempt.outputs)
    return {f"{name}_examples": len(part) for name, part in prepared.splits.items()}


def _first(splits: dict[str, list[Any]], count: int) -> dict[str, list[Any]]:
    """The `count` examples of each split that come first by id, which is a hash of the text: an even sample."""
    return {name: sorted(part, key=lambda example: example.id)[:count] for name, part in splits.items()}
