"""Slots: one durable record for each time that retraining was asked for, and what became of it.

The one idea: a slot is one sealed JSON file that only its owner writes, from a draft in the owner's attempt folder. So
whoever was overtaken can write no slot, and whoever reads one reads it whole. Times are UTC and come from whoever
calls: nothing here looks at a clock.

    WORK/retrain/<model>/slots/000007.json      the slots, in order
    WORK/retrain/<model>/frozen.json            what the open slot works on (see retrain.py); none is open without it
    WORK/retrain/<model>/champions/<digest>/    champions that slots started from or compared with, pulled and verified
    WORK/retrain/<model>/lease/, attempts/      who is at work (see engine/lease.py)
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from model import durable
from pipelines.engine import sealed

SCHEMA = 1

# open           in work, interrupted, or waiting for its next try
# nothing new    the sources are those of the champion, or were tried before: no work was done
# promoted       the challenger is champion
# kept           the champion stays; the challenger is `candidate`, with the reason
# champion moved the challenger was compared with a champion that is one no longer: nothing was promoted
# failed         bad data, or failed too often: given up
# blocked        the sources are those of a failed slot: nothing was tried
# superseded     recipe or sources changed before it was done: another slot took its place
Outcome = Literal["open", "nothing new", "promoted", "kept", "champion moved", "failed", "blocked", "superseded"]
BAD: tuple[Outcome, ...] = ("failed", "blocked")  # what an operator has to hear of
WORKED: tuple[Outcome, ...] = ("promoted", "kept", "champion moved")  # slots that made a version


class SlotDamaged(ValueError):
    """A slot's file is not what was written. The message names it and says what to do."""


@dataclass(frozen=True)
class Try:
    """One time that a slot was worked on. The next call says "killed" of one that a killed process left "running"."""

    started: str
    how: Literal["running", "killed", "failed", "interrupted", "done"] = "running"
    ended: str | None = None
    reason: str = ""


@dataclass(frozen=True)
class Slot:
    """One slot. `new` are the files not seen before: {"file", "sha256", "group"}; `gone` the digests no longer there.

    `champion` and `base` are {"name", "version", "digest"} of the champions frozen when the slot opened, `key` the run
    key, `sources` the digest of recipe and sources alone. `version` is what was registered; `also` the base model's
    version and outcome where the slot makes one too; `figures` what was measured. Times are UTC, ISO 8601.
    """

    model: str
    number: int
    recipe: str
    opened: str
    why: str
    outcome: Outcome = "open"
    reason: str = ""
    new: tuple[dict[str, str], ...] = ()
    gone: tuple[str, ...] = ()
    champion: dict[str, Any] | None = None
    base: dict[str, Any] | None = None
    key: str = ""
    sources: str = ""
    tries: tuple[Try, ...] = ()
    retry_at: str | None = None
    version: int | None = None
    also: dict[str, Any] = dataclasses.field(default_factory=dict)
    figures: dict[str, Any] = dataclasses.field(default_factory=dict)
    closed: str | None = None
    seconds: float = 0.0
    schema: int = SCHEMA

    @property
    def promoted(self) -> bool:
        """Whether this slot's version became champion."""
        return self.outcome == "promoted"

    @property
    def failures(self) -> int:
        """Tries that failed, or whose process was killed; a clean interruption (exit code 75) is none."""
        return sum(tried.how in ("failed", "killed") for tried in self.tries)


def folder(work: Path, model: str) -> Path:
    """Where the slots of the registered model `model`, and what belongs to them, lie."""
    return work / "retrain" / model


def read(path: Path) -> Slot:
    """The slot in a file. SlotDamaged."""
    try:
        content = sealed.unseal(path)
    except sealed.Broken as error:
        raise SlotDamaged(
            f"{error}\nnext: remove this file (what its slot made is in the steps and in the registry) and retrain again"
        ) from error
    if content.get("schema") != SCHEMA:
        raise SlotDamaged(
            f"{path} has schema {content.get('schema')}, this code reads {SCHEMA}: use the code that wrote it"
        )
    tries = tuple(Try(**tried) for tried in content["tries"])
    return Slot(**{**content, "tries": tries, "new": tuple(content["new"]), "gone": tuple(content["gone"])})


def of_model(work: Path, model: str) -> list[Slot]:
    """The slots of one model, oldest first. SlotDamaged."""
    there = folder(work, model) / "slots"
    return [read(path) for path in sorted(there.glob("*.json")) if re.fullmatch(r"\d{6,}", path.stem)]


def read_all(work: Path) -> list[Slot]:
    """The slots of all models below this work directory, oldest first. SlotDamaged."""
    models = [path.parent.name for path in (work / "retrain").glob("*/slots")]
    found = [slot for model in models for slot in of_model(work, model)]
    return sorted(found, key=lambda slot: (slot.opened, slot.model, slot.number))


def write(work: Path, slot: Slot, attempt: Path) -> None:
    """Write the slot's file, for the owner of `attempt`. FileNotFoundError or NotADirectoryError if that was taken over."""
    target = folder(work, slot.model) / "slots" / f"{slot.number:06d}.json"
    target.parent.mkdir(exist_ok=True)
    draft = attempt / target.name
    durable.write_bytes(draft, sealed.seal(as_json(slot)))
    durable.rename(draft, target)


def as_json(slot: Slot) -> dict[str, Any]:
    """The slot as plain data."""
    plain = asdict(slot)
    return plain | {
        name: [dict(one) if isinstance(one, dict) else one for one in plain[name]] for name in ("new", "gone", "tries")
    }
