"""How a step stands: done, to do and why, or waiting for the steps before it.

The one idea: planning is looking up the record under the step's fingerprint. Why something is to do is how it differs
from its latest finished relative: the field, the input, the version.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipelines.engine import record as records
from pipelines.engine.digests import Digests
from pipelines.engine.fingerprint import digest
from pipelines.engine.record import Record
from pipelines.engine.step import Damaged, Planned, Step, check_file, resolve, source_digests


def plan(
    step: Step, before: Mapping[str, Planned], root: Path, digests: Digests, execution: Mapping[str, Any]
) -> Planned:
    """How `step` stands, given how the steps before it stand."""
    waiting = [name for name in {source.step: None for source in step.inputs.values()} if not before[name].done]
    if waiting:
        return Planned(step, None, None, None, (f"waits for {', '.join(waiting)}",))
    inputs = input_digests(step, before)
    fingerprint = digest(
        {"stage": step.stage.name, "version": step.stage.version, "config": step.config, "inputs": inputs}
    )
    folder = root / "steps" / f"{step.name}-{fingerprint[:12]}"
    try:
        record = records.read(folder)
    except records.RecordDamaged as damage:
        return Planned(step, fingerprint, folder, None, (str(damage),))
    if record is None:
        return Planned(step, fingerprint, folder, None, tuple(_reasons(step, inputs, root)))
    reasons = list(_damage(record, root, digests.of))
    if not reasons and step.stage.check:
        here = replace(record, sources=dict(step.sources))  # of the same content; their paths are those of today
        reasons = [reason for reason in [resolve(step.stage.check)(here, execution)] if reason]
    return Planned(step, fingerprint, folder, record, tuple(reasons))


def input_digests(step: Step, before: Mapping[str, Planned]) -> dict[str, str]:
    """The digest of each input of `step`: of earlier outputs as recorded, of source files as they are."""
    found = {}
    for name, source in step.inputs.items():
        planned = before[source.step]
        assert planned.record is not None and planned.folder is not None
        found[name] = planned.record.part(source.part, f"steps/{planned.folder.name}")
    return found | source_digests(step)


def retire(planned: Planned, reason: str) -> Planned:
    """The step as to be done again, because an output of it was found damaged while it was read."""
    return Planned(planned.step, planned.fingerprint, planned.folder, planned.record, (reason,))


def _damage(record: Record, root: Path, sha256: Callable[[Path], str]) -> list[str]:
    """What is wrong with a finished step's outputs, in words; the first three are enough to act on."""
    found = []
    for file in record.outputs:
        try:
            check_file(root, file, record.step, sha256)
        except Damaged as damage:
            found.append(str(damage))
    return found if len(found) <= 3 else [*found[:3], f"and {len(found) - 3} more outputs are damaged or missing"]


def _reasons(step: Step, inputs: Mapping[str, str], root: Path) -> list[str]:
    """Why a step without a record has to be done: how it differs from its latest finished relative."""
    latest = max(_relatives(step, root), key=lambda record: record.finished, default=None)
    if latest is None:
        return ["never done"]
    reasons = []
    if latest.version != step.stage.version:
        reasons.append(f"stage {step.stage.name} is now version {step.stage.version}, was {latest.version}")
    reasons += [f"{path}: {old!r} -> {new!r}" for path, old, new in _differences("", latest.config, dict(step.config))]
    reasons += [f"input {name} changed" for name, value in inputs.items() if latest.inputs.get(name) != value]
    return reasons or ["never done with this combination"]


def _relatives(step: Step, root: Path) -> Iterator[Record]:
    """The finished steps of the same name, whatever their fingerprint."""
    steps = root / "steps"
    for folder in steps.iterdir() if steps.is_dir() else ():
        if not re.fullmatch(f"{re.escape(step.name)}-[0-9a-f]{{12}}", folder.name):
            continue
        with contextlib.suppress(records.RecordDamaged):  # it only would have helped to say why
            if record := records.read(folder):
                yield record


def _differences(path: str, old: Any, new: Any) -> list[tuple[str, Any, Any]]:
    """The leaves at which two configurations differ, as (dotted path, old, new)."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = sorted({*old, *new})
        return [leaf for key in keys for leaf in _differences(f"{path}.{key}".lstrip("."), old.get(key), new.get(key))]
    return [] if digest(old) == digest(new) else [(path, old, new)]
