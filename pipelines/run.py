"""Run a flow: plan each step when its turn comes, do it if it is not done, and keep those who watch informed.

The one idea: there is no state beside the records. A run walks the steps in order; what is done is passed over, so
a run after a crash, a changed field or a new file is the same walk.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipelines import flow
from pipelines.config import ConfigError, Recipe, Source
from pipelines.engine import owning, using
from pipelines.engine import plan as planning
from pipelines.engine import step as engine
from pipelines.engine.digests import Digests
from pipelines.engine.lease import Owner
from pipelines.engine.record import RECORD, Record
from pipelines.engine.step import Attempt, Planned, Step, Watch
from pipelines.execution import Execution, cores, gpus
from pipelines.pretrained import Pretrained
from pipelines.recipe_checks import check_together


@dataclass(frozen=True)
class Outcome:
    """What a run did about one step."""

    planned: Planned
    record: Record
    done_now: bool


@dataclass
class Workspace:
    """A recipe in its work directory: the steps, and what is known of the files."""

    recipe: Recipe
    execution: Execution
    root: Path
    steps: list[Step]
    digests: Digests
    settings: dict[str, Any]


def open_workspace(recipe: Recipe, execution: Execution, fetch: bool) -> Workspace:
    """The flow of `recipe`, its sources resolved and hashed. With `fetch`, samples that are not here are fetched.

    SourceError where a source cannot be read, ConfigError where recipe and execution do not fit together.
    """
    from pipelines import pretrained, samples, sources

    check_together(recipe, execution)
    root = Path(execution.work)
    if fetch:
        root.mkdir(parents=True, exist_ok=True)
    digests = Digests(root / "digests.json")

    def files(source: Source | Pretrained) -> list[dict[str, Any]]:
        try:
            if isinstance(source, Pretrained):
                return pretrained.described(source, Path(execution.cache), digests.of, fetch)
            return sources.described(source, Path(execution.cache), digests.of, fetch)
        except samples.SampleNotFetched as error:
            # Looking fetches nothing: the step is to do, and its digest is that of no file.
            label = source.name if isinstance(source, Pretrained) else source.label
            return [{"path": "", "sha256": str(error), "label": label, "size": 0}]

    steps = flow.build(recipe, files)
    digests.save()  # a large corpus is hashed once, whatever becomes of the run
    return Workspace(recipe, execution, root, steps, digests, settings(execution))


def until(workspace: Workspace, last: str | None) -> Workspace:
    """The workspace with no steps after `last`. ConfigError names the steps there are."""
    if last is None:
        return workspace
    names = [step.name for step in workspace.steps]
    if last not in names:
        raise ConfigError(f"--until {last}: no such step; the steps are {', '.join(names)}")
    return replace(workspace, steps=workspace.steps[: names.index(last) + 1])


def settings(execution: Execution) -> dict[str, Any]:
    """The execution as plain data for steps, with `device` decided and `cpus`, the size of a local Ray."""
    chosen = execution.model_dump(mode="json")
    if execution.device == "auto":
        # As good as asking torch, which takes three seconds to import.
        chosen["device"] = "cuda" if gpus() else "cpu"
    if execution.ray_address == "local":
        chosen["workers"] = execution.workers or cores()
    return chosen | {"cpus": max(chosen["workers"] or 1, execution.ranks * execution.threads)}


def plan(workspace: Workspace) -> dict[str, Planned]:
    """How each step stands, by name, in order."""
    before: dict[str, Planned] = {}
    for step in workspace.steps:
        before[step.name] = planning.plan(step, before, workspace.root, workspace.digests, workspace.settings)
    workspace.digests.save()
    return before


def run(
    workspace: Workspace,
    watch: Watch,
    on_wait: Callable[[Owner], None],
    on_damage: Callable[[str], None],
    wait: bool = True,
) -> Iterator[Outcome]:
    """Do what is to do, yielding each step's outcome; again for steps that are walked again after damage was found.

    `on_damage` is told of an output that has to be made again. Without `wait`, Busy names whoever is at work on a step.
    From before anything is planned until the end the work directory is in use: nothing is cleaned away meanwhile.
    """
    with using.using(workspace.root, workspace.settings["lease_seconds"], on_wait) as use:
        yield from _walk(workspace, _in_use(use, watch), on_wait, on_damage, wait)


def _in_use(use: using.Use, watch: Watch) -> Watch:
    """`watch`, entered only if what was planned is certainly still there."""

    @contextlib.contextmanager
    def confirmed(attempt: Attempt) -> Iterator[None]:
        use.confirm(attempt.scratch)
        with watch(attempt):
            yield

    return confirmed


def _walk(
    workspace: Workspace, watch: Watch, on_wait: Callable[[Owner], None], on_damage: Callable[[str], None], wait: bool
) -> Iterator[Outcome]:
    before: dict[str, Planned] = {}
    damaged: dict[str, str] = {}
    rebuilt: set[str] = set()
    position = 0
    while position < len(workspace.steps):
        step = workspace.steps[position]
        planned = planning.plan(step, before, workspace.root, workspace.digests, workspace.settings)
        if step.name in damaged:
            planned = planning.retire(planned, damaged.pop(step.name))
        if planned.reasons and planned.folder and (planned.folder / RECORD).exists():
            on_damage(planned.reasons[0])
        outcome = None
        try:
            outcome = _done(planned, before, workspace, watch, on_wait, wait)
        except engine.Damaged as damage:
            if damage.step in rebuilt:
                raise  # what was made again is damaged again: a bad disk, or somebody writes there
            rebuilt.add(damage.step)
            # The stat signature looked right while planning and the bytes are not: go back and make them again.
            damaged[damage.step] = str(damage)
            position = [other.name for other in workspace.steps].index(damage.step)
        if outcome is not None:
            before[step.name] = outcome.planned
            position += 1
            workspace.digests.save()
            yield outcome


def _done(
    planned: Planned,
    before: Mapping[str, Planned],
    workspace: Workspace,
    watch: Watch,
    on_wait: Callable[[Owner], None],
    wait: bool,
) -> Outcome:
    if planned.done:
        assert planned.record is not None and planned.folder is not None
        owning.sweep(planned.folder, workspace.settings["lease_seconds"])
        return Outcome(planned, planned.record, done_now=False)
    record, done_now = engine.run(planned, before, workspace.root, workspace.settings, watch, on_wait, wait)
    for file in record.outputs if done_now else ():
        workspace.digests.learn(workspace.root / file.path, file.sha256)
    return Outcome(Planned(planned.step, planned.fingerprint, planned.folder, record, ()), record, done_now)


@contextlib.contextmanager
def unwatched(attempt: Attempt) -> Iterator[None]:
    """Watch nothing: for tests and for steps that are run alone."""
    yield
