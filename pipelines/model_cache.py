"""The cache of pulled models: files by their SHA-256, shared by all pulls of this user on this machine.

The one idea: a file's name is its content, so it can be shared, checked and continued. What is being fetched lies beside
as `<sha256>.part` and grows; a cut pull goes on there, whoever gives the command next. One process at a time fetches a
file, the others wait for it and find it. A file is hashed each time that it is taken out, so damage is noticed and
fetched anew.

    <cache>/<sha256>                 a file, read-only
    <cache>/<sha256>.part            what there is of it so far
    <cache>/packages/<digest>.json   the MANIFEST.json of a package; its time says when it was last used
    <cache>/resolved/*.json          what name@alias meant when it was last asked, for `--offline`
    <cache>/locks/                   empty files
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model import durable
from pipelines.fetching import BLOCK, Answer
from pipelines.file_lock import locked
from pipelines.package_rules import PackageDamaged, check_content
from pipelines.patience import patiently
from pipelines.store import tracking_uri

_PAUSE = 0.2  # seconds after a cut before a download goes on
Open = Callable[[int], AbstractContextManager[Answer]]  # the bytes of a file from a position on
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wanted:
    """A file to be had: its name in the package, its size in bytes, its SHA-256, and how it is opened (None: offline)."""

    name: str
    size: int
    sha256: str
    open: Open | None


@dataclass(frozen=True)
class ModelCache:
    """The cache in `folder`, which asks `location` for `patience` seconds without progress. `shared` files are read-only."""

    folder: Path
    location: str | Path
    patience: float = 0.0
    shared: bool = True

    def prepare(self) -> None:
        """Make the folders, if they are not there."""
        for name in ("packages", "resolved", "locks"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)

    def file(self, wanted: Wanted) -> Path:
        """The path of the file in the cache, whole and hashed just now; fetched if need be.

        ConnectionError if nothing came for `patience` seconds; PackageDamaged, PackageRefused.
        """
        path = self.folder / wanted.sha256
        if not self._whole(path, wanted):
            with self._locked(wanted):
                if not self._whole(path, wanted):
                    self._fetch(wanted)
        check_content(wanted.name, path)  # also of a file that came under another name
        return path

    def _whole(self, path: Path, wanted: Wanted) -> bool:
        try:
            return path.stat().st_size == wanted.size and durable.sha256(path) == wanted.sha256
        except FileNotFoundError:
            return False

    def _fetch(self, wanted: Wanted) -> None:
        path, part = self.folder / wanted.sha256, self.folder / f"{wanted.sha256}.part"
        if wanted.open is None:
            raise PackageDamaged(
                f"{wanted.name} ({wanted.sha256[:12]}) is {'damaged' if path.exists() else 'not'} in the cache {self.folder}; "
                "pull once without --offline"
            )
        if path.exists():
            log.warning("%s in the cache is damaged; it is fetched anew", path)
            durable.remove(path)
        began_with = _size(part)
        seen = self._complete(part, wanted)
        if seen != wanted.sha256 and began_with:  # what an earlier pull had left was not the beginning of this file
            log.warning("%s: what an earlier pull had of it was damaged; it is fetched from its beginning", wanted.name)
            durable.remove(part)
            seen = self._complete(part, wanted)
        if seen != wanted.sha256:
            durable.remove(part)
            raise PackageDamaged(f"{wanted.name}: SHA-256 {seen}, the manifest says {wanted.sha256}; register it again")
        try:
            check_content(wanted.name, part)
        except PackageDamaged:
            durable.remove(part)
            raise
        if self.shared:
            part.chmod(0o444)
        durable.rename(part, path)

    def _complete(self, part: Path, wanted: Wanted) -> str:
        """Fetch what is lacking of a part, on and on; its SHA-256, flushed."""
        if _size(part) > wanted.size:
            durable.remove(part)
        if not part.exists():
            durable.append(part, b"")
        best = 0  # where a server cannot continue, what comes a second time is no progress
        while (had := _size(part)) < wanted.size:
            best = max(best, had)
            what = f"fetching {wanted.name} ({had:,} of {wanted.size:,} bytes)"
            patiently(self.location, self.patience, what, functools.partial(self._continue, part, wanted, best))
            if _size(part) < wanted.size:
                time.sleep(_PAUSE)
        return durable.flushed_sha256(part)

    def _continue(self, part: Path, wanted: Wanted, best: int) -> None:
        """Append what comes until the end or a cut. ConnectionError if that is no more than `best`; PackageDamaged."""
        assert wanted.open is not None
        had, cut = _size(part), None
        with wanted.open(had) as answer:
            if answer.start != had:
                log.warning("%s: the server cannot continue a file; it is fetched from its beginning", wanted.name)
                durable.remove(part)
                durable.append(part, b"")
            try:
                _append(part, answer, wanted)
            except ConnectionError as error:  # what came until then is kept, and counts
                cut = error
        if cut is None and _size(part) < wanted.size:
            raise PackageDamaged(
                f"{wanted.name}: it ends after {_size(part):,} bytes, the manifest says {wanted.size:,}; register it again"
            )
        if cut is not None and _size(part) <= best:
            raise cut

    def _locked(self, wanted: Wanted) -> AbstractContextManager[None]:
        """One process at a time fetches a file. Who waits goes on waiting as long as the file grows."""
        part = self.folder / f"{wanted.sha256}.part"
        return locked(
            self.folder / "locks" / wanted.sha256,
            self.patience + 30,
            lambda: f"{wanted.name}: another process is fetching it to {part}",
            lambda: _size(part),
        )

    def has(self, sha256: str) -> int:
        """The bytes that there are of a file, unhashed."""
        return _size(self.folder / sha256) or _size(self.folder / f"{sha256}.part")

    def manifest(self, digest: str) -> Path:
        """Where the MANIFEST.json of a package is, or is to be, kept."""
        return self.folder / "packages" / f"{digest}.json"

    def touch(self, digest: str) -> None:
        """Say that the package is used now: what no pull uses for long is removed (`model_cache_cleaning.py`)."""
        self.manifest(digest).touch()

    def remember(self, spec: str, resolution: Mapping[str, Any]) -> None:
        """Keep what `spec` meant, for when nobody can be asked."""
        durable.write_json(self._resolution(spec), dict(resolution))

    def remembered(self, spec: str) -> dict[str, Any] | None:
        """What `spec` meant when it was last asked; None if it never was, here."""
        try:
            return dict(durable.read_json(self._resolution(spec)))
        except (FileNotFoundError, ValueError):  # a damaged memory is none
            return None

    def _resolution(self, spec: str) -> Path:
        key = hashlib.sha256(f"{tracking_uri(self.location).rstrip('/')} {spec}".encode()).hexdigest()[:32]
        return self.folder / "resolved" / f"{key}.json"


def _append(part: Path, answer: Answer, wanted: Wanted) -> None:
    lacking = wanted.size - _size(part)
    while block := answer.read(min(BLOCK, lacking + 1)):
        if len(block) > lacking:
            raise PackageDamaged(
                f"{wanted.name}: more bytes came than the {wanted.size:,} that the manifest lists; the rest was not read"
            )
        durable.append(part, block)
        lacking -= len(block)


def _size(path: Path) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0
