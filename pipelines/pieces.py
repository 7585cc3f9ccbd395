"""Pieces: source files grouped and cut so that one piece is one task and one text unit.

The one idea: where a piece begins depends only on the content near its beginning. Small files are sorted by
digest, and a file opens a new piece when its own digest says so; so a new file changes the piece it falls into
and no other. Large files are cut at paragraph or record ends, and each stretch is known by its own bytes; so
what is appended to a file costs only its last stretch.
"""

from __future__ import annotations

import hashlib
import mmap
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from pipelines.documents import character_start
from pipelines.engine.fingerprint import canonical
from pipelines.records import is_damage, open_dataset
from pipelines.sources import DATASET, SourceFile, source_file
from pipelines.stretches import BLOCK, Stretch, changed, modified, unreadable, whole

_EXPANSION = 4  # text grows about so much when it is decompressed; only group sizes depend on it
_CAP = 4  # shards in a piece at most; one in e^4 pieces meets it
_LINE_FORMATS = ("txt", "md", "jsonl")
_PARAGRAPH_END = re.compile(rb"\n\r?\n")


@dataclass(frozen=True)
class Piece:
    """The stretches that one task reads, and the key of the unit that it makes of them."""

    key: str
    stretches: tuple[Stretch, ...]

    @property
    def size(self) -> int:
        """About how many bytes of the sources it is."""
        return sum(stretch.size for stretch in self.stretches)


def text_size(file: SourceFile) -> int:
    """About how many bytes of text a file holds."""
    return file.size * (_EXPANSION if file.format in ("jsonl.gz", "jsonl.zst") else 1)


def needs_cutting(file: SourceFile, shard_bytes: int) -> bool:
    """Whether a file is cut in stretches: large and of a format that can be, or a dataset, which has its own shards."""
    return file.format == DATASET or (file.size > shard_bytes and file.format in (*_LINE_FORMATS, "parquet"))


def group(files: Iterable[SourceFile], shard_bytes: int) -> Iterator[list[Stretch]]:
    """Pieces of whole files, in order of their digests, of about `shard_bytes` each and at most four times as much.

    A file opens a new piece with probability size / shard_bytes, drawn from its digest: pieces hold shard_bytes on
    average, and an opening does not depend on what came before. The cap is the exception; its effect ends at
    the next opening.
    """
    piece: list[Stretch] = []
    size = 0
    for file in sorted(files, key=_order):
        # The end of the digest: by its beginning the files are sorted, so all openings would lie together.
        opens = int(file.sha256[-16:], 16) * shard_bytes < text_size(file) << 64
        if piece and (opens or size + text_size(file) > _CAP * shard_bytes):
            yield piece
            piece, size = [], 0
        piece.append(whole(file))
        size += text_size(file)
    if piece:
        yield piece


def cut_file(item: dict[str, Any]) -> list[dict[str, Any]]:
    """Task: the stretches (JSON) of one large file or dataset; item is {"file", "shard_bytes", "document_bytes"}.

    The whole file is hashed on the way. SourceError if it is not the one that was planned.
    """
    file = source_file(item["file"])
    if file.format == DATASET:
        found = _dataset_shards(file)
    elif file.format == "parquet":
        found = _row_groups(file, item["shard_bytes"])
    else:
        found = _byte_ranges(file, item["shard_bytes"], item["document_bytes"])
    return [asdict(stretch) for stretch in found]


def _byte_ranges(file: SourceFile, shard_bytes: int, document_bytes: int) -> list[Stretch]:
    found: list[Stretch] = []
    all_of_it = hashlib.sha256()
    line = 1
    with open(file.path, "rb") as source, mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ) as data:
        start = 0
        while start < len(data):
            stop = len(data)
            if stop - start > shard_bytes * 3 // 2:  # no last stretch of a few bytes
                stop = _edge(data, start + shard_bytes, document_bytes, file.format)
            stretch_digest = hashlib.sha256()
            lines = 0
            for position in range(start, stop, BLOCK):
                block = data[position : min(position + BLOCK, stop)]
                stretch_digest.update(block)
                all_of_it.update(block)
                lines += block.count(b"\n")
            found.append(Stretch(file, stretch_digest.hexdigest(), start, stop, line, size=stop - start))
            start, line = stop, line + lines
    _check(file, all_of_it.hexdigest())
    return found


def _edge(data: mmap.mmap, position: int, document_bytes: int, format: str) -> int:
    """The first good place to cut at or after `position`: a record's end, or a paragraph's within a document's length."""
    if format == "jsonl":
        return data.find(b"\n", position) + 1 or len(data)
    window = min(position + document_bytes, len(data))
    paragraph = _PARAGRAPH_END.search(data, position, window)
    if paragraph:
        return paragraph.end()
    for separator in (b"\n", b" "):
        found = data.find(separator, position, window)
        if found >= 0:
            return found + 1
    return character_start(data, position)


def _row_groups(file: SourceFile, shard_bytes: int) -> list[Stretch]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    stamp = modified(file.path)
    digest = hashlib.sha256()
    with open(file.path, "rb", buffering=0) as source:
        while block := source.read(BLOCK):
            digest.update(block)
    _check(file, digest.hexdigest())
    try:
        metadata = pq.read_metadata(file.path)
    except (pa.ArrowInvalid, OSError) as error:
        if not is_damage(error):
            raise unreadable(file.path, error) from error
        return [whole(file)]  # reading it tells what is wrong, under the source's policy for bad records
    found, start, row, size, rows = [], 0, 1, 0, 0
    for index in range(metadata.num_row_groups):
        size += metadata.row_group(index).total_byte_size
        rows += metadata.row_group(index).num_rows
        if size >= shard_bytes or index == metadata.num_row_groups - 1:
            found.append(Stretch(file, file.sha256, start, index + 1, row, size, stamp))
            start, row, size, rows = index + 1, row + rows, 0, 0
    return found or [whole(file)]


def _dataset_shards(file: SourceFile) -> list[Stretch]:
    """One stretch for each of the dataset's own shards, as the library streams them."""
    stamp = modified(file.path)
    count = open_dataset(file).num_shards
    size = file.size // max(count, 1)
    return [Stretch(file, file.sha256, index, index + 1, size=size, modified=stamp) for index in range(count)]


def _check(file: SourceFile, found: str) -> None:
    if found != file.sha256:
        raise changed(file.path)


def unique_files(files: Iterable[SourceFile]) -> list[SourceFile]:
    """The files, by content, without those that give the same texts as another one, whatever label and policy they have.

    Equal bytes are not enough: another column of a file, or another split of a dataset, is other text.
    """
    kept: dict[bytes, SourceFile] = {}
    for file in sorted(files, key=_order):
        texts = {key: value for key, value in file.identity.items() if key not in ("label", "on_bad_record")}
        kept.setdefault(canonical(texts), file)
    return list(kept.values())


def _order(file: SourceFile) -> tuple[str, bytes]:
    """The digest first; the rest of the identity, so that no order of declaration decides between equal digests."""
    return file.sha256, canonical(file.identity)
