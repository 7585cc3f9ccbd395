"""Stretches: what one task reads of one source file, and the proof that it is what was planned.

The one idea: whatever is read is checked. Bytes are hashed on their way; what cannot be (the row groups of a large
Parquet file, a dataset) was hashed whole when it was cut, and must not have been touched since.
"""

from __future__ import annotations

import hashlib
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model import durable
from pipelines.sources import DATASET, SourceError, SourceFile, source_file

BLOCK = 1 << 20  # bytes


def changed(path: str) -> SourceError:
    """The error for a source file that is not the one that was planned."""
    return SourceError(
        f"{path} was changed or removed after this run was planned; run again to plan with what is there now"
    )


def unreadable(path: str, error: BaseException) -> SourceError:
    """The error for a source that the disk or the network does not give: never a bad record that may be skipped."""
    return SourceError(f"{path} cannot be read: {error}; the data may be whole, so nothing is skipped. Run again")


@dataclass(frozen=True)
class Stretch:
    """A stretch of one source file that one task reads.

    `start` and `stop` count bytes of plain files, row groups of Parquet files, shards of datasets; compressed
    files are read whole. `sha256` is of the bytes of the stretch, where it has bytes of its own, else the file's.
    """

    file: SourceFile
    sha256: str
    start: int
    stop: int | None  # None: to the end
    first_line: int = 1
    size: int = 0  # about how many bytes of the source it is, for progress
    modified: int = 0  # newest time stamp, in ns, when the whole was hashed; 0: hashed while it is read

    @property
    def identity(self) -> list[Any]:
        """What is read, wherever it lies. Bytes say it themselves; row groups and shards need their numbers."""
        file = {key: value for key, value in self.file.identity.items() if key not in ("sha256", "size")}
        within = [self.start, self.stop] if self.file.format in ("parquet", DATASET) else []
        return [self.sha256, self.first_line, *within, file]

    @property
    def name(self) -> str:
        """How the stretch is called in the `source` column: its label and the beginning of its digest."""
        shard = f"/{self.start}" if self.file.format == DATASET else ""
        return f"{self.file.label}:{self.sha256[:12]}{shard}"


def whole(file: SourceFile) -> Stretch:
    """The stretch that is all of a file."""
    return Stretch(file, file.sha256, 0, None, size=file.size)


def stretch_from(value: dict[str, Any]) -> Stretch:
    """A Stretch from its JSON, as tasks receive it."""
    return Stretch(**{**value, "file": source_file(value["file"])})


def modified(path: str) -> int:
    """The newest time stamp of a file, or of the files of a folder, in ns; 0 for what is not on this disk."""
    if not os.path.exists(path):
        return 0
    files = (
        [path]
        if os.path.isfile(path)
        else [os.path.join(root, name) for root, _, names in os.walk(path) for name in names]
    )
    return max(os.stat(file).st_mtime_ns for file in files)


def check_unchanged(stretch: Stretch) -> None:
    """SourceError if a file that cannot be hashed on its way is no longer what was planned."""
    file = stretch.file
    if stretch.modified:
        same = modified(file.path) == stretch.modified
    else:
        same = file.format == DATASET or _sha256(file.path) == stretch.sha256
    if not same:
        raise changed(file.path)


def _sha256(path: str) -> str:
    try:
        return durable.sha256(Path(path))
    except FileNotFoundError:
        raise changed(path) from None
    except OSError as error:
        raise unreadable(path, error) from error


class Checked(io.RawIOBase):
    """The bytes of a stretch, hashed while they are read; `check` compares them with what was planned."""

    def __init__(self, stretch: Stretch) -> None:
        self._stretch = stretch
        self._digest = hashlib.sha256()
        try:
            self._file = open(stretch.file.path, "rb", buffering=0)  # noqa: SIM115  # closed by close()
        except FileNotFoundError:
            raise changed(stretch.file.path) from None
        except OSError as error:
            raise unreadable(stretch.file.path, error) from error
        self._file.seek(stretch.start)
        self._left = (os.fstat(self._file.fileno()).st_size if stretch.stop is None else stretch.stop) - stretch.start

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)[: self._left]
        try:
            size = self._file.readinto(view) if self._left else 0
        except OSError as error:
            raise unreadable(self._stretch.file.path, error) from error
        self._digest.update(view[:size])
        self._left -= size
        return size

    def check(self) -> None:
        """Read what is left and compare. SourceError if the file was changed since it was planned."""
        scratch = bytearray(BLOCK)
        while self.readinto(scratch):
            pass
        if self._digest.hexdigest() != self._stretch.sha256:
            raise changed(self._stretch.file.path)

    def close(self) -> None:
        self._file.close()
        super().close()
