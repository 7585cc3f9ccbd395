"""What no pull has used for long leaves the model cache.

The one idea: a package's manifest in the cache says by its time when it was last pulled. Old ones go, then the files
that no manifest lists. Folders that were pulled keep their files: a hard link is a file of its own.
"""

from __future__ import annotations

import contextlib
import logging
import re
import time
from collections.abc import Collection
from pathlib import Path

from model import durable
from pipelines.package import PackageDamaged, read_manifest

_DAY = 86400.0  # seconds
_HOUR = 3600.0
log = logging.getLogger(__name__)


def clean(cache: Path, days: float, keep: Collection[str] = ()) -> int:
    """Remove the packages that were not pulled for `days` (0: none) and are not in `keep` (digests); bytes freed."""
    if not days or not (cache / "packages").is_dir():
        return 0
    now, listed = time.time(), set()
    for manifest in list((cache / "packages").glob("*.json")):
        if manifest.stem in keep or now - manifest.stat().st_mtime < days * _DAY:
            listed |= _files(manifest)
        else:
            manifest.unlink(missing_ok=True)
    freed = 0
    for path in [*cache.iterdir(), *(cache / "packages").iterdir(), *(cache / "resolved").iterdir()]:
        name = re.fullmatch(r"([0-9a-f]{64})(\.part)?", path.name)
        draft = path.name.startswith(".") and path.name.endswith(".tmp")  # of a pull that was killed
        if draft or (name and name[1] not in listed):
            freed += _removed(path, now)
    if freed:
        log.warning("%s: %.1f MB that no pull had used for %g days were removed", cache, freed / 1e6, days)
    return freed


def _files(manifest: Path) -> set[str]:
    with contextlib.suppress(PackageDamaged, FileNotFoundError):
        return {file["sha256"] for file in read_manifest(manifest)["files"].values()}
    return set()


def _removed(path: Path, now: float) -> int:
    """Remove a file that nobody needs, unless it changed within the hour: then somebody may be at work with it."""
    with contextlib.suppress(FileNotFoundError):
        status = path.stat()
        if now - status.st_ctime >= _HOUR:
            durable.remove(path)
            if (path.parent / "locks").is_dir():
                durable.remove(path.parent / "locks" / path.name.removesuffix(".part"))
            return status.st_size
    return 0
