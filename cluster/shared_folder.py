"""Whether this host sees a folder as the host does that stamped it.

The one idea: a stamp is a file with a fresh name, so no network file system can have cached it, or its absence. Who
finds it sees the same folder, in a state at least as new as the stamp. `pipelines/stamps.py` writes stamps; whoever
is about to work checks one first.
"""

from __future__ import annotations

import socket
import time
from pathlib import Path

STAMPS = "stamps"  # folder for stamps, below the shared folder
_POLL = 0.5  # seconds between two looks


class NotShared(ConnectionError):
    """This host does not see the folder, or sees another one, or an older state of it. The message says what it sees."""


def check(folder: str | Path, stamp: str, patience: float = 5.0) -> None:
    """NotShared unless `stamp` can be read in `folder` from this host, within `patience` seconds."""
    end = time.monotonic() + patience
    while (wrong := _wrong(Path(folder), stamp)) and time.monotonic() < end:
        time.sleep(min(_POLL, patience))
    if wrong:
        raise NotShared(
            f"host {socket.gethostname()} {wrong}\n"
            f"next: mount the same shared file system at {folder} on every node, then give the command again"
        )


def _wrong(folder: Path, stamp: str) -> str | None:
    """What this host sees instead of the stamp; None if it sees the stamp, whole."""
    if not folder.is_dir():
        return f"does not see the work directory {folder}: there is no such folder on it"
    try:
        found = (folder / STAMPS / stamp).read_text()
    except FileNotFoundError:
        known = sorted(path.name for path in (folder / STAMPS).glob("[!.]*"))
        seen = f"{len(known)} older ones, such as {known[-1]}" if known else "none at all"
        return (
            f"sees a folder {folder}, but not the stamp {stamp} in it (there: {seen}): "
            "it is another folder of the same name, or an older state of this one"
        )
    except OSError as error:
        return f"cannot read the work directory {folder}: {error.strerror}"
    return None if found == stamp else f"sees only part of the stamp {folder / STAMPS / stamp}"
