"""What a work directory keeps, what it lets go, and why: decided from records, ages and aliases, without a lock.

The one idea: what is kept is what can be reached. The roots are the records within the retention (young enough, or among
the newest of their step) and those behind an alias of the registry; from a root everything is kept that it stands on, so
that planning it again finds all of it done and lineage finds every source. Units are kept if a kept record lists them.

What no record speaks of yet (an interrupted step, a unit that a killed run made) is somebody's work until it is older than
the retention; the latest interrupted step of each name stays longer, until a later one is finished.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from model import durable
from pipelines import champions, slots
from pipelines.engine import record as records
from pipelines.engine.record import Record

Aliased = Mapping[tuple[str, int], str]  # (model, version) -> the aliases that point at it, for people


@dataclass(frozen=True)
class Retention:
    """`days`: what finished within them is kept. `count`: at least so many finished records of each step name."""

    days: float = 30.0
    count: int = 3


@dataclass(frozen=True)
class Folder:
    """A step's folder, its record if it is done, and when it was finished or last worked on."""

    path: Path
    name: str
    record: Record | None
    when: datetime.datetime


@dataclass(frozen=True)
class Doomed:
    """Something that goes: files or folders that belong together, their size in bytes, and why nobody needs them."""

    kind: str
    name: str
    paths: tuple[Path, ...]
    bytes: int
    why: str


@dataclass
class Survey:
    """What was found: what goes, in the order in which it has to go, and why each kept step stays."""

    doomed: list[Doomed] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)
    kept_bytes: int = 0

    @property
    def bytes(self) -> int:
        """What would be freed."""
        return sum(doomed.bytes for doomed in self.doomed)


def survey(root: Path, retention: Retention, now: datetime.datetime, aliased: Aliased) -> Survey:
    """What `root` keeps and lets go at the moment `now`. UnknownSchema if a record was written by other code."""
    folders = sorted(_folders(root), key=lambda folder: folder.when, reverse=True)
    found = Survey(kept=_kept(folders, retention, now, aliased))
    for folder in folders:
        if folder.path.name in found.kept:
            found.doomed += _leftovers(folder)
        else:
            found.doomed.append(_doomed_step(folder, now))
    # The newest first: what stands on a step goes before it.
    found.doomed.sort(key=lambda doomed: doomed.kind != "step")
    needed = {
        file.path for folder in folders if folder.record and folder.path.name in found.kept
        for file in folder.record.outputs
    }  # fmt: skip
    found.doomed += _doomed_units(root, needed, retention, now)
    found.doomed += _doomed_champions(root)
    found.kept_bytes = size_of(root / "steps") + size_of(root / "units") - found.bytes
    return found


def _folders(root: Path) -> Iterator[Folder]:
    steps = root / "steps"
    for path in sorted(steps.iterdir()) if steps.is_dir() else ():
        if not path.is_dir():
            continue
        try:
            record = records.read(path)
        except records.RecordDamaged:
            record = None  # its step counts as not done
        when = datetime.datetime.fromisoformat(record.finished) if record else _touched(path)
        yield Folder(path, path.name.rpartition("-")[0], record, when)


def _touched(path: Path) -> datetime.datetime:
    """When anything at or below `path` was written last."""
    below = durable.below(path) if path.is_dir() else ()
    newest = max((_mtime(other) for other in below), default=0.0)
    return datetime.datetime.fromtimestamp(max(newest, _mtime(path)), datetime.UTC)


def _mtime(path: Path) -> float:
    try:
        return path.lstat().st_mtime
    except FileNotFoundError:  # it goes meanwhile
        return 0.0


def size_of(path: Path) -> int:
    """The bytes of all files at or below `path`."""
    files = durable.below(path) if path.is_dir() else [path]
    total = 0
    for file in files:
        try:
            status = file.lstat()
        except FileNotFoundError:
            continue
        total += 0 if file.is_dir() else status.st_size
    return total


def _kept(folders: list[Folder], retention: Retention, now: datetime.datetime, aliased: Aliased) -> dict[str, str]:
    """The steps that stay, by folder name, and why. `folders` are sorted, the newest first."""
    kept: dict[str, str] = {}
    finished: dict[str, int] = {}  # newer finished records of the same name
    interrupted: set[str] = set()
    for folder in folders:
        if reason := _root_reason(folder, retention, now, aliased, finished.get(folder.name, 0), interrupted):
            kept[folder.path.name] = reason
        if folder.record:
            finished[folder.name] = finished.get(folder.name, 0) + 1
        else:
            interrupted.add(folder.name)
    _reach(folders, kept)
    return kept


def _root_reason(
    folder: Folder, retention: Retention, now: datetime.datetime, aliased: Aliased, newer: int, interrupted: set[str]
) -> str | None:
    """Why a step is kept for its own sake; None if it is not."""
    if folder.record and (alias := _alias(folder.record, aliased)):
        return alias
    if (now - folder.when).total_seconds() <= retention.days * 86_400:
        return f"{'finished' if folder.record else 'worked on'} within {retention.days:g} days"
    if folder.record:
        return f"one of the newest {retention.count} of its name" if newer < retention.count else None
    return None if newer or folder.name in interrupted else "interrupted, and nothing of its name was finished since"


def _alias(record: Record, aliased: Aliased) -> str | None:
    version = record.metrics.get("version")
    if record.stage != "register" or not isinstance(version, int):
        return None
    return aliased.get((str(record.metrics.get("name")), version))


def _reach(folders: list[Folder], kept: dict[str, str]) -> None:
    """Add to `kept` every step that a kept one stands on, directly or through others."""
    named = {folder.path.name: folder for folder in folders}
    waiting = list(kept)
    while waiting:
        folder = named[waiting.pop()]
        for parent in _parents(folder, folders) if folder.record else ():
            if parent in named and parent not in kept:
                kept[parent] = f"{folder.name} stands on it"
                waiting.append(parent)


def _parents(folder: Folder, folders: list[Folder]) -> list[str]:
    """The folders that a finished step was made from. An old record does not say: then all that were there."""
    record = folder.record
    assert record is not None
    if record.parents or not set(record.inputs) - set(record.sources):
        return sorted(set(record.parents.values()))
    return [other.path.name for other in folders if other.record and other.when <= folder.when]


def _doomed_step(folder: Folder, now: datetime.datetime) -> Doomed:
    days = (now - folder.when).total_seconds() / 86_400
    state = f"finished {days:.0f} days ago" if folder.record else f"not finished, last worked on {days:.0f} days ago"
    why = f"{state}; no newer step that is kept stands on it, and no alias"
    return Doomed("step", folder.path.name, (folder.path,), size_of(folder.path), why)


def _leftovers(folder: Folder) -> Iterator[Doomed]:
    """Checkpoints and attempts of a step that is done: its owner was killed before it could let them go."""
    if folder.record is None:
        return
    left = [path for path in folder.path.glob("attempts/*") if path.is_dir()]
    for path in [*left, *(path for path in [folder.path / "checkpoints"] if path.exists())]:
        name = f"{folder.path.name}/{path.relative_to(folder.path)}"
        yield Doomed("leftover", name, (path,), size_of(path), "left by a kill; the step is done")


def _doomed_units(root: Path, needed: set[str], retention: Retention, now: datetime.datetime) -> Iterator[Doomed]:
    """Units that no kept record lists and that are older than the retention; the certificate stands first."""
    for kind in sorted((root / "units").glob("*")):
        groups: dict[str, list[Path]] = {}
        for path in kind.glob("*/*"):
            groups.setdefault(path.name.lstrip(".").partition(".")[0], []).append(path)
        for key, paths in sorted(groups.items()):
            age = (now - max(_touched(path) for path in paths)).total_seconds()
            if age <= retention.days * 86_400 or needed & {str(path.relative_to(root)) for path in paths}:
                continue
            ordered = sorted(paths, key=lambda path: path.suffix != ".json" or path.name != f"{key}.json")
            why = f"made {age / 86_400:.0f} days ago; no record that is kept lists it"
            yield Doomed("unit", f"{kind.name}/{key[:12]}", tuple(ordered), sum(map(size_of, paths)), why)


def _doomed_champions(root: Path) -> Iterator[Doomed]:
    """Champions that retraining pulled for slots that are closed, but for the latest one's: the registry has them."""
    for model in sorted((root / "retrain").glob("*")):
        history = slots.of_model(root, model.name)
        needed = {
            champions.folder_name(champion["name"], champion["digest"]) for slot in history if slot.outcome == "open" or slot is history[-1]
            for champion in (slot.champion, slot.base) if champion
        }  # fmt: skip
        for path in sorted(model.glob("champions/*")):
            if path.name.lstrip(".") not in needed:
                name = str(path.relative_to(root / "retrain"))
                yield Doomed("champion", name, (path,), size_of(path), "pulled for a slot that is closed")
