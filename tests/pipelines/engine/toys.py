"""Toy stages: small enough to kill a thousand times, real enough to show the mechanism. No Ray, no models."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from model import durable
from pipelines.engine import lease as leases
from pipelines.engine import plan as planning
from pipelines.engine import step as steps
from pipelines.engine.digests import Digests
from pipelines.engine.step import Attempt, Input, Planned, Stage, Step
from pipelines.engine.units import unit_key

EXECUTION: dict[str, Any] = {"lease_seconds": 2.0}


def letters(attempt: Attempt) -> dict[str, Any]:
    """Write one unit for each letter of the configured text, and a manifest of them."""
    units = []
    for letter in attempt.config["text"]:
        key = unit_key("letters", 1, {}, letter)
        unit = attempt.units.find("toy", key)
        if unit is None:
            draft = attempt.scratch / f"{letter}.draft"
            durable.write_bytes(draft, letter.encode() * 1000)
            # From outside where a process has to be met at work: no setting, so the step stays the same one.
            time.sleep(float(os.environ.get("TOY_SECONDS", attempt.config.get("seconds", 0))))
            unit = attempt.units.publish("toy", key, {"txt": draft}, {"letter": letter})
        attempt.add_outputs(list(unit.files.values()))
        units.append(unit.files["txt"].path)
    durable.write_json(attempt.outputs / "manifest.json", units)
    durable.write_json(attempt.outputs / "other.json", {"unread": attempt.config.get("other")})
    return {"letters": len(units)}


def join(attempt: Attempt) -> dict[str, Any]:
    """Join the units that the manifest names."""
    paths = durable.read_json(attempt.inputs["letters"].path("manifest.json"))
    text = "".join((attempt.root / path).read_text()[0] for path in paths)
    durable.write_bytes(attempt.outputs / "joined.txt", text.encode())
    return {"length": len(text)}


def overtaken(attempt: Attempt) -> dict[str, Any]:
    """Be taken for dead, and overtaken, just before the commit."""
    durable.write_bytes(attempt.outputs / "late.txt", b"late")
    leases._bury(attempt.scratch)
    return {}


def litter(attempt: Attempt) -> dict[str, Any]:
    """Leave the draft of a write that was killed, as a task that ran twice does."""
    durable.write_bytes(attempt.outputs / "whole.txt", b"whole")
    durable.temporary(attempt.outputs / "half.txt").write_bytes(b"ha")
    return {}


LETTERS = Stage("letters", 1, "tests.pipelines.engine.toys:letters")
JOIN = Stage("join", 1, "tests.pipelines.engine.toys:join")


def flow(text: str = "abc", **config: Any) -> list[Step]:
    """letters -> join, where join reads only the manifest."""
    return [
        Step("letters", LETTERS, {"text": text, **config}),
        Step("join", JOIN, {}, {"letters": Input("letters", "manifest.json")}),
    ]


@contextlib.contextmanager
def unwatched(attempt: Attempt) -> Iterator[None]:
    """Nobody looks."""
    yield


def plan(root: Path, flow: list[Step]) -> dict[str, Planned]:
    """How the steps stand."""
    before: dict[str, Planned] = {}
    for step in flow:
        before[step.name] = planning.plan(step, before, root, Digests(root / "digests.json"), EXECUTION)
    return before


def run(root: Path, flow: list[Step], execution: Mapping[str, Any] = EXECUTION) -> list[str]:
    """Do what is to do; returns the names of the steps that were done now."""
    before: dict[str, Planned] = {}
    done_now = []
    for step in flow:
        planned = planning.plan(step, before, root, Digests(root / "digests.json"), execution)
        if not planned.done:
            record, done_here = steps.run(planned, before, root, execution, unwatched)
            planned = Planned(step, planned.fingerprint, planned.folder, record, ())
            done_now += [step.name] if done_here else []
        before[step.name] = planned
    return done_now


def digests(root: Path) -> dict[str, str]:
    """SHA-256 by path of everything that a run leaves: units and outputs."""
    files = [*(root / "units").rglob("*"), *(root / "steps").glob("*/outputs/**/*")]
    return {str(path.relative_to(root)): durable.sha256(path) for path in files if path.is_file()}
