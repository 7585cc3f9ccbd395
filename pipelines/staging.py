"""Folders that appear whole, beside their place, by one rename.

The one idea: the folder is locked by whoever fills it, for as long as that process lives. So what a killed one has
left can be told from what is being filled, and goes.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from model import durable


@contextlib.contextmanager
def staging(target: Path) -> Iterator[Path]:
    """A new folder beside `target`, locked while we live; what is left of it at the end goes."""
    folder, descriptor = _made(target)
    try:
        yield folder
    finally:
        durable.remove_tree(folder)
        os.close(descriptor)


def _made(target: Path) -> tuple[Path, int]:
    """A new folder, and the descriptor that has it locked; made again if somebody swept it before it was."""
    while True:
        folder = durable.temporary(target)
        folder.mkdir()
        try:
            descriptor = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:
            continue
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if folder.exists():
            return folder, descriptor
        os.close(descriptor)


def sweep(folder: Path, names: str = "*") -> None:
    """Remove what killed processes have left in `folder` of staging for targets of these names (a glob pattern)."""
    for left in folder.glob(f".{names}.*.tmp"):
        try:
            descriptor = os.open(left, os.O_RDONLY)
        except FileNotFoundError:
            continue  # it got its name just now, or was swept by somebody else
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            durable.remove_tree(left)
        except BlockingIOError:
            continue  # somebody is at work in it
        finally:
            os.close(descriptor)
