"""Hash everything under a work directory and compare it with the records.

The one idea: nothing is trusted, no stat signature and no cache. What no record lists is named as unowned: it is
either work in progress, or what a kill has left, or somebody's own file.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from model import durable
from pipelines.config import ConfigError
from pipelines.engine import lease as leases
from pipelines.engine import record as records
from pipelines.engine.step import Damaged, check_file

# What lies in a work directory by design and is no step's output.
_OWN = ("digests.json", "outbox.json")


@dataclass
class Report:
    """What `verify` found. Paths are relative to the work directory."""

    root: Path
    checked: int = 0
    bytes: int = 0
    damaged: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unowned: list[str] = field(default_factory=list)
    in_progress: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """The report as plain data."""
        return asdict(self) | {"root": str(self.root)}

    def lines(self, run: str) -> Iterator[str]:
        """The report for people. `run` is the command that makes again what is damaged."""
        for kind in ("damaged", "missing", "unowned"):
            yield from (f"{kind}: {path}" for path in getattr(self, kind))
        yield from (f"in progress: {owner}" for owner in self.in_progress)
        yield (
            f"{self.root}: {self.checked} files ({self.bytes / 1e6:.1f} MB) checked, {len(self.damaged)} damaged, "
            f"{len(self.missing)} missing, {len(self.unowned)} unowned"
        )
        if self.damaged or self.missing:
            yield f"next: {run} (it makes again what is damaged or missing)"


def verify(root: Path) -> Report:
    """Check every output of every record below `root`, and every unit against its certificate.

    ConfigError if `root` is no work directory.
    """
    if not any((root / name).exists() for name in ("steps", "units", *_OWN)):
        raise ConfigError(
            f"WORK={root}: {'no work directory' if root.exists() else 'there is no such folder'}; check the path"
        )
    report, known = Report(root), set(_OWN)
    for folder in sorted((root / "steps").glob("*")):
        owner = leases.current_owner(folder)
        if owner:
            report.in_progress.append(f"{folder.name} by {owner}")
        _check_step(folder, report, known)
    _check_units(report, known)
    for path in sorted(Path(folder, name).relative_to(root) for folder, _, names in os.walk(root) for name in names):
        if str(path) not in known and not _work_in_progress(path) and (root / path).exists():
            report.unowned.append(str(path))
    return report


def _check_step(folder: Path, report: Report, known: set[str]) -> None:
    name = str((folder / records.RECORD).relative_to(report.root))
    known.add(name)
    try:
        record = records.read(folder)
    except records.RecordDamaged:
        report.damaged.append(name)
        return
    if record is None:
        return
    for file in record.outputs:
        _check(file, record.step, report, known)


def _check_units(report: Report, known: set[str]) -> None:
    for certificate in sorted((report.root / "units").rglob("*.json")):
        name = str(certificate.relative_to(report.root))
        known.add(name)
        try:
            files = durable.read_json(certificate)["files"].values()
        except (ValueError, KeyError, TypeError, AttributeError):  # no JSON, or not what a certificate says
            report.damaged.append(name)
            continue
        for file in files:
            _check(records.UnitFile(**file), "units", report, known)


def _check(file: records.UnitFile, owner: str, report: Report, known: set[str]) -> None:
    if file.path in known:
        return
    known.add(file.path)
    report.checked += 1
    report.bytes += file.size
    try:
        check_file(report.root, file, owner, durable.sha256)
    except Damaged as damage:
        (report.missing if "is missing" in str(damage) else report.damaged).append(file.path)


def _work_in_progress(path: Path) -> bool:
    """Leases, attempts and checkpoints, which come and go with their step, and permanent checkpoints, which have manifests."""
    own = ("lease", "attempts", "checkpoints", "permanent")
    return len(path.parts) > 3 and path.parts[0] == "steps" and path.parts[2] in own
