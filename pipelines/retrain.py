"""One retraining slot: is there something new, and if so, is what comes out of it better than the champion?

The one idea: a slot freezes what it works on (recipe, champions by digest, source files by digest) when it opens, and
is done by the same restartable steps as any run. So a slot that was killed is continued by the next call as if nothing
had happened, even if a file arrived or a champion changed meanwhile, and nobody works on two slots of a model at once.

The clock and the sleep are the caller's: nothing here asks for the time by itself.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from model import durable
from pipelines import champions, frozen, slots
from pipelines.config import ConfigError, Recipe
from pipelines.engine import owning
from pipelines.engine.digests import Digests
from pipelines.engine.lease import Owner
from pipelines.engine.record import Record
from pipelines.errors import GivenUp, StepInterrupted
from pipelines.execution import Execution
from pipelines.frozen import Frozen
from pipelines.recipe_checks import check_together
from pipelines.run import Workspace, settings
from pipelines.slots import Slot, Try
from pipelines.sources import SourceError


@dataclass(frozen=True)
class Clock:
    """The present moment in UTC, and how to let time pass."""

    now: Callable[[], datetime.datetime]
    sleep: Callable[[float], None]

    def text(self) -> str:
        """Now, ISO 8601."""
        return self.now().isoformat(timespec="milliseconds")


def model_of(recipe: Recipe) -> str:
    """The registered name of what the recipe is for: the task's model, or the base model where it has no task."""
    return frozen.names(recipe)["task" if recipe.task else "base"]


@dataclass(frozen=True)
class Desk:
    """What a slot is worked on with: the recipe as it is now, where, by whose clock, and who does the steps."""

    recipe: Recipe
    execution: Execution
    clock: Clock
    run: Callable[[Workspace], Mapping[str, Record]]  # does the steps and returns their records by name
    tell: Callable[[str], None]  # one line for whoever watches

    @property
    def root(self) -> Path:
        """The work directory."""
        return Path(self.execution.work)

    @property
    def model(self) -> str:
        """The registered name of what the recipe is for."""
        return model_of(self.recipe)

    @property
    def folder(self) -> Path:
        """Where the model's slots are."""
        return slots.folder(self.root, self.model)


def retrain(
    desk: Desk, force: bool = False, wait: bool = False, on_wait: Callable[[Owner], None] = lambda owner: None
) -> Slot:
    """Open the model's next slot, or go on with the one that is open, to its end. The slot as it ended.

    Busy names who is at work on the model (unless `wait`); StepInterrupted if it was stopped and the next call goes on;
    GivenUp, SourceError, ConfigError, ConnectionError and the like for a slot that failed: it is on record first.
    """
    check_together(desk.recipe, desk.execution)
    desk.root.mkdir(parents=True, exist_ok=True)
    with owning.owning(desk.folder, desk.execution.lease_seconds, wait, on_wait) as attempt:
        past = slots.of_model(desk.root, desk.model)
        slot = _continued(desk, past, attempt) or _opened(desk, past, force, attempt)
        if slot.outcome != "open":
            return slot
        return _worked(desk, slot, attempt)


def _continued(desk: Desk, past: list[Slot], attempt: Path) -> Slot | None:
    """The slot that an earlier call left open, if it can be gone on with; one that cannot is closed."""
    if not past or past[-1].outcome != "open":
        return None
    slot, kept = _told_killed(past[-1]), frozen.read(desk.folder)
    digests = Digests(desk.root / "digests.json")
    why_not = (
        "what it worked on is lost"
        if kept is None or kept.number != slot.number
        else frozen.outdated(kept, desk.recipe, digests)
    )
    digests.save()
    if why_not:
        desk.tell(f"slot {slot.number} is superseded: {why_not}")
        _close(desk, replace(slot, outcome="superseded", reason=why_not), attempt)
        return None
    if slot.failures >= desk.execution.retrain_attempts:
        _give_up(desk, slot, slot.tries[-1].reason or "its process was killed", attempt)
    desk.tell(f"going on with slot {slot.number} of {slot.opened[:19]} ({slot.why})")
    return slot


def _told_killed(slot: Slot) -> Slot:
    """The slot of an earlier call, which has ended: a try that did not end was killed."""
    return replace(slot, tries=tuple(replace(one, how="killed") if one.how == "running" else one for one in slot.tries))


def _opened(desk: Desk, past: list[Slot], force: bool, attempt: Path) -> Slot:
    """A new slot: open, or closed at once where there is nothing to do."""
    number = past[-1].number + 1 if past else 1
    slot = Slot(desk.model, number, desk.recipe.name, desk.clock.text(), "")
    try:
        seen = frozen.look(desk.recipe, desk.execution, number)
        _pull(desk, seen)  # what is new is relative to what the champion's package says
        seen = frozen.pin(seen)
        slot = _judged(replace(slot, **frozen.described(seen)), past, force)
    except Exception as error:
        _close(desk, replace(slot, why="could not be opened", outcome="failed", reason=str(error)), attempt)
        raise
    if slot.outcome == "open":
        frozen.write(desk.folder, seen, attempt)
        slots.write(desk.root, slot, attempt)
        desk.tell(f"slot {number}: {slot.why}")
        return slot
    _close(desk, slot, attempt)
    desk.tell(f"slot {number}: {slot.reason}")
    if slot.outcome == "blocked":
        raise GivenUp(f"slot {number}: {slot.reason}\nnext: mend the source or the recipe, or retrain with --force")
    return slot


def _pull(desk: Desk, seen: Frozen) -> None:
    for champion in seen.champions.values():
        champions.ensure_pulled(desk.execution.registry, champion, desk.execution.registry_patience)


def _judged(slot: Slot, past: list[Slot], force: bool) -> Slot:
    """Whether the slot has anything to do: new or gone files that no earlier slot has tried with this recipe."""
    if force:
        return replace(slot, why=f"forced, {slot.why}")
    if slot.champion is None:
        return slot
    if not slot.new and not slot.gone:
        return replace(
            slot, outcome="nothing new", reason=f"nothing new since {slot.champion['name']}@{slot.champion['version']}"
        )
    same = [old for old in past if old.sources == slot.sources and old.outcome in ("promoted", "kept", "failed")]
    tried = max(same, key=lambda old: (old.outcome != "failed", old.number), default=None)  # one that went to its end
    if tried is None:
        return slot
    what = f"the same sources were tried in slot {tried.number}"
    if tried.outcome == "failed":
        return replace(slot, outcome="blocked", reason=f"{what}, which was given up: {tried.reason}")
    return replace(
        slot, outcome="nothing new", reason=f"nothing new: {what} ({tried.outcome}, version {tried.version})"
    )


def _worked(desk: Desk, slot: Slot, attempt: Path) -> Slot:
    """Work on an open slot until it is done, given up or interrupted."""
    kept = frozen.read(desk.folder)
    assert kept is not None
    workspace = _workspace(desk, kept, slot)
    while True:
        _pause(desk, slot)
        slot = replace(slot, tries=(*slot.tries, Try(desk.clock.text())), retry_at=None)
        slots.write(desk.root, slot, attempt)  # before the work: who is killed in it has tried
        try:
            _pull(desk, kept)
            records = desk.run(workspace)
        except StepInterrupted as stop:
            slots.write(desk.root, _ended(desk, slot, "interrupted", str(stop)), attempt)
            raise
        except Exception as error:
            slot = _failed(desk, _ended(desk, slot, "failed", str(error)), error, attempt)
        else:
            slot = frozen.outcome(_ended(desk, slot, "done", ""), kept, records)
            return _close(desk, slot, attempt)


def _failed(desk: Desk, slot: Slot, error: Exception, attempt: Path) -> Slot:
    """The slot after a try that failed, to be tried again; or given up, and the error raised."""
    if _is_of_the_data(error):
        _close(desk, replace(slot, outcome="failed", reason=str(error)), attempt)
        raise error
    if slot.failures >= desk.execution.retrain_attempts:
        _give_up(desk, slot, str(error), attempt)
    pause = desk.execution.retrain_backoff * 2 ** (slot.failures - 1)
    again = desk.clock.now() + datetime.timedelta(seconds=pause)
    slot = replace(slot, retry_at=again.isoformat(timespec="milliseconds"))
    slots.write(desk.root, slot, attempt)
    desk.tell(f"slot {slot.number} failed {slot.failures} of at most {desk.execution.retrain_attempts} times: {error}")
    return slot


def _give_up(desk: Desk, slot: Slot, reason: str, attempt: Path) -> None:
    told = f"given up after {slot.failures} failures; the last one: {reason}"
    _close(desk, replace(slot, outcome="failed", reason=told), attempt)
    raise GivenUp(
        f"slot {slot.number} of {slot.model} was {told}\nnext: mend the cause and retrain with --force, or wait for new sources"
    )


def _is_of_the_data(error: BaseException | None) -> bool:
    """Whether trying again would meet the same bad data or configuration."""
    while error is not None:
        if isinstance(error, SourceError | ConfigError):
            return True
        error = error.__cause__
    return False


def _pause(desk: Desk, slot: Slot) -> None:
    """Wait until the slot may be tried again. StepInterrupted if that is cut short."""
    if slot.retry_at is None:
        return
    seconds = (datetime.datetime.fromisoformat(slot.retry_at) - desk.clock.now()).total_seconds()
    if seconds > 0:
        desk.tell(f"slot {slot.number} is tried again in {seconds:.0f} s")
        try:
            desk.clock.sleep(seconds)
        except (KeyboardInterrupt, SystemExit) as stop:
            raise StepInterrupted(
                f"stopped by a signal; slot {slot.number} stays open, the next call goes on"
            ) from stop


def _ended(desk: Desk, slot: Slot, how: Any, reason: str) -> Slot:
    """The slot with its last try ended."""
    tried = replace(slot.tries[-1], how=how, ended=desk.clock.text(), reason=reason)
    worked = datetime.datetime.fromisoformat(str(tried.ended)) - datetime.datetime.fromisoformat(tried.started)
    return replace(slot, tries=(*slot.tries[:-1], tried), seconds=round(slot.seconds + worked.total_seconds(), 3))


def _close(desk: Desk, slot: Slot, attempt: Path) -> Slot:
    """Write the slot as it ended; what it had frozen goes, and the champions that it used."""
    slot = replace(slot, closed=desk.clock.text(), retry_at=None)
    slots.write(desk.root, slot, attempt)
    durable.remove(desk.folder / frozen.FILE)
    return slot


def _workspace(desk: Desk, kept: Frozen, slot: Slot) -> Workspace:
    """The frozen slot's steps in the work directory. The slot's number is for tags: it enters no fingerprint."""
    steps = frozen.steps(kept)
    chosen = settings(desk.execution) | {"slot": slot.number}
    return Workspace(kept.recipe, desk.execution, desk.root, steps, Digests(desk.root / "digests.json"), chosen)
