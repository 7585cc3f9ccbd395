"""Steps: a stage with its configuration and inputs, run under a lease.

The one idea: a step's fingerprint is the SHA-256 of (stage name, stage version, configuration, digests of the
inputs that are really there), and `plan.py` looks for the record under it. Running a step is: own it, work in
`attempts/<token>/`, rename the outputs into place, hard-link the record. Either of the last two fails for whoever
was overtaken.

`WORK/steps/<step>-<fingerprint[:12]>/` holds `record.json`, `outputs/`, `checkpoints/`, `lease/`, `attempts/`.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from model import durable
from pipelines.engine import lease as leases
from pipelines.engine import owning
from pipelines.engine import record as records
from pipelines.engine.fingerprint import canonical, digest
from pipelines.engine.record import Record
from pipelines.engine.units import UnitFile, UnitStore, is_unreadable


@dataclass(frozen=True)
class Stage:
    """A kind of work. `version` is raised by hand when the meaning of its code changes.

    `run` is the dotted name "package.module:function" of a function from Attempt to metrics. `check`, if given,
    names a function (record, execution) -> reason or None that asks a truth outside the work directory
    whether the record still holds; it must be fast and import nothing heavy.
    """

    name: str
    version: int
    run: str
    check: str = ""


@dataclass(frozen=True)
class Input:
    """The outputs of an earlier step that a step reads: those whose name begins with `part`."""

    step: str
    part: str = ""


@dataclass(frozen=True)
class Step:
    """One restartable unit of a flow. `sources` are resolved files: their digests count, their paths do not."""

    name: str
    stage: Stage
    config: Mapping[str, Any]
    inputs: Mapping[str, Input] = field(default_factory=dict)
    sources: Mapping[str, list[dict[str, Any]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Planned:
    """A step as it stands: done (`record`), to do (`reasons`), or waiting for steps before it (no fingerprint)."""

    step: Step
    fingerprint: str | None
    folder: Path | None
    record: Record | None
    reasons: tuple[str, ...]

    @property
    def done(self) -> bool:
        """Whether nothing has to be done."""
        return self.record is not None and not self.reasons


@dataclass(frozen=True)
class StepInput:
    """Outputs of an earlier step, verified before the work begins."""

    outputs: Path
    digest: str
    record: Record

    def path(self, name: str) -> Path:
        """The absolute path of the output `name`."""
        return self.outputs / name

    def check_units(self, root: Path, manifest: str) -> None:
        """Hash every unit that the output `manifest` lists, for whoever reads them without hashing. Damaged."""
        for unit in durable.read_json(self.path(manifest))["units"]:
            check_file(root, UnitFile(unit["path"], unit["size"], unit["sha256"]), self.record.step, durable.sha256)


def untold(*args: Any, **figures: Any) -> None:
    """Tell nobody of the progress."""


@dataclass
class Attempt:
    """What a stage's function works with. It writes outputs below `outputs` and everything else below `scratch`.

    `ancestors` are the records of all steps that this one stands on, by step name, for lineage.
    """

    name: str
    config: Mapping[str, Any]
    inputs: Mapping[str, StepInput]
    sources: Mapping[str, list[dict[str, Any]]]
    root: Path
    folder: Path
    scratch: Path
    units: UnitStore
    execution: Mapping[str, Any]
    fingerprint: str
    ancestors: Mapping[str, Record]
    numerics: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    unit_files: list[UnitFile] = field(default_factory=list)
    report: Callable[..., None] = untold

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints are published; they outlive the attempt."""
        return self.folder / "checkpoints"

    @property
    def outputs(self) -> Path:
        """Where output files are written; it becomes the step's `outputs/` when the attempt is committed."""
        return self.scratch / "outputs"

    def progress(self, done: float, total: float, unit: str, **figures: float | str) -> None:
        """Tell whoever watches: `done` of `total` `unit`s, and figures to show beside it."""
        self.report(done, total, unit, **figures)

    def confirm_owned(self) -> None:
        """That nobody has taken the step over. Overtaken; for what cannot be fenced, such as a registry's aliases."""
        if not self.scratch.is_dir():
            raise leases.Overtaken(f"{self.name} was given to another owner while this process made no sign of life")

    def add_outputs(self, files: list[UnitFile]) -> None:
        """List unit files among the step's outputs."""
        self.unit_files.extend(files)


class Damaged(RuntimeError):
    """An output of a finished step is missing or has other bytes than its record says."""

    def __init__(self, step: str, path: str, seen: str) -> None:
        super().__init__(f"{path}, an output of step {step}, {seen}")
        self.step = step


Watch = Callable[[Attempt], AbstractContextManager[None]]


def resolve(dotted: str) -> Callable[..., Any]:
    """The function behind "package.module:function"."""
    module, _, name = dotted.partition(":")
    return getattr(importlib.import_module(module), name)


def source_digests(step: Step) -> dict[str, str]:
    """The digest of each of the step's groups of source files: their content and how they are read, not their paths."""
    contents = {
        name: [canonical({key: value for key, value in file.items() if key != "path"}).decode() for file in files]
        for name, files in step.sources.items()
    }
    return {name: digest(sorted(described)) for name, described in contents.items()}


def run(
    planned: Planned,
    before: Mapping[str, Planned],
    root: Path,
    execution: Mapping[str, Any],
    watch: Watch,
    on_wait: Callable[[leases.Owner], None] = lambda owner: None,
    wait: bool = True,
) -> tuple[Record, bool]:
    """Do the step: its record, and whether it was done here rather than by somebody else meanwhile.

    Damaged (an input), Busy (without `wait`), Overtaken, or the work's own error.
    """
    assert planned.folder is not None
    with owning.owning(planned.folder, execution["lease_seconds"], wait, on_wait) as scratch:
        return _owned(planned, before, root, execution, watch, scratch)


def _owned(
    planned: Planned,
    before: Mapping[str, Planned],
    root: Path,
    execution: Mapping[str, Any],
    watch: Watch,
    scratch: Path,
) -> tuple[Record, bool]:
    """The step, done by its owner. All earlier owners are fenced now: what is here will stay as it is."""
    existing = _finished_meanwhile(planned)
    if existing is not None:
        return existing, False
    step = planned.step
    inputs = {name: _verified(before[source.step], source, root) for name, source in step.inputs.items()}
    attempt = _attempt(planned, inputs, ancestors(step, before), root, scratch, execution)
    # Whoever watches sees the end only after the commit: what was not published did not happen.
    with watch(attempt), owning.overtaking_named(attempt.folder, scratch):
        record = _work(planned, attempt)
        _commit(record, attempt)
    owning.let_go(attempt.checkpoints, scratch)
    return record, True


def _finished_meanwhile(planned: Planned) -> Record | None:
    """The record that somebody else has made since `planned` was planned; the one that was retired does not count."""
    assert planned.folder is not None
    try:
        existing = records.read(planned.folder)
    except records.RecordDamaged:
        return None
    return existing if existing != planned.record else None


def ancestors(step: Step, before: Mapping[str, Planned]) -> dict[str, Record]:
    """The records of all steps that `step` stands on, directly or through others."""
    found: dict[str, Record] = {}
    for source in step.inputs.values():
        planned = before[source.step]
        assert planned.record is not None
        found |= {source.step: planned.record} | ancestors(planned.step, before)
    return found


def _attempt(
    planned: Planned,
    inputs: Mapping[str, StepInput],
    above: Mapping[str, Record],
    root: Path,
    scratch: Path,
    execution: Mapping[str, Any],
) -> Attempt:
    step, folder = planned.step, planned.folder
    assert folder is not None and planned.fingerprint is not None
    attempt = Attempt(
        step.name, step.config, inputs, step.sources, root, folder, scratch, UnitStore(root), execution,
        planned.fingerprint, above,
    )  # fmt: skip
    _clear(folder, scratch)
    attempt.outputs.mkdir()
    attempt.checkpoints.mkdir(exist_ok=True)
    return attempt


def _work(planned: Planned, attempt: Attempt) -> Record:
    """Run the stage's function; the record that would make it done."""
    started, clock = records.now(), time.monotonic()
    attempt.metrics = resolve(planned.step.stage.run)(attempt)
    return Record(
        stage=planned.step.stage.name,
        step=planned.step.name,
        version=planned.step.stage.version,
        fingerprint=attempt.fingerprint,
        config=dict(planned.step.config),
        inputs={name: source.digest for name, source in attempt.inputs.items()} | source_digests(planned.step),
        outputs=_outputs(attempt),
        metrics=attempt.metrics,
        numerics=attempt.numerics,
        code=records.code_version(),
        libraries=records.library_versions(),
        started=started,
        finished=records.now(),
        seconds=round(time.monotonic() - clock, 3),
        host=records.host(),
        sources=dict(planned.step.sources),
        parents={name: source.outputs.parent.name for name, source in attempt.inputs.items()},
    )


def _outputs(attempt: Attempt) -> list[UnitFile]:
    """Every output with the path it will have, its size and SHA-256, by path."""
    files = [path for path in durable.below(attempt.outputs) if path.is_file()]
    for litter in [path for path in files if fnmatch(path.name, ".*.tmp")]:
        litter.unlink()  # the draft of a task that was killed and ran again
        files.remove(litter)
    written = [
        UnitFile(
            str((attempt.folder / "outputs" / path.relative_to(attempt.outputs)).relative_to(attempt.root)),
            path.stat().st_size, durable.sha256(path),
        )
        for path in files
    ]  # fmt: skip
    unique = {file.path: file for file in written + attempt.unit_files}
    return [unique[path] for path in sorted(unique)]


def _commit(record: Record, attempt: Attempt) -> None:
    """Publish: outputs by one rename, then the record by one hard link, both out of the attempt's folder."""
    durable.publish_folder(attempt.outputs, attempt.folder / "outputs")
    draft = attempt.scratch / records.RECORD
    durable.write_bytes(draft, records.to_json(record))
    durable.link(draft, attempt.folder / records.RECORD)


def _clear(folder: Path, attempt: Path) -> None:
    """Set aside what an earlier owner published without a record, or with a record that no longer holds."""
    for name in (records.RECORD, "outputs"):
        if (folder / name).exists():
            durable.rename(folder / name, attempt / f"superseded-{name}")


def _verified(planned: Planned, source: Input, root: Path) -> StepInput:
    """The input, after hashing every file of it that will be read."""
    assert planned.record is not None and planned.folder is not None
    prefix = f"steps/{planned.folder.name}/outputs/"
    for file in planned.record.outputs:
        if file.path.startswith(prefix + source.part):
            check_file(root, file, planned.step.name, durable.sha256)
    return StepInput(
        planned.folder / "outputs", planned.record.part(source.part, f"steps/{planned.folder.name}"), planned.record
    )


def check_file(root: Path, file: UnitFile, step: str, sha256: Callable[[Path], str]) -> None:
    """Damaged if `file` is not what its record says."""
    try:
        seen = sha256(root / file.path)
    except (FileNotFoundError, NotADirectoryError):
        raise Damaged(step, file.path, "is missing") from None
    except IsADirectoryError:
        raise Damaged(step, file.path, "is damaged (it is a folder)") from None
    except OSError as error:
        if not is_unreadable(error):
            raise
        raise Damaged(step, file.path, f"cannot be read ({error.strerror})") from error
    if seen != file.sha256:
        raise Damaged(step, file.path, f"is damaged (SHA-256 {seen[:12]}, recorded {file.sha256[:12]})")
