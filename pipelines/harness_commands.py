"""`gptline evaluate`: a registered model measured by EleutherAI's lm-eval and by ourselves, side by side.

The one idea: the model comes from the registry as everybody gets it, the data from the work directory, and the exit
code says whether the two programs agree.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from pipelines.options import AsJson, RecipeName, Settings, WorkDir, configured, out

DIFFERENT = 1


def evaluate(
    model: Annotated[str, typer.Argument(help="name@alias, name@version, or a folder with an export")],
    tasks: Annotated[str, typer.Option("--tasks", help="with commas between them")] = "perplexity",
    recipe: RecipeName = "default",
    work: WorkDir = "work",
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Measure a model with lm-eval on the recipe's held-out data, beside our own figures."""
    from pipelines import harness, inspection, run

    made, execution = configured(recipe, work, settings)
    workspace = run.open_workspace(made, execution, fetch=False)
    with tempfile.TemporaryDirectory() as scratch:
        folder = inspection.export_folder(execution, model, Path(scratch))
        found = list(harness.evaluate(workspace, folder, tasks.split(","), Path(scratch) / "tasks"))
    if as_json:
        rows = [asdict(one) | {"agrees": one.agrees} for one in found]
        sys.stdout.write(json.dumps({"model": model, "figures": rows}, indent=1) + "\n")
    else:
        table = Table("task", "metric", "gptline", "lm-eval", "equal to the third digit", box=None)
        for one in found:
            table.add_row(one.task, one.metric, f"{one.ours:.6g}", f"{one.theirs:.6g}", "yes" if one.agrees else "NO")
        out.print(table)
    if not all(one.agrees for one in found):
        raise typer.Exit(DIFFERENT)
