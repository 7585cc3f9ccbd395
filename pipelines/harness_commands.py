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

from pipelines.options import AsJson, Settings, WorkDir, configured, err, execution_of, listed, out

DIFFERENT = 1


def evaluate(
    model: Annotated[str, typer.Argument(help="name@alias, name@version, or a folder with an export")],
    tasks: Annotated[
        str | None,
        typer.Option("--tasks", help="with commas or spaces between them; the model's own task if not given"),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", "-r", help="whose held-out data; those that the version stands on if not given"),
    ] = None,
    work: WorkDir = "work",
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Measure a model with lm-eval on its own held-out data, or on a recipe's, beside our own figures."""
    from pipelines import harness, harness_data, inspection, run

    execution = execution_of(work, settings)
    with tempfile.TemporaryDirectory() as scratch:
        folder = inspection.export_folder(execution, model, Path(scratch))
        if recipe:
            made = harness_data.of_recipe(run.open_workspace(*configured(recipe, work, settings), fetch=False))
        else:
            made = harness_data.of_version(folder, Path(execution.work))
        names = listed(tasks or "") or [made.measured]
        found = list(harness.evaluate(execution, made, folder, names, Path(scratch) / "tasks"))
    if as_json:
        rows = [asdict(one) | {"agrees": one.agrees} for one in found]
        sys.stdout.write(json.dumps({"model": model, "data": made.whose, "figures": rows}, indent=1) + "\n")
    else:
        out.print(f"{model} on the held-out data of {made.whose} in {work}:", markup=False)
        table = Table("task", "metric", "gptline", "lm-eval", "equal to the third digit", box=None)
        for one in found:
            table.add_row(one.task, one.metric, f"{one.ours:.6g}", f"{one.theirs:.6g}", "yes" if one.agrees else "NO")
        out.print(table)
        for task, count in {one.task: one.left_out for one in found if one.left_out}.items():
            out.print(f"{task}: {count:,} replies are left out, whose text alone does not give their tokens (cut ones)")
    different = [one for one in found if not one.agrees]
    for one in different:
        err.print(
            f"gptline: {one.metric} of {one.task} is {one.ours:.6g} here and {one.theirs:.6g} by lm-eval", style="red"
        )
    if different:
        raise typer.Exit(DIFFERENT)
