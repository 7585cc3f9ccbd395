"""A work directory in use, or being cleaned: any number of users at once, and a cleaner alone.

The one idea: user and cleaner each write their mark into one folder (`WORK/gc/lease`) before they look there for the
other's, so that of any two at least one sees the other, on any host: writing into a folder also makes a network file
system forget an old listing of it. A cleaner who sees a living user leaves. A user who sees a cleaner waits for it, or
overtakes a dead one; and since a cleaner removes by renaming into its attempt's folder, an overtaken one that wakes
removes nothing.

A user that was taken for dead is shut out as well: its mark is removed and the steps it owned are fenced *before*
anything goes, and before each step it hard-links its mark into the attempt, which then fails.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from model import durable
from pipelines.engine import lease as leases
from pipelines.engine import sealed
from pipelines.engine.lease import Busy, Held, Overtaken, Owner

FOLDER = "gc"
TRASH = "trash"
_MARK = "user-"
_MARKS_KEPT = 50  # generations of cleaners whose marks stay
_LOOK = 0.2  # seconds between two looks at those who may be dead


class Use:
    """The mark of one user, kept alive by a thread until `end`."""

    def __init__(self, root: Path, seconds: float) -> None:
        self._root = root
        token = f"{_MARK}{secrets.token_hex(6)}"
        self._file = root / FOLDER / "lease" / f"{token}.json"
        durable.create_bytes(self._file, sealed.seal(asdict(leases.this_process(token))))
        durable.sweep_drafts(self._file, like=f".{_MARK}*.tmp")
        self._stop = threading.Event()
        self._beat = threading.Thread(target=self._keep_alive, args=(seconds / 4,), daemon=True, name="use")
        self._beat.start()

    def _keep_alive(self, interval: float) -> None:
        while not self._stop.wait(interval):
            with contextlib.suppress(OSError):  # as a lease's: a hiccup must not end the sign of life
                leases.touch(self._file)

    def confirm(self, scratch: Path) -> None:
        """That nothing was removed since this user looked. Overtaken if it was taken for dead."""
        try:
            durable.link(self._file, scratch / "user.json")
        except FileNotFoundError as error:
            raise Overtaken(
                f"{self._root} was cleaned while this process made no sign of life; give the same command again"
            ) from error

    def end(self) -> None:
        """Nothing that was planned is needed any more."""
        self._stop.set()
        self._beat.join()
        self._file.unlink(missing_ok=True)


@contextlib.contextmanager
def using(root: Path, seconds: float, on_wait: Callable[[Owner], None]) -> Iterator[Use]:
    """Use the work directory: what is there when this yields stays until the end. Waits for a cleaner."""
    folder = _prepared(root)
    _sweep(folder)
    use = Use(root, seconds)
    try:
        if leases.held(folder):
            leases.acquire(folder, seconds, on_wait=on_wait).release()
        yield use
    finally:
        use.end()


@contextlib.contextmanager
def cleaning(root: Path, seconds: float, on_wait: Callable[[Owner], None]) -> Iterator[Path]:
    """Be alone in the work directory; yields a folder to move into what goes. Busy names a living user.

    What was moved is deleted by `empty_trash`, when others may come in again. Overtaken if this process was taken for dead.
    """
    folder = _prepared(root)
    dead = _motionless(root, seconds)
    lease = leases.acquire(folder, seconds, on_wait=on_wait)
    try:
        _shut_out_the_dead(root, dead, seconds)
        (lease.attempt / TRASH).mkdir()
        yield lease.attempt / TRASH
        durable.rename(lease.attempt / TRASH, folder / TRASH / lease.owner.token)
        leases.clear_marks(folder, _MARKS_KEPT)
    except (FileNotFoundError, NotADirectoryError) as error:
        if lease.attempt.is_dir():
            raise
        raise Overtaken(f"cleaning {root} was taken over: this process made no sign of life; run it again") from error
    finally:
        lease.release()


def empty_trash(root: Path) -> None:
    """Delete what cleaners have moved away; also what one that was killed has left."""
    trash = root / FOLDER / TRASH
    for path in sorted(trash.iterdir()) if trash.is_dir() else ():
        durable.remove(path)


def left_in_trash(root: Path) -> list[Path]:
    """What killed cleaners have moved away and not deleted."""
    places = [root / FOLDER / TRASH, *(root / FOLDER / "attempts").glob(f"*/{TRASH}")]
    return [path for place in places if place.is_dir() for path in place.iterdir()]


def _prepared(root: Path) -> Path:
    folder = root / FOLDER
    for name in ("lease", "attempts", TRASH):
        (folder / name).mkdir(parents=True, exist_ok=True)
    return folder


def _marks(root: Path) -> dict[Path, Owner]:
    """Every user's mark, and whom it names."""
    return {path: leases.owner_in(path) for path in sorted((root / FOLDER / "lease").glob(f"{_MARK}*.json"))}


def _sweep(folder: Path) -> None:
    """Remove the marks of users on this host that are gone."""
    for mark, owner in _marks(folder.parent).items():
        if leases.is_gone(owner):
            mark.unlink(missing_ok=True)


def _shut_out_the_dead(root: Path, dead: dict[Path, int | None], seconds: float) -> None:
    """Remove the marks and fence the steps of all who are dead: gone, or seen motionless. Busy if anybody else is here."""
    before = _held(root)
    marks = _marks(root)  # a user who comes after this listing sees the cleaner's lease, and waits
    for file, owner in (marks | {lease.file: lease.owner for lease in before.values()}).items():
        if not leases.is_gone(owner) and (file not in dead or dead[file] != _stamp(file)):
            raise Busy(_in_use(root, owner))
    for mark in marks:
        mark.unlink(missing_ok=True)
    # Listed again: whoever took a step before its mark was gone is seen now, and lives.
    for folder, lease in _held(root).items():
        if folder not in before or lease.generation != before[folder].generation:
            raise Busy(_in_use(root, lease.owner))
        fence = leases.overtake(folder, lease.generation, seconds)
        if fence is None:
            raise Busy(_in_use(root, lease.owner))
        fence.release()


def _held(root: Path) -> dict[Path, Held]:
    """All that is owned below the work directory: steps, and models that are being retrained."""
    folders = [folder for kind in ("steps", "retrain") for folder in sorted((root / kind).glob("*"))]
    found = {folder: leases.held(folder) for folder in folders if (folder / "lease").is_dir()}
    return {folder: lease for folder, lease in found.items() if lease is not None}


def _motionless(root: Path, seconds: float) -> dict[Path, int | None]:
    """The signs of life of users that cannot be looked up from here, if none changed for `seconds`. Busy names one who lives.

    Nobody is kept waiting by this: the cleaner has no lease yet.
    """
    _sweep(root / FOLDER)
    stamps: dict[Path, int | None] | None = None
    since = time.monotonic()
    while True:
        owners = _marks(root) | {lease.file: lease.owner for lease in _held(root).values()}
        unsure = {file: owner for file, owner in owners.items() if not leases.is_gone(owner)}
        now = {file: _stamp(file) for file in unsure}
        stamps = now if stamps is None else stamps
        for file, owner in unsure.items():
            if leases.is_here(owner) or now[file] != stamps.get(file):
                raise Busy(_in_use(root, owner))
        if not unsure or time.monotonic() - since > seconds:
            return now
        time.sleep(min(_LOOK, seconds / 8))


def _stamp(file: Path) -> int | None:
    try:
        return file.stat().st_mtime_ns
    except FileNotFoundError:
        return None


def _in_use(root: Path, owner: Owner) -> str:
    return f"{root} is in use by {owner}: nothing was removed; try again when it is done"
