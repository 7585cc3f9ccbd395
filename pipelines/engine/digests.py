"""Digests of files, remembered by stat signature, so that planning hashes only what may have changed.

The one idea: (size, modification time, change time, inode) stands for the bytes while *planning*. Whatever
differs is hashed again; whatever is read for work is hashed anyway; `verify` trusts nothing here. Losing the
file costs time, never correctness.

A signature is believed only if it is older than now: a file that was changed within the last tick of its file system's
clock, or whose times lie ahead because the clock was set back, may change again and keep them.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from model import durable
from pipelines.engine import sealed

_TICK_NS = 50_000_000  # a file changed within one tick after it was hashed would keep its time stamps


class Digests:
    """SHA-256 by path, for one work directory. `save` keeps what was learned for the next process."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._known: dict[str, list] = {}
        self._changed = False
        try:
            self._known = sealed.unseal(file)["files"]
        except FileNotFoundError:
            pass  # a cache: what is not there is hashed again
        except sealed.Broken:
            self._changed = True  # and written again

    def of(self, path: Path) -> str:
        """The SHA-256 of `path`. FileNotFoundError if it is not there."""
        signature = _signature(path)
        known = self._known.get(str(path))
        if known and known[:-1] == signature and _settled(signature):
            return known[-1]
        sha256 = durable.sha256(path)
        if _signature(path) == signature:  # else it was changed while it was read: nobody knows which bytes were
            self.learn(path, sha256)
        return sha256

    def learn(self, path: Path, sha256: str) -> None:
        """Remember a digest that was just computed of `path`, as it is now."""
        signature = _signature(path)
        if _settled(signature):
            self._known[str(path)] = [*signature, sha256]
            self._changed = True

    def forget_the_gone(self) -> None:
        """Drop and save: what is known of files that are not there any more."""
        gone = [path for path in self._known if not os.path.lexists(path)]
        for path in gone:
            del self._known[path]
        self._changed |= bool(gone)
        self.save()

    def save(self) -> None:
        """Write what was learned. The last of several processes wins, which loses nothing but time."""
        if self._changed and self._file.parent.is_dir():
            if self._file.is_dir():
                durable.remove(self._file)
            durable.write_bytes(self._file, sealed.seal({"files": self._known}))
            durable.sweep_drafts(self._file)
            self._changed = False


def _signature(path: Path) -> list[int]:
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _settled(signature: list[int]) -> bool:
    """Whether a change from now on would show in the signature."""
    return time.time_ns() - signature[2] > _TICK_NS
