"""Telling a person: the alert command is called when a slot failed, and when there has been no new version for too long.

The one idea: `after` looks at the slots and at what was told before, and is called wherever a slot ends. The command gets
the event as JSON on its standard input (for `mail`, the body) and the sentence in $GPTLINE_ALERT. What is the matter day
after day is told at once, then once a day for a week, then once a week. A command that fails is said, and changes nothing.
"""

from __future__ import annotations

import datetime
import json
import os
import re
import shlex
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from model import durable
from pipelines import slots
from pipelines.engine import sealed
from pipelines.engine.fingerprint import digest
from pipelines.execution import Execution
from pipelines.slots import Slot, SlotDamaged

_SECONDS = 60.0  # for which the command may run
_NO_SLOT = "no slot "  # how the matter begins of what went wrong where no slot has it on record
_DAILY = 7  # times that one matter is told once a day; then once a week
_SECRET = re.compile(r"(?<=://)[^/\s@]+@")  # a name and password in an address


@dataclass(frozen=True)
class Event:
    """Something that a person has to hear of. `matter` is the same as long as it is the same trouble."""

    kind: str
    matter: str
    model: str
    text: str
    slot: int | None
    when: str
    work: str
    host: str


def after(
    work: Path, model: str, now: datetime.datetime, execution: Execution, trouble: str | None = None
) -> list[str]:
    """Call the alert command for what is the matter with `model`, if it is due; says what was told, and what failed.

    `trouble` is what the retraining that ended now says of itself, "" if it went well; None: nobody retrained.
    """
    try:
        return _after(work, model, now, execution, trouble)
    except OSError as error:  # whatever made the slot end is told by whoever calls this, and comes first
        return [f"alerts of {model} cannot be looked after: {error}"]


def _after(work: Path, model: str, now: datetime.datetime, execution: Execution, trouble: str | None) -> list[str]:
    command, told, said = execution.alert_command, _told(work, model), []
    try:
        history = slots.of_model(work, model)
    except SlotDamaged as error:
        history, trouble = [], trouble or str(error)
        said.append(f"alerts of {model} cannot be looked after: {error}")
    events = matters(history, work, now, execution.stale_after_days)
    if trouble and not any(
        slot.reason and slot.reason in trouble for slot in history[-1:] if slot.outcome in slots.BAD
    ):
        text = f"retraining failed outside of a slot: {trouble}"
        events.append(_event("failed", model, None, f"{_NO_SLOT}{digest(trouble)}", text, work, now))
    kept = {event.matter: told[event.matter] for event in events if event.matter in told}
    if trouble is None:  # whether that trouble is over is not known
        kept |= {matter: times for matter, times in told.items() if matter.startswith(_NO_SLOT)}
    for event in events:
        if not command or not _is_due(kept.get(event.matter, []), now):
            continue
        failure = call(command, event)
        said.append(failure or f"alert: {event.text}")
        if failure is None:
            kept[event.matter] = [*kept.get(event.matter, []), event.when][-_DAILY - 1 :]
    if kept != told:
        _file(work, model).parent.mkdir(parents=True, exist_ok=True)
        durable.write_bytes(_file(work, model), sealed.seal({"told": kept}))
    return said


def matters(history: Sequence[Slot], work: Path, now: datetime.datetime, stale_after_days: float) -> list[Event]:
    """What a person has to hear of, given the slots of one model, oldest first."""
    closed = [slot for slot in history if slot.outcome != "open"]
    found = []
    if closed and closed[-1].outcome in slots.BAD:
        slot = closed[-1]
        # The same sources and recipe that failed before are the same trouble, whichever night's slot says so; a slot that
        # could not be opened knows no sources, and what it said stands for them.
        matter = f"failed {slot.sources or digest(slot.reason)}"
        text = f"slot {slot.number} {slot.outcome}: {slot.reason}"
        found.append(_event("failed", slot.model, slot.number, matter, text, work, now))
    made = [slot for slot in closed if slot.outcome in slots.WORKED]
    since = (made[-1].closed or made[-1].opened) if made else (history[0].opened if history else None)
    if since and stale_after_days > 0 and (days := _days(since, now)) >= stale_after_days:
        last = f"the last slot, {history[-1].number}, is {history[-1].outcome!r}: {history[-1].reason or 'no reason given'}"
        text = f"no new version for {days:.0f} days ({'since ' + since if made else 'there was never one'}); {last}"
        slot = history[-1]
        found.append(_event("stale", slot.model, slot.number, f"stale since {since}", text, work, now))
    return found


def _event(
    kind: str, model: str, slot: int | None, matter: str, text: str, work: Path, now: datetime.datetime
) -> Event:
    text = _SECRET.sub("***@", f"{model}: {text}")
    when = now.astimezone(datetime.UTC).isoformat(timespec="seconds")
    return Event(kind, matter, model, text, slot, when, str(work), socket.gethostname())


def _days(since: str, now: datetime.datetime) -> float:
    return (now - datetime.datetime.fromisoformat(since)).total_seconds() / 86_400


def _is_due(times: Sequence[str], now: datetime.datetime) -> bool:
    # An hour less than a day or a week: timers are not exact to the second.
    pause = 0.0 if not times else (1.0 if len(times) <= _DAILY else 7.0) - 1 / 24
    return not times or _days(times[-1], now) >= pause


def call(command: str, event: Event) -> str | None:
    """Run the alert command for an event; what to say if it failed, else None. Never raises for what the command does."""
    given = json.dumps(asdict(event), indent=1).encode() + b"\n"
    environment = os.environ | {"GPTLINE_ALERT": event.text}
    try:
        done = subprocess.run(
            shlex.split(command), input=given, capture_output=True, timeout=_SECONDS, check=False, env=environment
        )
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        return f"the alert command failed ({error}); untold: {event.text}"
    if done.returncode:
        words = (done.stderr or done.stdout).decode(errors="replace").strip()[-300:]
        return f"the alert command ended with {done.returncode} ({words or 'it said nothing'}); untold: {event.text}"
    return None


def _file(work: Path, model: str) -> Path:
    return slots.folder(work, model) / "alerts.json"


def _told(work: Path, model: str) -> dict[str, list[str]]:
    """The last times at which each matter was told."""
    try:
        return dict(sealed.unseal(_file(work, model))["told"])
    except (FileNotFoundError, sealed.Broken, KeyError):
        return {}  # at worst somebody hears of it twice
