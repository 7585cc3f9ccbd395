"""champion: the registered model that a retraining slot starts from or compares with, as outputs of a step.

The one idea: a slot froze the champion's package digest when it opened, and that is this step's input. What it stands on
(the raw sources in the champion's own lineage) is listed among the step's sources, so a challenger's lineage says in one
place every file that its weights have learned from, however many champions ago.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from model import durable
from pipelines.engine.step import Attempt, Stage
from pipelines.package import MANIFEST, PackageDamaged, verify_package

STAGE = Stage("champion", 1, "pipelines.stages.champion:run")


def run(attempt: Attempt) -> dict[str, Any]:
    """Copy the pulled package to outputs/export/, verified after the copying. PackageDamaged."""
    (package,) = attempt.sources["package"]
    export = attempt.outputs / "export"
    export.mkdir()
    files = durable.read_json(Path(package["path"]) / MANIFEST)["files"]
    for name in [*files, MANIFEST]:
        target = export / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with durable.writing(target) as draft:
            shutil.copyfile(Path(package["path"]) / name, draft)
    seen = verify_package(export)["digest"]
    if seen != package["sha256"]:
        raise PackageDamaged(f"{package['path']} holds package {seen}, the slot froze {package['sha256']}; remove it")
    return {"name": package["label"], "digest": seen}
