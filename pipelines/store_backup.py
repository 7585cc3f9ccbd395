"""A backup of the MLflow store: its database and its artifacts, whole and verified, or not at all.

The one idea: a backup shares no file with the store, only with earlier backups. The database is copied by sqlite's own
online backup, first; then the artifacts, of which a version always had all when it got into the database. It appears
under its name by one rename, after everything in it was read back. Putting it back is copying a folder.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import shutil
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from model import durable
from pipelines import store_check
from pipelines.config import ConfigError
from pipelines.staging import staging, sweep

CONTENTS = "BACKUP.json"  # every file with size and SHA-256, written last
_NOT_KEPT = ("-wal", "-shm", "-journal", ".lock", CONTENTS)  # beside the database: what is in use, or of a backup


@dataclass(frozen=True)
class Backup:
    """A finished backup. `shared` of its `files` are the same as in an earlier backup and take no room."""

    folder: Path
    files: int
    shared: int
    report: store_check.Report


def back_up(database: Path, dest: Path | None, keep: int) -> Backup:
    """Copy the store with this database to a new folder in `dest` (by default `<store>-backups`, beside the store).

    Of the earlier backups there the newest `keep - 1` stay; all of them, if the new one's report tells of damage.
    ConfigError if `dest` is inside the store.
    """
    folder = database.parent.absolute()
    dest = (dest or folder.with_name(f"{folder.name}-backups")).absolute()
    if dest == folder or folder in dest.parents:
        raise ConfigError(f"--dest {dest} is inside the store; a backup belongs elsewhere, best on another disk")
    dest.mkdir(parents=True, exist_ok=True)
    sweep(dest)
    earlier = sorted(path.parent for path in dest.glob(f"*/{CONTENTS}"))
    now = datetime.datetime.now(datetime.UTC)
    target = dest / now.strftime("%Y-%m-%dT%H-%M-%S.%fZ")
    with staging(target) as draft:
        _copy_database(database, draft / database.name)
        shared = _copy_files(folder, draft, earlier[-1] if earlier else None, database)
        report = store_check.check(draft / database.name).elsewhere(target)
        files = {name: _stated(draft / name) for name in sorted(_files(draft))}
        durable.write_json(draft / CONTENTS, {"schema": 1, "of": str(folder), "files": files})
        durable.publish_folder(draft, target)
    if not report.damaged:
        for old in earlier[: max(0, len(earlier) + 1 - keep)]:
            durable.remove_tree(old)
    return Backup(target, len(files), shared, report)


def _copy_database(source: Path, target: Path) -> None:
    """sqlite's online backup: consistent while others write."""
    with durable.writing(target) as draft:
        with (
            # "rw", although it is read only: the transaction of a writer that was killed can only be undone so.
            contextlib.closing(sqlite3.connect(f"{source.as_uri()}?mode=rw", uri=True, timeout=60)) as reader,
            contextlib.closing(sqlite3.connect(draft)) as writer,
        ):
            reader.backup(writer)


def _copy_files(folder: Path, draft: Path, earlier: Path | None, database: Path) -> int:
    """Copy every file of the store but the database; how many were linked to those of the earlier backup instead."""
    known = durable.read_json(earlier / CONTENTS)["files"] if earlier else {}
    shared = 0
    for name in _files(folder):
        if name == database.name:
            continue
        (draft / name).parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # deleted meanwhile; if a version needed it, the check says so
            stated = _stated(folder / name)
            # The earlier backup's file is read, not believed: damage in it must not be inherited.
            if earlier and known.get(name) == stated and _is(earlier / name, stated):
                durable.link(earlier / name, draft / name)
                shared += 1
                continue
            _copy(folder / name, draft / name, stated)
    return shared


def _copy(source: Path, target: Path, stated: dict[str, object]) -> None:
    """Copy a file and read the copy back. A file that was written meanwhile is copied again; OSError after a few times."""
    for _ in range(5):
        with durable.writing(target) as draft:
            shutil.copyfile(source, draft)
        if _is(target, stated):
            return
        stated = _stated(source)
    raise OSError(f"{target} does not come out as {source} is: is somebody writing there, or is the disk bad?")


def _stated(path: Path) -> dict[str, object]:
    return {"size": path.stat().st_size, "sha256": durable.sha256(path)}


def _is(path: Path, stated: dict[str, object]) -> bool:
    return path.is_file() and _stated(path) == stated


def _files(folder: Path) -> Iterator[str]:
    """The files of a store, relative; without locks, drafts and what sqlite needs while it works."""
    for root, _, names in os.walk(folder, followlinks=True):
        for name in names:
            draft = name.startswith(".") and name.endswith(".tmp")
            if not draft and not (Path(root) == folder and name.endswith(_NOT_KEPT)):
                yield str(Path(root, name).relative_to(folder))
