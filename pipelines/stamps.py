"""Stamps in a shared folder, by which other hosts see that it is the same folder, and no older state of it.

The one idea: a stamp has a fresh name each time (see `cluster/shared_folder.py`, which checks it). Those of many runs
lie side by side; what is a month old is removed, unless whoever needs it for longer renews it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from cluster.shared_folder import STAMPS
from model import durable

_KEPT = 30 * 24 * 3600  # seconds, by the file system's clock


def stamp(folder: Path) -> str:
    """Write a fresh stamp into `folder`, which is made if need be, and return it once others can see it."""
    stamps = folder / STAMPS
    stamps.mkdir(parents=True, exist_ok=True)
    fresh = secrets.token_hex(8)
    durable.write_bytes(stamps / fresh, fresh.encode())
    newest = (stamps / fresh).stat().st_mtime
    for path in stamps.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another run removes it at the same time
            if newest - path.stat().st_mtime > _KEPT:
                durable.remove(path)
    return fresh


def renew(folder: Path, stamp: str) -> bool:
    """Make a stamp as old as if it were written now; False if it is not there any more."""
    try:
        os.utime(folder / STAMPS / stamp)  # without a time: the file system's clock
    except FileNotFoundError:
        return False
    return True
