"""Where the held-out data are that a model is measured on: finished steps in a work directory.

The one idea: a registered version says in its manifest which steps it was made by, so its own test examples are found
without knowing its recipe, also when the recipe or the code has changed since. A recipe is named to measure a model on
the data of that one instead. Either way each file is compared with its step's record before it is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model import durable
from pipelines import run as runs
from pipelines.config import ConfigError
from pipelines.engine import record as records
from pipelines.engine.step import StepInput, check_file
from pipelines.run import Workspace

PERPLEXITY = "perplexity"
_MANIFEST = "MANIFEST.json"


@dataclass(frozen=True)
class Made:
    """Steps by name: the folder of each below `root`. `task` is what examples are of, `measured` what is asked for by itself."""

    root: Path
    folders: Mapping[str, Path]
    task: str | None
    measured: str
    whose: str

    def read(self, step: str, name: str) -> StepInput:
        """A step whose output `name` is as it was made. ConfigError if the step is not finished here; Damaged."""
        folder = self.folders.get(step)
        record = records.read(folder) if folder else None
        if folder is None:
            raise ConfigError(
                f"{self.whose} has no step {step} that is done in {self.root}; next: make run, or where its recipe has no such "
                "step (one that begins with a model of others reads no corpus) say whose data to take (RECIPE=...)"
            )
        if record is None:
            raise ConfigError(
                f"{self.whose} is measured on data of {folder.name}, which is not made in {self.root}; "
                "next: make run, or say where they are (WORK=...) or whose data to take instead (RECIPE=...)"
            )
        for output in record.outputs:
            if output.path == f"steps/{folder.name}/outputs/{name}":
                check_file(self.root, output, step, durable.sha256)
        return StepInput(folder / "outputs", record.part(name, f"steps/{folder.name}"), record)


def of_version(package: Path, root: Path) -> Made:
    """The steps that the package in a folder says it was made by. ConfigError if it is none, and so says nothing."""
    if not (package / _MANIFEST).exists():
        raise ConfigError(
            f"{package} has no {_MANIFEST}, so nothing says which data are its own; name a recipe: RECIPE=..."
        )
    manifest = durable.read_json(package / _MANIFEST)
    lineage: dict[str, Any] = manifest["lineage"]
    folders = {name: root / "steps" / f"{name}-{made['fingerprint'][:12]}" for name, made in lineage.items()}
    task = lineage["prepare_task"]["config"]["name"] if "prepare_task" in lineage else None
    measured = task if task and "finetune" in lineage else PERPLEXITY
    return Made(root, folders, task, measured, str(manifest["name"]))


def of_recipe(workspace: Workspace) -> Made:
    """The finished steps of a recipe, as it is planned now."""
    plan = runs.plan(workspace)
    folders = {name: planned.folder for name, planned in plan.items() if planned.folder and planned.done}
    recipe = workspace.recipe
    task = recipe.task.name if recipe.task else None
    return Made(workspace.root, folders, task, PERPLEXITY, f"recipe {recipe.name}")
