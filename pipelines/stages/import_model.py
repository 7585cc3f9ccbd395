"""import: somebody else's model in; its export, its tokenizer and its shape out.

The one idea: after this step it is a model of ours, so whatever reads a base model or a tokenizer reads this one. The
files are copied and hashed as they are read: what is imported is what was planned.
"""

from __future__ import annotations

import shutil
from typing import Any

from model import durable
from pipelines.engine.step import Attempt, Stage
from pipelines.stages.evaluate import alone
from pipelines.stages.fan_out import connect
from pipelines.stretches import changed

MODEL = "model.json"  # the output that says what the model is, as `stages/training.shape` reads it
STAGE = Stage("import", 2, "pipelines.stages.import_model:run")


def run(attempt: Attempt) -> dict[str, Any]:
    """Write export/, tokenizer/ and model.json; returns the family and figures. SourceError for a file that changed."""
    connect(attempt)
    folder = attempt.scratch / "model"
    folder.mkdir()
    for file in attempt.sources["model"]:
        draft = folder / file["label"]
        shutil.copyfile(file["path"], draft)
        if durable.sha256(draft) != file["sha256"]:
            raise changed(file["path"])
    found: dict[str, Any] = alone(
        attempt, "model.importing:import_model", folder=str(folder), output=str(attempt.outputs)
    )
    durable.remove_tree(folder)
    durable.fsync_tree(attempt.outputs)
    return found
