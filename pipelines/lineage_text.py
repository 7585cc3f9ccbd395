"""Which source files hold a text: the first half of "remove this document".

The one idea: the files are read as `shard` reads them, so a text is found in compressed files, in Parquet and in the
escapes of JSON; files of labelled data, which tasks read, are searched as they are.
"""

from __future__ import annotations

import bz2
from collections.abc import Iterable, Iterator
from pathlib import Path

from model import durable
from pipelines.documents import normalise_newlines
from pipelines.records import Text, read
from pipelines.sources import LABELLED, SourceFile, known_format, walk
from pipelines.stretches import whole


def holding(place: Path, text: str, column: str = "text") -> Iterator[tuple[Path, int]]:
    """The files at or below `place` that hold `text`, each with the line (or row) of the record that does."""
    wanted = b"".join(normalise_newlines([text.encode()]))
    for path in [place] if place.is_file() else sorted(walk(place)):
        format = known_format(path)
        if format in LABELLED:
            yield from ((path, line) for line in _in_lines(path, format, wanted))
        elif format is not None:
            yield from ((path, line) for line in _in_records(path, format, wanted, column))


def _in_records(path: Path, format: str, wanted: bytes, column: str) -> Iterator[int]:
    file = SourceFile(str(path), durable.sha256(path), path.stat().st_size, "text", format, column, "skip")
    for record in read(whole(file)):
        if isinstance(record, Text):
            before = _newlines_before(record.blocks, wanted)
            if before is not None:
                yield record.line + (before if record.spans_lines else 0)
        elif wanted.decode() in record.excerpt:  # what was skipped is there all the same
            yield record.line


def _newlines_before(blocks: Iterable[bytes], wanted: bytes) -> int | None:
    """How many lines stand before the first place of `wanted`; None if it is not there. Two blocks are in memory."""
    kept, lines = b"", 0
    for block in blocks:
        kept += block
        place = kept.find(wanted)
        if place >= 0:
            return lines + kept.count(b"\n", 0, place)
        done = max(0, len(kept) - len(wanted) + 1)
        lines, kept = lines + kept.count(b"\n", 0, done), kept[done:]
    return None


def _in_lines(path: Path, format: str, wanted: bytes) -> Iterator[int]:
    with bz2.open(path) if format.endswith(".bz2") else open(path, "rb") as lines:
        for number, line in enumerate(lines, 1):
            if wanted in line:
                yield number
