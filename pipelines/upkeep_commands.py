"""Commands that keep a line going for years: `gc`, `schedule`, `unschedule`, `catch-up`, `alerts`.

The one idea: what changes something for good says first what it would do; doing it is asked for.
"""

from __future__ import annotations

import datetime
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from pipelines.config import ConfigError
from pipelines.options import (
    AsJson,
    RecipeName,
    Settings,
    WorkDir,
    asked_execution,
    configured,
    err,
    execution_of,
    listed,
    out,
    pairs,
    recipe_of,
)
from pipelines.retention import Retention

KeepDays = Annotated[
    float | None,
    typer.Option(min=0, help="keep what was finished within so many days; execution.keep_days if not given"),
]
Keep = Annotated[
    int | None,
    typer.Option(
        min=1, help="keep at least so many finished records of each step; execution.keep_records if not given"
    ),
]


def gc(
    work: WorkDir = "work",
    settings: Settings = None,
    keep_days: KeepDays = None,
    keep: Keep = None,
    yes: Annotated[bool, typer.Option("--yes", help="remove it; without, only say what would go")] = False,
    registry: Annotated[
        bool, typer.Option("--registry", help="the weights of old versions without alias in the MLflow store, too")
    ] = False,
    if_idle: Annotated[
        bool, typer.Option("--if-idle", help="end well, having removed nothing, where somebody is at work: for timers")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Say what no record within the retention and no alias needs any more, and with --yes remove it."""
    from pipelines import cleaning
    from pipelines.aliased import aliased
    from pipelines.engine.lease import Busy

    execution = execution_of(work, settings)
    root, now = Path(execution.work), datetime.datetime.now(datetime.UTC)
    retention = Retention(
        execution.keep_days if keep_days is None else keep_days, execution.keep_records if keep is None else keep
    )
    retired = listed(execution.retired_registries)
    if yes:
        try:
            found = cleaning.collect(
                root, retention, now, lambda: aliased(root, execution.registry, retired), execution.lease_seconds,
                lambda owner: err.print(f"waiting: {owner} is cleaning {root}", markup=False),
            )  # fmt: skip
        except Busy as busy:
            if not if_idle:
                raise
            out.print(str(busy), markup=False)
            return
    else:
        found = cleaning.look(root, retention, now, aliased(root, execution.registry, retired))
    if as_json:
        sys.stdout.write(json.dumps(cleaning.as_json(found, yes, root), indent=1) + "\n")
        return
    for line in cleaning.lines(found, yes, retention):
        out.print(line, markup=False)
    if registry:
        _clean_registry(execution.registry, retention, now, yes)
    if not yes and (found.doomed or registry):
        out.print("next: the same with YES=1 (gptline gc --yes) removes it", markup=False)


def _clean_registry(location: str, retention: Retention, now: datetime.datetime, yes: bool) -> None:
    from pipelines import registry_cleaning, store_check

    if yes:
        found = registry_cleaning.clean(location, retention, now)
    else:
        found = registry_cleaning.look(store_check.local_database(location), retention, now)
    for line in registry_cleaning.lines(found, yes):
        out.print(line, markup=False)


Units = Annotated[
    str | None, typer.Option(help="only write systemd's units into this folder, and check them; nothing is started")
]
With = Annotated[str, typer.Option("--with", help="systemd, cron, or auto: systemd where it runs")]


def schedule(
    every: Annotated[
        str, typer.Argument(help='when: "daily 03:00", "hourly", "weekly mon 03:00", or cron\'s five fields')
    ],
    recipe: RecipeName = "default",
    work: WorkDir = "work",
    settings: Settings = None,
    kind: With = "auto",
    units: Units = None,
    clean: Annotated[bool, typer.Option("--gc/--no-gc", help="clean the work directory after each slot")] = True,
) -> None:
    """Retrain at these times: a systemd timer, or lines in the crontab. Again with other times replaces it."""
    from pipelines import scheduling

    wanted = scheduling.Wanted(recipe, configured(recipe, work, settings)[1], pairs(settings))
    job = scheduling.job(wanted, every, datetime.datetime.now().astimezone(), clean)
    for line in scheduling.install(wanted, job, _kind(kind), Path(units) if units else None):
        out.print(line, markup=False)
    if clean:
        execution = wanted.execution
        out.print(
            f"after each slot gc removes what is older than {execution.keep_days:g} days and not needed (--no-gc: never)",
            markup=False,
        )


def unschedule(
    recipe: RecipeName = "default",
    work: WorkDir = "work",
    settings: Settings = None,
    kind: With = "auto",
    units: Units = None,
) -> None:
    """Remove the timer or the crontab's lines of this recipe in this work directory, and nothing else."""
    from pipelines import scheduling

    wanted = scheduling.Wanted(recipe, execution_of(work, settings))
    removed = list(scheduling.remove(wanted, _kind(kind), Path(units) if units else None))
    for line in removed or [f"nothing is scheduled as {wanted.name} (recipe {recipe}, WORK {wanted.execution.work})"]:
        out.print(line, markup=False)


def _kind(kind: str) -> Literal["auto", "systemd", "cron"]:
    if kind not in ("auto", "systemd", "cron"):
        raise ConfigError(f"--with {kind}: use systemd, cron or auto")
    return kind  # type: ignore[return-value]


def catch_up(
    every: Annotated[str, typer.Argument(help="the times of the schedule")],
    since: Annotated[str, typer.Option(help="when it was scheduled; ISO 8601")],
    recipe: RecipeName = "default",
    work: WorkDir = "work",
    settings: Settings = None,
) -> None:
    """After a boot: retrain once if a scheduled time was missed, however many were. For cron's @reboot line."""
    from pipelines import scheduling, slots

    made, asked = recipe_of(recipe, settings), asked_execution(work, settings)  # `retrain` waits for the site
    opened = [
        datetime.datetime.fromisoformat(slot.opened)
        for slot in slots.read_all(Path(asked.work))
        if slot.recipe == made.name
    ]
    now = datetime.datetime.now().astimezone()
    due = scheduling.missed(every, datetime.datetime.fromisoformat(since), opened, now)
    if due is None:
        out.print("nothing was missed", markup=False)
        return
    out.print(f"missed: {due.isoformat(timespec='minutes')}; retraining now", markup=False)
    sys.stdout.flush()
    given = [part for pair in pairs(settings) for part in ("--set", pair)]
    command = [sys.executable, "-m", "pipelines", "retrain", "--recipe", recipe, "--work", work, *given]
    os.execv(sys.executable, command)


def alerts(work: WorkDir = "work", settings: Settings = None) -> None:
    """Look for failed slots and stale models now, and call the alert command; for a watch that does not depend on retrain."""
    from pipelines import alerts as alerting

    execution = asked_execution(work, settings)
    root, now = Path(execution.work), datetime.datetime.now(datetime.UTC)
    models = sorted(path.parent.name for path in (root / "retrain").glob("*/slots"))
    said = [line for model in models for line in alerting.after(root, model, now, execution)]
    for line in said or [f"nothing to tell now ({len(models)} models)"]:
        out.print(line, markup=False)
