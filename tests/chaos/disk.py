"""What a work directory shows from outside: who works at what, how far, and whether what is published is whole.

The one idea: only names and formats of DESIGN are read here (leases, records, certificates, checkpoint manifests),
nothing of the product is imported, so that the harness cannot share a mistake with it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Working:
    """A process at work on a step."""

    step: str
    folder: Path
    attempt: Path

    @property
    def stage(self) -> str:
        """The stage that the step is of."""
        return self.step.split("-")[0]


@dataclass(frozen=True)
class Signs:
    """How far a line has come: what changes when work is done."""

    records: int = 0
    units: int = 0
    train: tuple[str, int, int] = ("", 0, 0)  # attempt, lines of progress, step


def step_name(folder: Path) -> str:
    """The step that a folder below steps/ belongs to."""
    return folder.name.rpartition("-")[0]


def working(work: Path, pid: int) -> Working | None:
    """The step that process `pid` owns now, by its lease."""
    for folder in _folders(work / "steps"):
        names = {path.name for path in _listed(folder / "lease") if not path.name.startswith(".")}
        newest = max((name.split(".")[0] for name in names), default="")
        if newest and f"{newest}.released" not in names:
            with contextlib.suppress(OSError, ValueError):
                owner = json.loads((folder / "lease" / f"{newest}.json").read_bytes())
                if owner["pid"] == pid:
                    return Working(step_name(folder), folder, folder / "attempts" / owner["token"])
    return None


def recorded(work: Path) -> dict[str, Path]:
    """The steps that have a record, and their folders."""
    return {step_name(folder): folder for folder in _folders(work / "steps") if (folder / "record.json").exists()}


def progress(attempt: Path) -> list[dict[str, Any]]:
    """The whole lines of a training attempt's progress file."""
    try:
        lines = (attempt / "progress.jsonl").read_bytes().split(b"\n")[:-1]
    except OSError:
        return []
    return [json.loads(line) for line in lines if line.startswith(b"{") and line.endswith(b"}")]


def checkpoint(folder: Path) -> int:
    """The newest published checkpoint of a step, as its number; 0 if there is none."""
    steps = [int(path.name[5:]) for path in _listed(folder / "checkpoints") if re.fullmatch(r"step-\d+", path.name)]
    return max(steps, default=0)


def certificates(work: Path) -> dict[str, int]:
    """The finished units, and when they were made."""
    found = {}
    for path in (work / "units").glob("*/*/*.json") if (work / "units").exists() else ():
        with contextlib.suppress(OSError):
            found[str(path.relative_to(work))] = path.stat().st_mtime_ns
    return found


def signs(work: Path, at: Working | None) -> Signs:
    """How far the line has come."""
    lines = progress(at.attempt) if at else []
    train = (at.attempt.name, len(lines), lines[-1]["step"]) if at and lines else ("", 0, 0)
    return Signs(len(recorded(work)), len(certificates(work)), train)


def since_commit(work: Path, at: Working | None, started: float) -> float:
    """Seconds of work that die with whoever does it: since something was last made durable, or since `started`."""
    moments = [started]
    for folder in _folders(work / "steps"):
        moments += [_time(folder / "record.json")]
    if at:
        moments += [_time(path) for path in _listed(at.folder / "checkpoints")]
    moments += [stamp / 1e9 for stamp in certificates(work).values()]
    return max(0.0, time.time() - max(moments))


@dataclass
class Wholeness:
    """Checks that whatever has its real name is whole, hashing each file once."""

    _hashed: dict[tuple[str, int, int, int], str] = field(default_factory=dict)

    def problems(self, work: Path) -> Iterator[str]:
        """What is published and not whole: the outputs of records, the files of units and of checkpoints."""
        for step, folder in recorded(work).items():
            for file in (yield from _read(folder / "record.json", "outputs")) or ():
                yield from self._check(work / file["path"], file, f"record of {step}")
        for name in certificates(work):
            for file in ((yield from _read(work / name, "files")) or {}).values():
                yield from self._check(work / file["path"], file, f"certificate {name}")
        for folder in _folders(work / "steps"):
            for published in _listed(folder / "checkpoints"):
                if re.fullmatch(r"step-\d+", published.name):
                    found = list(self._checkpoint(published, step_name(folder)))
                    yield from found if published.exists() else ()  # retention may take it away meanwhile

    def _checkpoint(self, folder: Path, step: str) -> Iterator[str]:
        for file in (yield from _read(folder / "MANIFEST.json", "files")) or ():
            yield from self._check(folder / file["path"], file, f"checkpoint {folder.name} of {step}")

    def _check(self, path: Path, file: dict[str, Any], owner: str) -> Iterator[str]:
        try:
            stat = path.stat()
            key = (str(path), stat.st_ino, stat.st_mtime_ns, stat.st_size)
            if key not in self._hashed:
                self._hashed[key] = sha256(path)
        except FileNotFoundError:
            yield f"{owner} names {path.name}, which is missing"
            return
        if (stat.st_size, self._hashed[key]) != (file["size"], file["sha256"]):
            yield f"{owner} names {path.name}, which has other bytes"


def _read(path: Path, key: str) -> Generator[str, None, Any]:
    """A field of a JSON file; a problem is yielded if it is not whole."""
    try:
        return json.loads(path.read_bytes())[key]
    except (OSError, ValueError, KeyError) as error:
        yield f"{path.parent.name}/{path.name} is published and not whole ({error})"


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _folders(parent: Path) -> list[Path]:
    return [path for path in _listed(parent) if not path.name.startswith(".")]


def _listed(parent: Path) -> list[Path]:
    try:
        return sorted(parent.iterdir())
    except OSError:
        return []


def _time(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
