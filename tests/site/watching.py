"""What every process of this machine was started with while something ran: command lines and environments, sampled.

The one idea: secrets are searched for in what was really there, by their bytes, in each form that tools give them:
as they are, escaped as in an address, and in base64 as in an HTTP header. A process that lives for less than a tenth of
a second may be missed.
"""

from __future__ import annotations

import base64
import contextlib
import os
import threading
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

_PAUSE = 0.05  # seconds between two looks


def forms(secret: str, users: Iterable[str] = ()) -> set[bytes]:
    """The secret as it may be written down: also as the password of these users in a header."""
    escaped = {urllib.parse.quote(secret, safe=""), urllib.parse.quote_plus(secret)}
    headers = {base64.b64encode(f"{user}:{secret}".encode()) for user in users}
    texts = {secret, secret.replace("%", "%%"), *escaped}  # doubled in settings files of Python's
    return {text.encode() for text in texts} | headers | {base64.b64encode(secret.encode()).rstrip(b"=")}


def files_below(folder: Path) -> Iterator[Path]:
    """All files, also those in folders that come and go meanwhile."""
    for root, _, names in os.walk(folder):
        yield from (Path(root, name) for name in names)


def holding(paths: Iterable[Path], secrets: Mapping[str, set[bytes]]) -> dict[str, set[Path]]:
    """By the name of each secret the plain files that hold it, in any of its forms. Each file is read once."""
    found: dict[str, set[Path]] = {name: set() for name in secrets}
    for path in paths:
        if not path.is_file() or path.is_symlink():
            continue
        content = path.read_bytes()
        for name, written in secrets.items():
            if any(form in content for form in written):
                found[name].add(path)
    return found


@dataclass
class Watch:
    """Every command line and every environment that was seen. `processes` says how many processes."""

    commands: set[bytes] = field(default_factory=set)
    environments: set[bytes] = field(default_factory=set)
    processes: set[int] = field(default_factory=set)

    def look(self) -> None:
        """Look at every process once."""
        for name in os.listdir("/proc"):
            if not name.isdigit():
                continue
            with contextlib.suppress(OSError):  # it has ended, or is not ours
                self.commands.add(Path("/proc", name, "cmdline").read_bytes())
                self.environments.add(Path("/proc", name, "environ").read_bytes())
                self.processes.add(int(name))

    def with_secret(self, written: set[bytes]) -> list[bytes]:
        """The command lines that hold it."""
        return [line for line in self.commands if any(form in line for form in written)]

    def variables(self, written: set[bytes]) -> set[tuple[str, bool]]:
        """The names of the variables that hold it, each with whether its process is one of an MLflow server."""
        found = set()
        for environment in self.environments:
            server = b"MLFLOW_BACKEND_STORE_URI=" in environment
            for variable in environment.split(b"\0"):
                if any(form in variable for form in written):
                    found.add((variable.partition(b"=")[0].decode(), server))
        return found


@contextlib.contextmanager
def watching() -> Iterator[Watch]:
    """Look again and again for the duration of the `with` block."""
    watch, enough = Watch(), threading.Event()

    def look_on() -> None:
        while not enough.wait(_PAUSE):
            watch.look()

    watcher = threading.Thread(target=look_on, daemon=True)
    watcher.start()
    try:
        yield watch
    finally:
        enough.set()
        watcher.join()
