"""prepare_task: labelled data in, examples (text and label, split by group) out.

The one idea: examples are text, made before any tokenizer exists, so that the corpus can be cleaned of the
held-out ones before anything is trained on it.
"""

from __future__ import annotations

import dataclasses
import importlib
import shutil
from pathlib import Path
from typing import Any

from model import durable
from pipelines.engine.step import Attempt, Stage
from pipelines.sources import SourceError
from pipelines.stretches import changed

STAGE = Stage("prepare_task", 1, "pipelines.stages.prepare_task:run")


def run(attempt: Attempt) -> dict[str, Any]:
    """Write train.jsonl, validation.jsonl, test.jsonl, labels.json and report.json; return the counts."""
    task = importlib.import_module(f"pipelines.tasks.{attempt.config['name']}")
    shares = {name: attempt.config[f"{name}_fraction"] for name in ("validation", "test")}
    try:
        prepared = task.prepare(_file(attempt), **shares)
    except ValueError as error:  # the task names file and line of what it cannot read
        raise SourceError(str(error)) from error
    if attempt.config["max_examples"]:
        prepared = dataclasses.replace(prepared, splits=_first(prepared.splits, attempt.config["max_examples"]))
    task.write(prepared, attempt.outputs)
    return {f"{name}_examples": len(part) for name, part in prepared.splits.items()}


def _file(attempt: Attempt) -> Path:
    """The labelled file, copied and then hashed: what is read is what was planned. SourceError otherwise."""
    files = attempt.sources["labelled"]
    if len(files) != 1:
        names = ", ".join(file["path"] for file in files[:3])
        raise SourceError(f"task.source means {len(files)} files ({names}, ...); give one")
    draft = attempt.scratch / Path(files[0]["path"]).name
    shutil.copyfile(files[0]["path"], draft)
    if durable.sha256(draft) != files[0]["sha256"]:
        raise changed(files[0]["path"])
    return draft


def _first(splits: dict[str, list[Any]], count: int) -> dict[str, list[Any]]:
    """The `count` examples of each split that come first by id, which is a hash of the text: an even sample."""
    return {name: sorted(part, key=lambda example: example.id)[:count] for name, part in splits.items()}
