"""The command that runs all tasks and prints what they reached.

The one idea: each task is its recipe, run like any other into the same work directory, so what two of them share is made
once and a second `make tasks` has nothing to do. One that fails is told at the end, and keeps no other from running.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Annotated

import typer

from pipelines import run
from pipelines.config import ConfigError
from pipelines.errors import StepFailed, told
from pipelines.options import AsJson, Settings, WorkDir, configured, err, listed, out, pairs
from pipelines.results import Given

Names = Annotated[str, typer.Option("--tasks", help="recipes, with commas or spaces between; all if none")]
Done = Annotated[bool, typer.Option("--done", help="run nothing: the table of what is done")]


def tasks(
    names: Names = "", work: WorkDir = "work", settings: Settings = None, done: Done = False, as_json: AsJson = False
) -> None:
    """Run the recipe of each task, and print the table: ours beside the baselines."""
    from pipelines import narrate, recipes, store, task_table

    failed, missing, found = [], [], list[task_table.Row]()
    progress = err if as_json else out
    for name in listed(names) or recipes.TASKS:
        made, execution = configured(name, work, settings)
        if made.task is None or made.few_labels is not None:
            raise ConfigError(f"recipe {name} has no task; choose of {', '.join(recipes.TASKS)}")
        store.assert_readable(execution.registry)
        if not done:
            progress.print(f"\n== {name}", markup=False)
        workspace = run.open_workspace(made, execution, fetch=not done)
        if done:
            planned = run.plan(workspace)
        else:
            try:
                outcomes = narrate.run(workspace, progress, err, Given(name, work, pairs(settings)))
            except StepFailed as error:
                err.print(f"gptline: {told(error)}", markup=False, style="red")
                failed.append(name)
                continue
            planned = {outcome.record.step: outcome.planned for outcome in outcomes}
        if planned["evaluate-task"].done:
            found += task_table.rows(name, made.task.name, planned)
        else:
            missing.append(name)
    if as_json:
        sys.stdout.write(
            json.dumps([dataclasses.asdict(row) | {"beaten": row.beaten} for row in found], indent=1) + "\n"
        )
    else:
        out.print()
        for line in task_table.markdown(found):
            out.print(line, markup=False, soft_wrap=True)
    if missing:
        progress.print(
            f"\nnot done: {', '.join(missing)}\nnext: {Given(work=work, settings=pairs(settings)).make('tasks')}",
            markup=False,
        )
    if failed:
        err.print(f"gptline: failed: {', '.join(failed)}; the reasons stand above", markup=False, style="red")
        raise typer.Exit(1)
