"""The commands around retraining: retrain, history, promote, rollback, promotions.

The one idea: what a timer calls says in one line what came of it, and its exit code is 0 unless somebody has to look.
"""

from __future__ import annotations

import datetime
import json
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from pipelines.engine.record import Record
from pipelines.options import (
    AsJson,
    RecipeName,
    Settings,
    WorkDir,
    asked_execution,
    await_site,
    err,
    execution_of,
    out,
    pairs,
    recipe_of,
)
from pipelines.results import Given
from pipelines.run import Workspace
from pipelines.slots import Slot

Why = Annotated[str, typer.Option("--why", help="the reason, for the promotion log")]


def retrain(
    recipe: RecipeName = "default",
    work: WorkDir = "work",
    settings: Settings = None,
    force: Annotated[bool, typer.Option("--force", help="also if nothing is new, or was tried before")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="wait for whoever is retraining this model")] = False,
) -> None:
    """Retrain if a source has something new, compare with the champion, promote if better. For any scheduler."""
    from pipelines import alerts, store
    from pipelines import retrain as retraining
    from pipelines.engine.lease import Busy
    from pipelines.errors import StepInterrupted

    asked, given, clock = asked_execution(work, settings), Given(recipe, work, pairs(settings), "retrain"), _clock()
    model, trouble = Path(recipe).name, ""  # until the recipe is known
    try:
        made = recipe_of(recipe, settings)
        model = retraining.model_of(made)
        await_site(asked, _tell)
        execution = execution_of(work, settings)
        store.assert_readable(execution.registry)
        desk = retraining.Desk(made, execution, clock, lambda workspace: _done(workspace, given), _tell)
        slot = retraining.retrain(desk, force, wait, lambda owner: _tell(f"waiting: {owner} is at work"))
    except Busy as busy:
        _tell(f"{busy}: this call has nothing to do")
        return
    except Exception as error:
        trouble = "" if isinstance(error, StepInterrupted) else str(error) or type(error).__name__
        raise
    finally:  # of whatever kind the end was, and however early: somebody may have to hear of it
        for line in alerts.after(Path(asked.work), model, clock.now(), asked, trouble):
            _tell(line)
    for line in _ended(slot, given):
        _tell(line)


def history(work: WorkDir = "work", as_json: AsJson = False) -> None:
    """List the retraining slots: when, why, what was new, which version, promoted or not, how long."""
    from pipelines import slots

    found = slots.read_all(Path(execution_of(work, None).work))
    if as_json:
        sys.stdout.write(json.dumps({"slots": [slots.as_json(slot) for slot in found]}, indent=1) + "\n")
        return
    for line in [line for slot in found for line in _row(slot)] or ["no slot yet; next: make retrain"]:
        _tell(line)


def _row(slot: Slot) -> Iterator[str]:
    """A slot in one line, and its reason in another."""
    version = f"version {slot.version}" if slot.version else ""
    seconds = f"{slot.seconds:.0f} s" if slot.tries else ""
    opened, tries = slot.opened[:19].replace("T", " "), f"{len(slot.tries)} tries" if len(slot.tries) > 1 else ""
    cells = (f"{slot.model} slot {slot.number}", opened, slot.why, slot.outcome, version, seconds, tries)
    yield "  ".join(f"{cell:<{width}}" for cell, width in zip(cells, (20, 19, 24, 14, 11, 7, 0), strict=True)).rstrip()
    if slot.new:
        names = [Path(one["file"]).name for one in slot.new[:3]] + (["..."] if len(slot.new) > 3 else [])
        yield f"    new: {', '.join(names)}"
    if slot.reason:
        yield f"    {slot.reason.splitlines()[0]}"
    if slot.also:
        said = "champion" if slot.also["promoted"] else "candidate"
        yield f"    {slot.also['name']} version {slot.also['version']} is {said}: {slot.also['reason']}"


def promote(
    model: Annotated[str, typer.Argument(help="name@version or name@candidate")],
    why: Why,
    anyway: Annotated[bool, typer.Option("--anyway", help="although gates failed")] = False,
    settings: Settings = None,
) -> None:
    """Make a registered version champion, after its stored files were hashed; on record with your reason."""
    from pipelines import promotion

    version, before = promotion.promote(execution_of("work", settings).registry, model, why, anyway)
    _moved(version.name, version.version, before)


def rollback(
    model: Annotated[str, typer.Argument(help="registered name")], why: Why, settings: Settings = None
) -> None:
    """Make the champion before the present one champion again, by the promotion log."""
    from pipelines import promotion

    version, before = promotion.rollback(execution_of("work", settings).registry, model.partition("@")[0], why)
    _moved(version.name, version.version, before)


def promotions(
    model: Annotated[str, typer.Argument(help="registered name")], settings: Settings = None, as_json: AsJson = False
) -> None:
    """List who moved a model's champion, when, from which version to which, and why."""
    from pipelines import promotion_log

    log = promotion_log.read(execution_of("work", settings).registry, model.partition("@")[0])
    if as_json:
        sys.stdout.write(json.dumps({"promotions": [asdict(entry) for entry in log]}, indent=1) + "\n")
        return
    table = Table(box=None, pad_edge=False)
    for title in ("when (UTC)", "who", "by", "from", "to", "why"):
        table.add_column(title, overflow="fold")
    for entry in log:
        at = entry.at[:19].replace("T", " ")
        row = (at, entry.who, entry.by, str(entry.before or "none"), str(entry.to or "none"), entry.why)
        table.add_row(*map(escape, row))
    out.print(table if log else f"no promotion of {model} is on record")


def _clock() -> Any:
    from pipelines.retrain import Clock

    return Clock(lambda: datetime.datetime.now(datetime.UTC), time.sleep)


def _done(workspace: Workspace, given: Given) -> Mapping[str, Record]:
    from pipelines import narrate

    return {outcome.record.step: outcome.record for outcome in narrate.run(workspace, out, err, given)}


def _ended(slot: Slot, given: Given) -> Iterator[str]:
    """A slot's end in words, and what to do next."""
    if slot.version is None:
        return
    said = {"promoted": f"{slot.model}@champion is version {slot.version} now"}
    stays = (
        f"{slot.model}@champion stays version {slot.champion['version']}" if slot.champion else "there is no champion"
    )
    yield f"\nslot {slot.number}: {said.get(slot.outcome, f'{stays}; version {slot.version} is candidate')} ({slot.reason})"
    if slot.also:
        yield f"  {slot.also['name']} version {slot.also['version']}: {'champion' if slot.also['promoted'] else 'candidate'} ({slot.also['reason']})"
    yield "next: make history" + (f" WORK={given.work}" if given.work != "work" else "")


def _moved(name: str, version: int, before: int | None) -> None:
    was = f"was version {before}" if before else "there was none"
    _tell(f"{name}@champion is version {version} now ({was}), verified")
    _tell(f"next: make promotions MODEL={name}")


def _tell(line: str) -> None:
    out.print(line, markup=False)
