"""Files that survive a crash: the only module that renames, links and fsyncs.

The one idea: a name either does not exist or holds all of its bytes. Everything durable is written to a
temporary name first, flushed to the disk (fsync), and only then given its real name by one atomic call:

- `rename` replaces (pointers, caches, published folders),
- `link` refuses an existing name (leases, records, units): of two writers exactly one wins.

The folder is fsynced after either, or a power cut could forget the new name. Nothing here creates parent
folders: a folder that was taken away from an overtaken owner (see `pipelines/engine/lease.py`) must stay
away, and its late writers must fail with FileNotFoundError.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

_CHUNK = 1 << 20  # bytes read at a time when hashing; larger reads gain nothing here


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """An error of the disk names its file: the calls that take a descriptor do not."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def fsync(path: Path) -> None:
    """Flush a file's bytes, or a folder's names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with _naming(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flushed_sha256(path: Path) -> str:
    """Flush a file's bytes to the disk and return their SHA-256: the disk and the processor work at the same time."""
    with ThreadPoolExecutor(1) as pool:
        digest = pool.submit(sha256, path)
        fsync(path)
        return digest.result()


def below(folder: Path) -> Iterator[Path]:
    """Every path below `folder`, by name; links are not followed. OSError where a folder cannot be read.

    What becomes durable is found by this and not by `Path.rglob` or `os.walk`, which pass over what they may not read.
    """
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            yield Path(entry.path)
            if entry.is_dir(follow_symlinks=False):
                with contextlib.suppress(FileNotFoundError):  # it goes meanwhile
                    yield from below(Path(entry.path))


def fsync_tree(folder: Path) -> None:
    """Flush every file and folder below `folder`, and `folder` itself."""
    for path in [*below(folder), folder]:
        fsync(path)


def rename(source: Path, target: Path) -> None:
    """Give `source` the name `target`, replacing a file there (never a folder that is not empty)."""
    os.rename(source, target)
    fsync(target.parent)
    if source.parent != target.parent and source.parent.exists():
        fsync(source.parent)


def link(source: Path, target: Path) -> None:
    """Give `source` a second name. FileExistsError if `target` exists, FileNotFoundError if `source` is gone."""
    os.link(source, target)
    fsync(target.parent)


def gather(paths: Sequence[Path], into: Path) -> None:
    """Move files and folders into the folder `into`, in this order, numbered; each folder is flushed once, at the end.

    FileNotFoundError (or NotADirectoryError) if `into` was taken away: nothing is moved from then on. What is gone already is passed over.
    """
    for number, path in enumerate(paths):
        try:
            os.rename(path, into / f"{number:06d}-{path.name.lstrip('.')}")
        except (FileNotFoundError, NotADirectoryError):
            if not into.is_dir():
                raise
    for folder in {path.parent: None for path in paths} | {into: None}:
        if folder.is_dir():
            fsync(folder)


def temporary(path: Path) -> Path:
    """A fresh name beside `path`, so that a rename or a link to it stays within one file system."""
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Yield a temporary name to write to; on a clean exit it is flushed and renamed to `path`.

    For libraries that write files themselves (Parquet, Arrow, safetensors). On an exception the
    temporary file is removed and `path` is left as it was.
    """
    draft = temporary(path)
    try:
        with _naming(draft):
            yield draft
        fsync(draft)
        rename(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, data: bytes) -> None:
    """Write `path` whole or not at all, replacing what was there."""
    with writing(path) as draft:
        draft.write_bytes(data)


def write_private(path: Path, data: bytes) -> None:
    """Write `path` whole or not at all, for its owner's eyes only (mode 0600), from the first byte on."""
    with writing(path) as draft:
        with open(draft, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(data)


def sweep_drafts(path: Path, like: str = "") -> None:
    """Remove the drafts of `path` that the dead have left: those an hour older than `path`, by the file system's clock.

    For files in folders that nobody owns; a draft lives for moments. `like` is a pattern for drafts of its siblings too.
    """
    newest = path.stat().st_mtime
    for draft in path.parent.glob(like or f".{path.name}.*.tmp"):
        with contextlib.suppress(FileNotFoundError):  # its maker is alive after all, or another sweeper was faster
            if newest - draft.stat().st_mtime > 3600:
                draft.unlink()


def create_bytes(path: Path, data: bytes, scratch: Path | None = None) -> None:
    """Write `path` whole, only if no such name exists: FileExistsError for all writers but one.

    The draft lies beside `path`, or in the folder `scratch` of the same file system, where a kill leaves no litter.
    """
    draft = temporary(scratch / path.name if scratch else path)
    try:
        with _naming(draft):
            draft.write_bytes(data)
        fsync(draft)
        link(draft, path)
    finally:
        draft.unlink(missing_ok=True)


class HashedFile:
    """A file being written that knows the size and the SHA-256 of what was given to it."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "xb")  # noqa: SIM115 (`hashing` closes it)
        self._digest = hashlib.sha256()
        self.size = 0
        self.error: OSError | None = None  # why a write failed: torch.save tells something else

    def write(self, data: Any) -> int:
        """Write some bytes, all of them."""
        self._digest.update(data)
        try:
            self.size += (count := self._file.write(data))
        except OSError as error:
            self.error = error
            raise
        return count

    def flush(self) -> None:
        """Hand what was written to the system."""
        self._file.flush()

    def close(self) -> None:
        """Hand what was written to the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def abandon(self) -> None:
        """Let go of the file after an error: what could not be written is not tried again."""
        with contextlib.suppress(OSError):
            self._file.close()

    @property
    def sha256(self) -> str:
        """The SHA-256 of what was written so far, in hex: of what should be in the file, whatever the disk made of it."""
        return self._digest.hexdigest()


@contextlib.contextmanager
def hashing(path: Path) -> Iterator[HashedFile]:
    """Yield a new file for a library that writes to file objects; on a clean exit it is flushed to the disk.

    For files of a folder that is published as a whole, so it has its name from the beginning. OSError names the file.
    """
    file = HashedFile(path)
    try:
        yield file
        file.close()
    except Exception as error:
        file.abandon()
        why = file.error or error
        if not isinstance(why, OSError) or why.filename is not None:
            raise
        raise OSError(why.errno, why.strerror, str(path)) from error  # a full disk does not say for whom


def to_json(value: Any) -> bytes:
    """`value` as readable JSON with sorted keys: equal values give equal bytes. NaN is refused."""
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


def own_digest(content: Mapping[str, Any]) -> str:
    """The SHA-256 of JSON content that states it under "sha256", without that: a manifest tells of a flipped bit in itself."""
    stated = {key: value for key, value in content.items() if key != "sha256"}
    return hashlib.sha256(to_json(stated)).hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write `value` to `path` as JSON, whole or not at all."""
    write_bytes(path, to_json(value))


def read_json(path: Path) -> Any:
    """Read a JSON file. ValueError names the file when it does not parse."""
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); it was damaged or edited by hand") from error


def append(path: Path, data: bytes) -> None:
    """Append in one write if the system takes all of it, without flushing to the disk."""
    with open(path, "ab", buffering=0) as file, _naming(path):
        _write_all(file, data)


def _write_all(file: io.FileIO, data: bytes) -> None:
    """Write all of `data`: a disk that becomes full takes a part of it first, and says so only when it is asked again."""
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]


class Log:
    """A file that one process appends to, begun anew. Who begins it again has the new file to itself.

    The old one has lost its name then, and what a late writer adds to it is seen by nobody. Not flushed to the disk: logs
    are carried by checkpoints, see `train.py`.
    """

    def __init__(self, path: Path, beginning: bytes) -> None:
        with writing(path) as draft:
            draft.write_bytes(beginning)
            self._file = open(draft, "ab", buffering=0)  # noqa: SIM115 (it stays open as long as this lives)
        self._path = path

    def append(self, data: bytes) -> None:
        """Add to the end, in one write if the system takes all of it."""
        with _naming(self._path):
            _write_all(self._file, data)


def publish_folder(staging: Path, target: Path) -> None:
    """Flush a finished folder and give it its real name with one rename. OSError if `target` has content."""
    fsync_tree(staging)
    rename(staging, target)


def remove_tree(path: Path) -> None:
    """Remove a folder and all in it: first under a temporary name, so that a kill leaves no half folder under `path`."""
    if not path.exists():
        return
    if path.name.startswith(".") and path.name.endswith(".tmp"):
        doomed = path  # it has such a name, and who sweeps looks for it
    else:
        doomed = temporary(path)
        os.rename(path, doomed)
    shutil.rmtree(doomed, onerror=_gone_is_well)


def _gone_is_well(call: Any, path: str, error: Any) -> None:
    if not isinstance(error[1], FileNotFoundError):  # which another sweeper removed meanwhile
        raise OSError(error[1].errno, error[1].strerror, path) from error[1]


def remove(path: Path) -> None:
    """Remove what has this name, a file or a folder; nothing is well too."""
    if path.is_dir() and not path.is_symlink():
        remove_tree(path)
    else:
        path.unlink(missing_ok=True)


def discard(path: Path) -> None:
    """Remove what can be removed of a file or folder that nobody needs; late writers may hold on to the rest."""
    with contextlib.suppress(NotADirectoryError, FileNotFoundError):
        path.unlink() if path.is_file() else shutil.rmtree(path, ignore_errors=True)


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file, _naming(path):
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
