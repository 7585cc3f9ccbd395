"""Hash everything under a work directory and compare it with the records.

The one idea: nothing is trusted, no stat signature and no cache. What no record lists is named as unowned: it is
either work in progress, or what a kill has left, or somebody's own file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cluster.shared_folder import STAMPS
from model import durable
from pipelines import outbox
from pipelines.config import ConfigError
from pipelines.engine import lease as leases
from pipelines.engine import record as records
from pipelines.engine import sealed, using
from pipelines.engine.step import Damaged, check_file
from pipelines.engine.units import UnitFile, is_unreadable
from pipelines.package import PackageDamaged, verify_package


def _own_files(root: Path) -> list[Path]:
    """What lies in a work directory by design and is no step's output."""
    return [path for path in (root / "digests.json", *sorted(root.glob(outbox.FILES))) if path.exists()]


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
            yield (
                f"next: {run} (it makes again what is damaged or missing and needed; a unit's certificate and a lease "
                "when their unit or step is made again)"
            )


def verify(root: Path) -> Report:
    """Check every output of every record below `root`, and every unit against its certificate.

    ConfigError if `root` is no work directory.
    """
    if not _own_files(root) and not any((root / name).exists() for name in ("steps", "units", "retrain")):
        raise ConfigError(
            f"WORK={root}: {'no work directory' if root.exists() else 'there is no such folder'}; check the path"
        )
    report, known = Report(root), {path.name for path in _own_files(root)}
    _check_own(report)
    for folder in sorted(path for path in (root / "steps").glob("*") if path.is_dir()):
        _check_step(folder, report, known)
    _check_units(report, known)
    known.update(
        str(path.relative_to(root)) for path in (root / using.FOLDER).rglob("*")
    )  # marks, and what `gc` deletes
    for folder in sorted(path for path in (root / "retrain").glob("*") if path.is_dir()):
        _check_retraining(folder, report, known)
    for path in durable.below(root):
        place = path.relative_to(root)
        if place.parts[0] != STAMPS and str(place) not in known and path.is_file():
            report.unowned.append(str(place))
    return report


def _check_own(report: Report) -> None:
    """What lies beside the steps. Both state their own digest."""
    for path in _own_files(report.root):
        _readable(path, outbox.read if path.match(outbox.FILES) else sealed.unseal, report)


def _readable(path: Path, read: Callable[[Path], Any], report: Report) -> Any:
    """What `read` makes of a file; None, and damage where there is something else than was written."""
    try:
        return read(path)
    except FileNotFoundError:
        return None
    except records.UnknownSchema:
        raise  # whole, and not ours to judge
    except (ValueError, OSError) as error:
        if not _is_damage(error):
            raise
        report.damaged.append(str(path.relative_to(report.root)))
        return None


def _is_damage(error: Exception) -> bool:
    """Whether an error of reading tells of the file, and not of who reads: a disk that fails there is no reason to stop."""
    return not isinstance(error, OSError) or isinstance(error, IsADirectoryError) or is_unreadable(error)


def _check_step(folder: Path, report: Report, known: set[str]) -> None:
    """A step's record and all it lists, its lease files, its checkpoints."""
    owner = leases.current_owner(folder)
    if owner:
        report.in_progress.append(f"{folder.name} by {owner}")
    record = _readable(folder / records.RECORD, lambda path: records.read(path.parent), report)
    known.add(str((folder / records.RECORD).relative_to(report.root)))
    for file in record.outputs if record else ():
        _check(file, record.step, report, known)
    _check_leases(folder, report, known)
    for checkpoint in sorted([*folder.glob("checkpoints/step-*"), *folder.glob("permanent/step-*")]):
        _check_checkpoint(checkpoint, report, known)
    if owner or not record:  # attempts and checkpoints of work that goes on, or will
        left = [path for name in ("attempts", "checkpoints") for path in (folder / name).rglob("*")]
        known.update(str(path.relative_to(report.root)) for path in left)
    known.update(
        str(path.relative_to(report.root)) for path in folder.glob("attempts/*") if path.is_file()
    )  # tombstones


def _check_leases(folder: Path, report: Report, known: set[str]) -> None:
    """The latest lease; of the earlier ones only the names count, that nobody takes them again."""
    files = sorted(folder.glob("lease/[0-9]*"))
    known.update(str(path.relative_to(report.root)) for path in files)
    if files:
        lease = files[-1].with_suffix(".json")
        _readable(lease, sealed.unseal, report)
        if not lease.exists():
            report.missing.append(str(lease.relative_to(report.root)))
        if (released := lease.with_suffix(".released")).is_dir():
            report.damaged.append(str(released.relative_to(report.root)))


def _check_checkpoint(folder: Path, report: Report, known: set[str]) -> None:
    """The files of a checkpoint against its manifest, as `model/checkpoint.py` does it before it is used."""
    manifest = folder / "MANIFEST.json"
    known.add(str(manifest.relative_to(report.root)))
    try:
        place = folder.relative_to(report.root)
        content = durable.read_json(manifest)
        files = [UnitFile(f"{place}/{file['path']}", file["size"], file["sha256"]) for file in content["files"]]
        if content["sha256"] != durable.own_digest(content):
            raise ValueError("it is not what was written")
    except FileNotFoundError:
        report.missing.append(str(manifest.relative_to(report.root)))
        return
    except (ValueError, KeyError, TypeError, OSError) as error:
        if not _is_damage(error):
            raise
        report.damaged.append(str(manifest.relative_to(report.root)))
        return
    for file in files:
        _check(file, folder.name, report, known)


def _check_retraining(folder: Path, report: Report, known: set[str]) -> None:
    """A model's slots, what its open slot works on, which alerts were told, the champions pulled for it, its lease."""
    owner = leases.current_owner(folder)
    if owner:
        report.in_progress.append(f"retraining {folder.name} by {owner}")
    for path in sorted([*folder.glob("slots/[0-9]*.json"), *folder.glob("frozen.json"), *folder.glob("alerts.json")]):
        known.add(str(path.relative_to(report.root)))
        _readable(path, sealed.unseal, report)
    for champion in sorted(folder.glob("champions/*")):
        known.update(str(path.relative_to(report.root)) for path in champion.rglob("*"))
        try:
            verify_package(champion)
        except (PackageDamaged, OSError):
            report.damaged.append(str(champion.relative_to(report.root)))
    _check_leases(folder, report, known)
    known.update(str(path.relative_to(report.root)) for path in folder.glob("attempts/**/*"))


def _check_units(report: Report, known: set[str]) -> None:
    for certificate in sorted((report.root / "units").glob("*/*/*.json")):
        known.add(str(certificate.relative_to(report.root)))
        content = _readable(certificate, sealed.unseal, report)
        for file in content["files"].values() if content else ():
            _check(UnitFile(**file), "units", report, known)


def _check(file: UnitFile, owner: str, report: Report, known: set[str]) -> None:
    if file.path in known:
        return
    known.add(file.path)
    report.checked += 1
    report.bytes += file.size
    try:
        check_file(report.root, file, owner, durable.sha256)
    except Damaged as damage:
        (report.missing if "is missing" in str(damage) else report.damaged).append(file.path)
