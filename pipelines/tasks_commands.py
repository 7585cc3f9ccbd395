"""The command that runs all tasks and prints what they reached.

The one idea: each task is its recipe, run like any other into the same work directory, so what two of them share is made
once and a second `make tasks` has nothing to do. All recipes are read before the first is run. One that fails, for
whatever reason that was to be expected, is told at the end and keeps no other from running; being told to stop ends all.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
from collections.abc import Mapping
from typing import Annotated

import typer

from pipelines import run, task_table
from pipelines.config import ConfigError, Recipe
from pipelines.engine.step import Planned
from pipelines.errors import StepInterrupted, told
from pipelines.execution import Execution
from pipelines.options import AsJson, Settings, WorkDir, configured, err, listed, out, pairs
from pipelines.results import Given

Names = Annotated[str, typer.Option("--tasks", help="recipes, with commas or spaces between; all if none")]
Done = Annotated[bool, typer.Option("--done", help="run nothing: the table of what is done")]


def tasks(
    names: Names = "", work: WorkDir = "work", settings: Settings = None, done: Done = False, as_json: AsJson = False
) -> None:
    """Run the recipe of each task, and print the table: ours beside the baselines."""
    from pipelines import recipes

    asked = dict.fromkeys(listed(names) or recipes.TASKS)
    made = {name: _known(name, work, settings) for name in asked}
    failed, missing, found = list[str](), list[str](), list[task_table.Row]()
    for name, (recipe, execution) in made.items():
        given = Given(name, work, pairs(settings))
        try:
            planned = _looked(recipe, execution) if done else _run(recipe, execution, given, as_json)
        except Exception as error:
            if isinstance(error, StepInterrupted) or told(error) is None:
                raise
            err.print(f"gptline: {name}: {told(error)}", markup=False, style="red")
            failed.append(name)
            continue
        if planned["evaluate-task"].done:
            assert recipe.task
            found += task_table.rows(name, recipe.task.name, planned)
        else:
            missing.append(name)
    _print(found, as_json)
    again = Given(work=work, settings=pairs(settings))
    for what, several, where in (("not done", missing, err if as_json else out), ("failed", failed, err)):
        if several:
            target = f"tasks TASKS={shlex.quote(' '.join(several))}" if names else "tasks"
            where.print(f"\n{what}: {', '.join(several)}\nnext: {again.make(target)}", markup=False)
    if failed:
        raise typer.Exit(1)


def _known(name: str, work: str, settings: list[str] | None) -> tuple[Recipe, Execution]:
    """The recipe called `name` and its execution. ConfigError if it makes no task's model, or where its store cannot be read."""
    from pipelines import recipes, store

    made, execution = configured(name, work, settings)
    if made.task is None or made.few_labels is not None:
        raise ConfigError(f"recipe {name} has no task; choose of {', '.join(recipes.TASKS)}")
    store.assert_readable(execution.registry)
    return made, execution


def _looked(recipe: Recipe, execution: Execution) -> Mapping[str, Planned]:
    """How the steps of a recipe stand; nothing is run or fetched."""
    return run.plan(run.open_workspace(recipe, execution, fetch=False))


def _run(recipe: Recipe, execution: Execution, given: Given, as_json: bool) -> Mapping[str, Planned]:
    """Run a recipe to its end; how its steps stand then."""
    from pipelines import narrate

    progress = err if as_json else out
    progress.print(f"\n== {given.recipe}", markup=False)
    workspace = run.open_workspace(recipe, execution, fetch=True)
    return {outcome.record.step: outcome.planned for outcome in narrate.run(workspace, progress, err, given)}


def _print(found: list[task_table.Row], as_json: bool) -> None:
    """The rows that were found, for a program or for a person."""
    if as_json:
        lines = [dataclasses.asdict(row) | {"beaten": row.beaten} for row in found]
        sys.stdout.write(json.dumps(lines, indent=1) + "\n")
        return
    out.print()
    for line in task_table.markdown(found):
        out.print(line, markup=False, soft_wrap=True)
    out.print(f"\n{task_table.LEGEND}", markup=False)
