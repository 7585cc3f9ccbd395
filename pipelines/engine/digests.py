"""Digests of files, remembered by stat signature, so that planning hashes only what may have changed.

The one idea: (size, modification time, change time, inode) stands for the bytes while *planning*. Whatever
differs is hashed again; whatever is read for work is hashed anyway; `verify` trusts nothing here. Losing the
file costs time, never correctness.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from model import durable

# A file changed within one tick of the file system's clock after it was hashed would keep its time stamps.
_TICK_NS = 50_000_000


class Digests:
    """SHA-256 by path, for one work directory. `save` keeps what was learned for the next process."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._known: dict[str, list] = {}
        self._changed = False
        with contextlib.suppress(FileNotFoundError, ValueError):  # a cache: what is not there is hashed again
            self._known = durable.read_json(file)

    def of(self, path: Path) -> str:
        """The SHA-256 of `path`. FileNotFoundError if it is not there."""
        signature = _signature(path)
        known = self._known.get(str(path))
        if known and known[:-1] == signature:
            return known[-1]
        sha256 = durable.sha256(path)
        self.learn(path, sha256)
        return sha256

    def learn(self, path: Path, sha256: str) -> None:
        """Remember a digest that was just computed of `path`, as it is now."""
        signature = _signature(path)
        if time.time_ns() - signature[2] > _TICK_NS:
            self._known[str(path)] = [*signature, sha256]
            self._changed = True

    def save(self) -> None:
        """Write what was learned. The last of several processes wins, which loses nothing but time."""
        if self._changed and self._file.parent.is_dir():
            durable.write_json(self._file, self._known)
            self._changed = False


def _signature(path: Path) -> list[int]:
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
