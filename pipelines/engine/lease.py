"""One owner at a time, and whoever was overtaken cannot publish.

The one idea: ownership is a sequence of generations. `lease/000007.json` is created by a hard link, so exactly
one of several candidates becomes owner 7. It then renames the attempt folders of all earlier generations away
and puts a tombstone file at each name. An overtaken owner, however late it wakes, finds that the folder it
publishes *from* is gone: its hard link or rename fails with FileNotFoundError. No token is compared at
publication, because comparing and then renaming is a race.

Whatever a candidate drafts lies in its own attempt folder, so that a kill leaves litter only where the next owner sweeps.

An owner is alive while the time stamp of its lease file keeps changing, measured by the watcher's own
monotonic clock (no clocks of two hosts are compared), or dead at once if it ran on this host and its process
is gone.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from model import durable
from pipelines.engine import sealed

_TOKEN = re.compile(r"(\d{6,})-[0-9a-f]{8}")  # generation and a random part: the name of an attempt
_POLL = 0.5  # seconds between two looks at somebody else's lease


class Busy(RuntimeError):
    """Somebody else owns the step. The message names the owner."""


class Overtaken(RuntimeError):
    """This process was taken for dead and its work was given to another owner."""


@dataclass(frozen=True)
class Owner:
    """Who holds a lease: enough to name it, and to see whether its process still runs."""

    token: str
    host: str
    space: str
    pid: int
    started: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} (attempt {self.token})"


@dataclass(frozen=True)
class Held:
    """A lease that was not given back: the owner's generation, the file that is its sign of life, and who it is."""

    generation: int
    file: Path
    owner: Owner


def _process_start(pid: int) -> str | None:
    """The kernel's start time of a process, which tells a living owner from a reused process id."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, *fields = stat.rpartition(")")[2].split()
    return None if state in "ZX" else fields[18]


def _process_space() -> str:
    """What process ids mean: this boot of this kernel, and the namespace of process ids (containers have their own)."""
    return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"


def is_gone(owner: Owner) -> bool:
    """True only if the owner's process id can be looked up from here, and it is gone."""
    return owner.space == _process_space() and _process_start(owner.pid) != owner.started


def is_here(owner: Owner) -> bool:
    """True only if the owner's process id can be looked up from here, and it runs."""
    return owner.space == _process_space() and _process_start(owner.pid) == owner.started


def touch(file: Path) -> None:
    """The sign of life of whom the file names."""
    os.utime(file)


class Lease:
    """The right to work on one step, kept alive by a thread until `release`."""

    def __init__(self, folder: Path, generation: int, owner: Owner, seconds: float) -> None:
        self.folder, self.generation, self.owner = folder, generation, owner
        self.attempt = folder / "attempts" / owner.token
        self._file = _lease_file(folder, generation)
        self._stop = threading.Event()
        self._beat = threading.Thread(target=self._keep_alive, args=(seconds / 4,), daemon=True, name="lease")

    def _keep_alive(self, interval: float) -> None:
        while not self._stop.wait(interval):
            with contextlib.suppress(OSError):  # a file system that hiccups must not end the sign of life
                touch(self._file)

    def release(self, keep_attempt: bool = False) -> None:
        """Give the step back. The attempt folder goes, unless it is kept to be looked at after a failure."""
        self._stop.set()
        self._beat.join()
        if not self.attempt.is_dir():
            return  # overtaken: the step is the new owner's, who counts from 1 again if it was removed meanwhile
        if not keep_attempt:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # overtaken just now
                durable.remove_tree(self.attempt)
        # Beside the lease, not instead of it: a slow candidate must never find this generation's name free again.
        durable.link(self._file, self._file.with_suffix(".released"))


def acquire(
    folder: Path, seconds: float, wait: bool = True, on_wait: Callable[[Owner], None] = lambda owner: None
) -> Lease:
    """Become the owner of the step in `folder`; its `attempt` folder exists when this returns.

    `seconds` without a sign of life make an owner on another host count as dead. With `wait`, a living owner
    is waited for (`on_wait` is told who it is, once); otherwise Busy names it.
    """
    (folder / "lease").mkdir(parents=True, exist_ok=True)
    (folder / "attempts").mkdir(exist_ok=True)
    told = None
    watched: tuple[int, int] | None = None  # (generation, time stamp) seen last
    since = time.monotonic()
    while True:
        generation, owner, stamp = _current(folder)
        if (generation, stamp) != watched:
            watched, since = (generation, stamp), time.monotonic()
        if owner is None or is_gone(owner) or time.monotonic() - since > seconds:
            lease = overtake(folder, generation, seconds)
            if lease is not None:
                return lease
            continue
        if not wait:
            raise Busy(f"{folder.name} is being worked on by {owner}; wait for it or stop it")
        if told != owner:
            on_wait(owner)
            told = owner
        time.sleep(min(_POLL, seconds / 4))


def overtake(folder: Path, generation: int, seconds: float) -> Lease | None:
    """Own the step after owner `generation`, whom the caller has seen dead; None if somebody else was faster."""
    lease = _claim(folder, generation + 1, seconds)
    if lease is not None and _latest(folder)[0] > generation + 1:
        lease.release()  # the name was free because old marks were cleared: many have owned the step meanwhile
        return None
    return lease


def held(folder: Path) -> Held | None:
    """The lease as it is held now, by the living or the dead; None if nobody has taken it or it was given back."""
    generation, released = _latest(folder)
    file = _lease_file(folder, generation)
    return None if generation == 0 or released else Held(generation, file, owner_in(file))


def clear_marks(folder: Path, keep: int) -> None:
    """Remove the marks of all but the last `keep` generations, for a lease that is taken for years. Owner only."""
    newest = _latest(folder)[0]
    for path in [*(folder / "lease").iterdir(), *(folder / "attempts").iterdir()]:
        found = re.match(r"(\d{6,})[.-]", path.name)
        if found and int(found[1]) <= newest - keep and path.is_file():
            path.unlink(missing_ok=True)


def current_owner(folder: Path) -> Owner | None:
    """Who holds the lease now, as far as can be seen without waiting; None if nobody or a dead process."""
    if not (folder / "lease").is_dir():
        return None
    owner = _current(folder)[1]
    return None if owner is None or is_gone(owner) else owner


def latest_owner(folder: Path) -> Owner:
    """Who was the last to take the lease, whether or not it has given it back."""
    return owner_in(_lease_file(folder, _latest(folder)[0]))


def _lease_file(folder: Path, generation: int) -> Path:
    return folder / "lease" / f"{generation:06d}.json"


def _latest(folder: Path) -> tuple[int, bool]:
    """The latest generation, 0 if there was none, and whether it was given back."""
    names = {name for name in os.listdir(folder / "lease") if re.fullmatch(r"\d{6,}\.(json|released)", name)}
    generation = max((int(name.partition(".")[0]) for name in names), default=0)
    return generation, f"{generation:06d}.released" in names


def _current(folder: Path) -> tuple[int, Owner | None, int]:
    """(latest generation, its owner or None if released, time stamp of its lease file)."""
    generation, released = _latest(folder)
    if generation == 0 or released:
        return generation, None, 0
    file = _lease_file(folder, generation)
    return generation, owner_in(file), file.stat().st_mtime_ns


def owner_in(file: Path) -> Owner:
    """Whom a lease file or a mark names. A damaged one still says by its time stamp whether its owner is alive."""
    try:
        return Owner(**sealed.unseal(file))
    except (FileNotFoundError, sealed.Broken):
        return Owner("whose lease file is damaged", "an unknown host", "", 0, "")


def _claim(folder: Path, generation: int, seconds: float) -> Lease | None:
    """Take generation `generation`, or None if another candidate was faster."""
    token = f"{generation:06d}-{secrets.token_hex(4)}"
    owner = Owner(token, socket.gethostname(), _process_space(), os.getpid(), _process_start(os.getpid()) or "")
    # The attempt exists before the lease does: whoever overtakes us later always finds it to rename.
    attempt = folder / "attempts" / token
    attempt.mkdir()
    try:
        durable.create_bytes(_lease_file(folder, generation), sealed.seal(asdict(owner)), scratch=attempt)
    except (FileExistsError, FileNotFoundError, NotADirectoryError):  # lost; the winner may have swept us away already
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            attempt.rmdir()
        return None
    _fence(folder / "attempts", generation, token)
    lease = Lease(folder, generation, owner, seconds)
    lease._beat.start()
    return lease


def _fence(attempts: Path, generation: int, token: str) -> None:
    """Make publication impossible for all attempts but `token` of no later generation, then throw their files away.

    Of this generation too: a lease file that somebody deleted frees its name for a second owner.
    """
    for attempt in sorted(attempts.iterdir()):
        fenced, found = attempt.suffix == ".fenced", _TOKEN.match(attempt.name)
        if fenced and found:
            # A kill came between the renaming and the tombstone, or workers of the dead wrote there for seconds.
            _stand_tombstone(attempts / found[0], attempt)
        elif attempt.name.startswith("."):
            durable.discard(attempt)  # left by a kill during removal
        elif found and attempt.is_dir() and attempt.name != token and int(found[1]) <= generation:
            _bury(attempt)


def _bury(attempt: Path) -> None:
    """Rename an attempt away and stand a file in its place, which no late `mkdir` can undo."""
    while not attempt.is_file():
        fenced = attempt.with_name(f"{attempt.name}-{secrets.token_hex(2)}.fenced")
        with contextlib.suppress(FileNotFoundError):  # a competing owner renamed it; the tombstone still has to stand
            durable.rename(attempt, fenced)
        _stand_tombstone(attempt, fenced)


def _stand_tombstone(attempt: Path, fenced: Path) -> None:
    """The tombstone first: as long as it is missing, the fenced folder is there to tell the next owner of it."""
    with contextlib.suppress(FileExistsError):
        durable.create_bytes(
            attempt,
            b"This attempt was overtaken; its owner can publish nothing.\n",
            scratch=fenced if fenced.is_dir() else None,
        )
    durable.discard(fenced)


def this_process(token: str) -> Owner:
    """This process as the owner of something else than a step, such as an MLflow run."""
    return Owner(token, socket.gethostname(), _process_space(), os.getpid(), _process_start(os.getpid()) or "")


def is_dead(owner: Owner) -> bool:
    """Whether an owner is certainly gone: its process, seen from here, or its machine, which was started again since."""
    restarted = owner.host == socket.gethostname() and owner.space.split()[0] != _process_space().split()[0]
    return restarted or is_gone(owner)
