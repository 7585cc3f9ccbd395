"""What all commands share: their common options, read into a Recipe and an Execution, and where they print.

The one idea: a setting is `field=value`, of the recipe or, as `execution.field=value`, of the execution.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cluster import site as sites
from pipelines import credentials, recipes
from pipelines.config import ConfigError, Recipe
from pipelines.execution import Execution
from pipelines.settings import override

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

RecipeName = Annotated[str, typer.Option("--recipe", "-r", help="a named recipe, or path/to/file.py:function")]
WorkDir = Annotated[str, typer.Option("--work", "-w", help="work directory")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", help="field=value of the recipe, or execution.field=value; may be repeated"),
]
Until = Annotated[str | None, typer.Option(help="name of the last step to do; all if not given")]
Wait = Annotated[bool, typer.Option(help="wait for whoever is at work on a step, or leave with their name")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]

# White space outside of double quotes before a field's name and "=": SET holds several settings, some with JSON in them.
_BETWEEN = re.compile(r"""\s+(?=[a-z_][a-z0-9_]*(?:\.[a-z0-9_]+)*=)(?=(?:[^"]*"[^"]*")*[^"]*$)""")


def listed(names: str) -> list[str]:
    """Names that are given with commas or blanks between them."""
    return names.replace(",", " ").split()


def pairs(settings: list[str] | None) -> tuple[str, ...]:
    """Each setting as "field=value", out of texts that may hold several. ConfigError if one has no "="."""
    found = [pair for text in settings or [] if text.strip() for pair in _BETWEEN.split(text.strip())]
    unclear = [pair for pair in found if "=" not in pair]
    if unclear:
        raise ConfigError(f"--set {unclear[0]}: write field=value, e.g. --set pretrain.max_steps=50")
    return tuple(found)


def configured(
    recipe: str, work: str, settings: list[str] | None, only_looks: bool = False
) -> tuple[Recipe, Execution]:
    """The recipe and the execution after `--set`. ConfigError says which field is wrong."""
    return recipe_of(recipe, settings), execution_of(work, settings, only_looks)


def recipe_of(recipe: str, settings: list[str] | None) -> Recipe:
    """The recipe after `--set`."""
    made, values = recipes.load(recipe), dict(pair.split("=", 1) for pair in pairs(settings))
    theirs = {path: text for path, text in values.items() if not path.startswith("execution.")}
    changed: Recipe = override(made, theirs) if theirs else made
    _refuse_anothers_name(made, changed, theirs)
    return changed


def _refuse_anothers_name(made: Recipe, changed: Recipe, given: dict[str, str]) -> None:
    """ConfigError if settings give a recipe another task and leave it the name: the new model would take the old one's place."""
    registered = changed.release and not changed.few_labels
    if not registered or not made.task or not changed.task or "register_as.task" in given:
        return
    # The whole of `register_as` as JSON names the task's model only where it says so: else it gets the name of the default recipe's.
    whole = json.loads(given.get("register_as", "{}"))
    if "task" not in whole and (
        changed.task.name != made.task.name or changed.register_as.task != made.register_as.task
    ):
        raise ConfigError(
            f"--set {'register_as' if whole else 'task'}: recipe {made.name} would register a model of task {changed.task.name} "
            f'as {changed.register_as.task!r}, the name of another one; give it its own (register_as.task=..., or "task" in '
            "register_as), and one to the base model if it is another too (register_as.base=...)"
        )


def execution_of(work: str, settings: list[str] | None, only_looks: bool = False) -> Execution:
    """The execution after `--set`; settings of the recipe are passed over. This process answers its registry's server with its credentials."""
    ours = _ours(settings)
    execution = asked_execution(work, settings)
    if ours:
        execution = at_site(execution, set(ours), only_looks)
    credentials.use(execution.registry, execution.credentials)
    return execution


def asked_execution(work: str, settings: list[str] | None) -> Execution:
    """The execution as `--set` says it, without its site: what is known whatever runs, as whom to alert."""
    ours, execution = _ours(settings), Execution(work=work)
    return override(execution, ours) if ours else execution


def _ours(settings: list[str] | None) -> dict[str, str]:
    values = dict(pair.split("=", 1) for pair in pairs(settings))
    return {path.removeprefix("execution."): text for path, text in values.items() if path.startswith("execution.")}


def await_site(execution: Execution, tell: Callable[[str], None]) -> None:
    """Wait until what the execution's site is to run has been started, as after a boot, for its `site_patience` at most.

    Whoever needs what is not there by then says so.
    """
    began, told = time.monotonic(), False
    while execution.site and (away := _away(Path(execution.site))):
        left = execution.site_patience - (time.monotonic() - began)
        if left <= 0:
            return
        if not told:
            tell(
                f"waiting for {' and '.join(away)} at site {execution.site}, {left:.0f} s at most (execution.site_patience)"
            )
            told = True
        time.sleep(min(1.0, left))


def _away(site: Path) -> list[str]:
    """What the site was set up to run, and does not."""
    from pipelines import site_files

    found, asked = sites.read(site), site_files.settings(site)
    wanted = {"Ray": found.ray} | ({"MLflow": found.mlflow} if asked.role == "head" and asked.mlflow else {})
    return [name for name, service in wanted.items() if service is None or not service.process.alive()]


def at_site(execution: Execution, given: set[str], only_looks: bool = False) -> Execution:
    """The execution with what its site has running, where nothing else was `given`.

    ConfigError if what was set up there does not run, unless the command `only_looks`: models registered beside the
    site's registry, or a Ray of our own beside its Ray, are not what was meant.
    """
    if not execution.site:
        return execution
    found = sites.read(execution.site)
    ray = found.ray if found.ray and found.ray.process.alive() else None
    mlflow = found.mlflow if found.mlflow and found.mlflow.process.alive() else None
    named = {"Ray": "ray_address", "MLflow": "registry"}
    missing = [service for service in _away(Path(execution.site)) if named[service] not in given]
    if missing and not only_looks:
        what = "is not up" if len(missing) == len(named) else f"has no {missing[0]} running, which it was set up to run"
        raise ConfigError(f"site {execution.site} {what}; next: make up SITE={execution.site}, or leave SITE out")
    theirs = {"ray_address": ray.address, "ray_token": ray.token_file} if ray else {}
    theirs |= {"registry": mlflow.address, "credentials": mlflow.credentials} if mlflow else {}
    return execution.model_copy(update={name: value for name, value in theirs.items() if name not in given})
