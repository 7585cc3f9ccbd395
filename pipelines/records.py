"""Reading sources: the texts of one stretch of one file, streamed, checked byte for byte, nothing lost silently.

The one idea: reading yields what can be used (Text) and what cannot (Reject) side by side, in order; whoever
reads decides whether a reject ends the work. Memory is one block or one record, whatever the size of the file.
What is read is hashed on its way, and other bytes than those that were planned are an error.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from model import durable
from pipelines.documents import normalise_newlines
from pipelines.sources import DATASET, SourceError, SourceFile
from pipelines.stretches import BLOCK, Checked, Stretch, check_unchanged, unreadable

EXCERPT = 64 << 10  # bytes of a bad record that are kept, so that what was skipped can be mended
_BOM = b"\xef\xbb\xbf"
_FOREIGN_BOMS = {  # UTF-32's little-endian mark begins with UTF-16's, so the longer ones come first
    b"\xff\xfe\0\0": "UTF-32 (little-endian)", b"\0\0\xfe\xff": "UTF-32 (big-endian)",
    b"\xff\xfe": "UTF-16 (little-endian)", b"\xfe\xff": "UTF-16 (big-endian)",
}  # fmt: skip


@dataclass(frozen=True)
class Text:
    """One text: blocks of UTF-8 bytes with normalised newlines, and the line (or row) of the file it begins at."""

    line: int
    blocks: Iterable[bytes]
    spans_lines: bool  # whether a newline in the text is a newline of the file


@dataclass(frozen=True)
class Reject:
    """What could not be used: the line (or row) it stands at, why, and the record (its first EXCERPT bytes)."""

    line: int
    reason: str
    excerpt: str = ""


def excerpt(raw: bytes) -> str:
    """A bad record, up to EXCERPT bytes of it, as text; other bytes than UTF-8 as escapes."""
    return raw[:EXCERPT].decode("utf-8", "backslashreplace")


def is_damage(error: BaseException) -> bool:
    """Whether the data itself is damaged, so that it is a bad record; else the disk or the network failed.

    Such a failure must end the work: skipped, it would leave a unit without data that is there.
    """
    import pyarrow as pa

    if isinstance(error, OSError) and not isinstance(error, gzip.BadGzipFile):
        # pyarrow reports damage as a plain OSError without errno; timeouts and connections have classes of their own.
        damaged = type(error) is OSError and error.errno is None
    else:
        known = (pa.ArrowInvalid, EOFError, zlib.error, gzip.BadGzipFile)
        damaged = isinstance(error, known) or type(error).__name__ == "ZstdError"
    cause = error.__cause__
    return damaged and not (isinstance(cause, OSError) and not is_damage(cause))


def foreign_encoding(data: bytes) -> str | None:
    """Which encoding other than UTF-8 the byte order mark at the beginning of `data` says, if there is one."""
    return next((name for mark, name in _FOREIGN_BOMS.items() if data.startswith(mark)), None)


def undecodable(document: bytes, line: int, error: UnicodeDecodeError) -> Reject:
    """The reject for bytes that are no UTF-8, naming the line and the byte within it."""
    before = document.rfind(b"\n", 0, error.start) + 1
    line += document.count(b"\n", 0, error.start)
    reason = f"byte {error.start - before + 1} of the line (0x{document[error.start]:02x}) is not valid UTF-8; convert the file to UTF-8"
    return Reject(line, reason, excerpt(document))


def read(stretch: Stretch) -> Iterator[Text | Reject]:
    """The texts of a stretch, each to be consumed before the next is asked for.

    SourceError if the file is gone or is not the one that was planned.
    """
    format = stretch.file.format
    if format == DATASET:
        yield from _dataset(stretch)
    elif format == "parquet":
        yield from _parquet(stretch)
    else:
        with Checked(stretch) as raw:
            yield from _lines_or_text(stretch, raw)
            raw.check()


def _lines_or_text(stretch: Stretch, raw: Checked) -> Iterator[Text | Reject]:
    plain = io.BufferedReader(raw, BLOCK)
    foreign = foreign_encoding(plain.peek(4))
    if not plain.peek(1):
        yield Reject(1, "the file is empty; remove it or fill it")
    elif foreign and stretch.start == 0:
        yield Reject(
            1, f"the file is in {foreign}, by its byte order mark; convert it to UTF-8", excerpt(plain.peek(EXCERPT))
        )
    elif stretch.file.format in ("txt", "md"):
        yield Text(
            stretch.first_line, normalise_newlines(_without_bom(iter(lambda: plain.read(BLOCK), b""), stretch)), True
        )
    else:
        yield from _jsonl(stretch, _decompressed(plain, stretch.file.format))


def _without_bom(blocks: Iterator[bytes], stretch: Stretch) -> Iterator[bytes]:
    """A UTF-8 byte order mark at the beginning of a file is no text and is dropped; elsewhere it is kept."""
    for index, block in enumerate(blocks):
        yield block.removeprefix(_BOM) if index == 0 and stretch.start == 0 else block


def _decompressed(plain: io.BufferedReader[Any], format: str) -> BinaryIO:
    if format == "jsonl.gz":
        return gzip.GzipFile(fileobj=plain, mode="rb")  # type: ignore[return-value]
    if format == "jsonl.zst":
        import pyarrow as pa

        # Small reads: the one that meets the end of a truncated file gives nothing, so what it asked for is lost.
        return io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(plain, "r"), "zstd"), 1 << 14)
    return plain


def _jsonl(stretch: Stretch, lines: BinaryIO) -> Iterator[Text | Reject]:
    number, empty = stretch.first_line - 1, True
    try:
        for number, line in enumerate(_without_bom(iter(lines), stretch), stretch.first_line):
            if line.strip():
                empty = False
                yield _record(line, number, stretch.file.text_column)
    except (EOFError, zlib.error, OSError) as error:
        if stretch.file.format == "jsonl" or not is_damage(error):
            raise unreadable(stretch.file.path, error) from error
        yield Reject(
            number + 1,
            f"the compressed data is truncated or damaged after line {number} ({error}); fetch or write the file again",
        )
        return
    if empty:
        yield Reject(1, "no record in the file, only empty lines or nothing")


def _record(line: bytes, number: int, column: str) -> Text | Reject:
    """The text of one JSON line."""
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return undecodable(line, number, error)
    except RecursionError:
        return Reject(number, "not readable JSON: it has more brackets within brackets than can be read", excerpt(line))
    except ValueError as error:
        return Reject(number, f"not valid JSON ({error})", excerpt(line))
    if not isinstance(record, dict):
        return Reject(number, f"a JSON object is expected, this is a {type(record).__name__}", excerpt(line))
    if column not in record:
        return Reject(
            number,
            f"no field {column!r}; the fields are {', '.join(record) or 'none'} (see text_column)",
            excerpt(line),
        )
    return _text(record[column], number, column)


def _text(value: Any, number: int, column: str) -> Text | Reject:
    if not isinstance(value, str):
        kind = "null" if value is None else type(value).__name__
        return Reject(
            number,
            f"{column!r} is not text but {kind}",
            excerpt(repr(value)[:EXCERPT].encode("utf-8", "backslashreplace")),
        )
    try:
        return Text(number, list(normalise_newlines([value.encode("utf-8")])), False)
    except UnicodeEncodeError as error:
        return Reject(
            number,
            f"character {error.start + 1} of {column!r} is half of a surrogate pair, which is no text",
            excerpt(value[:EXCERPT].encode("utf-8", "backslashreplace")),
        )


def _parquet(stretch: Stretch) -> Iterator[Text | Reject]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    check_unchanged(stretch)
    row, column = stretch.first_line, stretch.file.text_column
    try:
        with pq.ParquetFile(stretch.file.path) as file:
            names = file.schema_arrow.names
            if column not in names:
                yield Reject(1, f"no column {column!r}; the columns are {', '.join(names)} (see text_column)")
                return
            if file.metadata.num_rows == 0:
                yield Reject(1, "no row in the file")
            groups = list(range(file.num_row_groups))[stretch.start : stretch.stop]
            for batch in file.iter_batches(1024, row_groups=groups, columns=[column], use_threads=False):
                for value in batch.column(0):
                    yield _text(_python(value), row, column)
                    row += 1
    except (pa.ArrowInvalid, OSError) as error:
        if not is_damage(error):
            raise unreadable(stretch.file.path, error) from error
        yield Reject(row, f"not a readable Parquet file ({error}); fetch or write it again")


def _python(value: Any) -> Any:
    """An Arrow scalar as Python; a string that is no UTF-8 (Parquet does not check) as the bytes that it is."""
    try:
        return value.as_py()
    except UnicodeDecodeError:
        return value.as_buffer().to_pybytes()


def open_dataset(file: SourceFile) -> Any:
    """A Hugging Face dataset as a stream. SourceError with the library's own words if it cannot be opened."""
    import datasets

    config, split, revision = file.options
    saved = Path(file.path)
    try:
        _refuse_other_split(saved, split)
        if (saved / "dataset_dict.json").exists():  # what DatasetDict.save_to_disk leaves
            return datasets.load_from_disk(file.path)[str(split)].to_iterable_dataset()
        if (saved / "state.json").exists():  # what Dataset.save_to_disk leaves; it has no splits
            return datasets.load_from_disk(file.path).to_iterable_dataset()
        return datasets.load_dataset(file.path, name=config, split=split, revision=revision, streaming=True)
    except SourceError:
        raise
    except Exception as error:  # the library raises many kinds; whichever it is, the source is what is wrong
        raise SourceError(f"dataset {file.path} (config {config}, split {split}) cannot be opened: {error}") from error


def _refuse_other_split(saved: Path, split: str | None) -> None:
    """SourceError if a folder of one split, as Dataset.save_to_disk leaves it, is asked for another: it would be read all the same."""
    if (saved / "dataset_dict.json").exists() or not (saved / "state.json").exists():
        return
    own = durable.read_json(saved / "state.json").get("_split")
    if split not in ("train", own):  # "train" is what nobody chose
        raise SourceError(
            f"dataset {saved} (split {split}) cannot be opened: Dataset.save_to_disk wrote one split there ({own or 'without a name'}), "
            "and it is read whole; leave `split` out, or save all splits with DatasetDict.save_to_disk"
        )


def _dataset(stretch: Stretch) -> Iterator[Text | Reject]:
    check_unchanged(stretch)
    stream, column = open_dataset(stretch.file), stretch.file.text_column
    shards = stream.num_shards
    if stretch.stop is not None:
        stream = stream.shard(num_shards=stream.num_shards, index=stretch.start)
    row = 0
    try:
        for row, record in enumerate(stream, 1):
            if column in record:
                yield _text(record[column], row, column)
            else:
                yield Reject(row, f"no column {column!r}; the columns are {', '.join(record)} (see text_column)")
    except Exception as error:  # as above
        message = f"dataset {stretch.file.path} cannot be read on after row {row}: {error}"
        if not is_damage(error):
            raise SourceError(message) from error
        yield Reject(row + 1, message)
        return
    if row == 0 and shards == 1:  # one of several shards may be empty
        yield Reject(1, "no row in the file")
