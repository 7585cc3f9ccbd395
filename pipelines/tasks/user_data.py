"""Your own data: the records of JSONL, CSV and Parquet files, each field checked where it is read.

The one idea: a record is known by where it stands (file and line, or file and row), and a field that cannot be used is
an error that says so: which file, which line, which field, what was seen, what to do. Nothing is guessed and nothing is
passed over; a field that nobody asks for may be whatever it is.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pipelines.sources import known_format

_READABLE = "jsonl, jsonl.gz, jsonl.zst, csv, csv.bz2, parquet"
_SEEN = 60  # characters of a bad value that an error shows


@dataclass(frozen=True)
class Record:
    """One record: its fields, and the file with the line (of Parquet: the row) it stands at."""

    place: str
    fields: dict[str, Any]

    def text(self, field: str, option: str) -> str:
        """The field's text without spaces around it. ValueError if it is missing, no text, or empty."""
        value = self.field(field, option)
        if not isinstance(value, str):
            raise self._wrong_kind(field, value, "text")
        if not value.strip():
            raise ValueError(f"{self.place}: field {field!r} is empty; remove the record or fill it")
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise ValueError(f"{self.place}: field {field!r} holds half of a surrogate pair, which is no text; mend it")
        return value.strip()

    def name(self, field: str, option: str) -> str:
        """The field as the name of a class or a group: text, or an integer or a truth value as it is written in JSON."""
        value = self.field(field, option)
        if isinstance(value, bool | int):
            return json.dumps(value)
        if not isinstance(value, str):
            raise self._wrong_kind(field, value, "text, an integer or true/false")
        return self.text(field, option)

    def field(self, field: str, option: str) -> Any:
        """The field's value. ValueError if the record has no such field, or Python has no such value."""
        if field not in self.fields:
            raise ValueError(
                f"{self.place}: no field {field!r}; it has {', '.join(map(repr, self.fields)) or 'none'}. "
                f"Name the right one with task.{option}=..."
            )
        value = self.fields[field]
        if isinstance(value, Unreadable):
            raise ValueError(value.why)
        return value

    def _wrong_kind(self, field: str, value: Any, kinds: str) -> ValueError:
        advice = "fill it, or remove the record" if value is None else "convert it"
        if isinstance(value, float):  # pandas makes 0.0 and 1.0 of the integers of a column in which one is missing
            advice = "convert the column, and fill what is missing in it"
        return ValueError(f"{self.place}: field {field!r} is {_seen(value)}; it has to be {kinds}; {advice}")


@dataclass(frozen=True)
class Unreadable:
    """A field that Python cannot represent (the year 10000, a text that is no UTF-8), and why, with its place and its name.

    Whoever asks for the field is told, nobody else is.
    """

    why: str


def _seen(value: Any) -> str:
    if value is None:
        return "null"
    shown = repr(value)
    return f"{shown if len(shown) <= _SEEN else shown[:_SEEN] + '...'}, a {type(value).__name__}"


def records(files: Sequence[Path]) -> Iterator[Record]:
    """The records of `files`, in order. ValueError for a file that cannot be read, and for one without any record."""
    for path in files:
        empty = True
        for record in _records(path):
            empty = False
            yield record
        if empty:
            raise ValueError(f"{path}: no record in the file; remove it or fill it")


def _records(path: Path) -> Iterator[Record]:
    match known_format(path):
        case "jsonl" | "jsonl.gz" | "jsonl.zst":
            return _jsonl(path, _bytes(path))
        case "csv" | "csv.bz2":
            return _csv(path, _bytes(path))
        case "parquet":
            return _parquet(path)
    raise ValueError(
        f"{path}: not a file of records by its ending; readable are {_READABLE}. Rename it or give a format"
    )


def _bytes(path: Path) -> bytes:
    """The unpacked bytes of a file, without a byte order mark. ValueError for one that cannot be unpacked."""
    import bz2

    import pyarrow as pa

    from pipelines.records import foreign_encoding

    data = path.read_bytes()
    try:
        if path.name.lower().endswith(".gz"):
            data = gzip.decompress(data)
        elif path.name.lower().endswith(".bz2"):
            data = bz2.decompress(data)
        elif path.name.lower().endswith(".zst"):
            data = pa.CompressedInputStream(pa.BufferReader(data), "zstd").read()
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise ValueError(f"{path}: the packed data is damaged or cut short ({error}); write the file again") from error
    if foreign := foreign_encoding(data):
        raise ValueError(f"{path}: the file is in {foreign}, by its byte order mark; convert it to UTF-8")
    return data.removeprefix(b"\xef\xbb\xbf")


def _decoded(path: Path, number: int, line: bytes) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}:{number}: byte {error.start + 1} of the line (0x{line[error.start]:02x}) is not valid UTF-8; "
            "convert the file to UTF-8"
        ) from error


def _jsonl(path: Path, data: bytes) -> Iterator[Record]:
    for number, line in enumerate(io.BytesIO(data), start=1):
        if not line.strip():
            continue
        try:
            value = parsed(_decoded(path, number, line), f"{path}:{number}")
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{number}: not valid JSON ({error})") from error
        if not isinstance(value, dict):
            raise ValueError(f"{path}:{number}: a JSON object is expected, this is {_seen(value)}")
        yield Record(f"{path}:{number}", value)


def parsed(text: str | bytes, place: str) -> Any:
    """The value of a JSON text. JSONDecodeError or UnicodeDecodeError if it is none; ValueError that names the place where an
    object has two fields of a name (Python would keep the last without a word), and where Python cannot hold what is there."""
    try:
        return json.loads(text, object_pairs_hook=partial(_object, place), parse_int=partial(_integer, place))
    except RecursionError as error:
        raise ValueError(
            f"{place}: the JSON has more brackets within brackets than can be read; flatten it, or remove the record"
        ) from error


def _integer(place: str, digits: str) -> int:
    try:
        return int(digits)
    except ValueError as error:  # Python reads no number of more than 4,300 digits: it would take too long
        raise ValueError(
            f"{place}: an integer of {len(digits.lstrip('-'))} digits, which is more than can be read; write it as text, or remove it"
        ) from error


def _object(place: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if twice := _repeated([name for name, _ in pairs]):
        raise ValueError(f"{place}: the field {twice!r} is there more than once; keep one of them, or rename it")
    return dict(pairs)


def _repeated(names: Sequence[str]) -> str | None:
    """The first of the names that is there more than once."""
    if len(set(names)) == len(names):
        return None
    return next(name for name, count in Counter(names).items() if count > 1)


def _csv(path: Path, data: bytes) -> Iterator[Record]:
    lines = (_decoded(path, number, line) for number, line in enumerate(io.BytesIO(data), start=1))
    reader = csv.DictReader(lines, strict=True)
    try:
        for number, row in enumerate(_rows(reader, len(data))):
            if number == 0:
                _refuse_repeated(path, reader.fieldnames or ())
            place = f"{path}:{reader.line_num}"
            if None in row or None in row.values():
                raise ValueError(f"{place}: not as many fields as the header has ({len(reader.fieldnames or ())}); quote fields that hold commas")  # fmt: skip
            yield Record(place, dict(row))
    except csv.Error as error:
        raise ValueError(f"{path}: the record after line {reader.line_num} is not valid CSV ({error})") from error


def _refuse_repeated(path: Path, columns: Sequence[str]) -> None:
    """ValueError if two columns have one name: the last would win. Columns without a name cannot be asked for."""
    if twice := _repeated([name for name in columns if name]):
        raise ValueError(
            f"{path}: the header has the column {twice!r} {columns.count(twice)} times; rename all but one, or remove them"
        )


def _rows(reader: csv.DictReader[str], longest: int) -> Iterator[dict[str, Any]]:
    """The reader's rows, with fields of up to `longest` characters: the module's own bound (131,072) is for everybody at once."""
    while True:
        usual = csv.field_size_limit(longest)
        try:
            row = next(reader, None)
        finally:
            csv.field_size_limit(usual)
        if row is None:
            return
        yield row


def _parquet(path: Path) -> Iterator[Record]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    row = 0
    try:
        with pq.ParquetFile(path) as file:
            if twice := _repeated(file.schema_arrow.names):
                raise ValueError(
                    f"{path}: the column {twice!r} is there more than once; keep one of them, or rename it"
                )
            for batch in file.iter_batches(1024):
                places = [f"{path}: row {row + number}" for number in range(1, batch.num_rows + 1)]
                columns = {name: _values(name, batch[name], places) for name in batch.schema.names}
                row += len(places)
                for number, place in enumerate(places):
                    yield Record(place, {name: values[number] for name, values in columns.items()})
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise ValueError(f"{path}: not a readable Parquet file ({error}); write it again") from error


def _values(name: str, column: Any, places: Sequence[str]) -> list[Any]:
    """A column's values as Python's; each that Python cannot represent as Unreadable, for it may be of a column nobody asks for."""
    try:
        return list(column.to_pylist())
    except Exception:  # pyarrow raises many kinds: ValueError, OverflowError, UnicodeDecodeError, those of time zones
        return [_value(name, column, number, place) for number, place in enumerate(places)]


def _value(name: str, column: Any, number: int, place: str) -> Any:
    try:
        return column[number].as_py()
    except UnicodeDecodeError as error:
        return Unreadable(f"{place}: field {name!r} is not valid UTF-8 ({error}); write the file again")
    except Exception as error:  # as above
        return Unreadable(
            f"{place}: field {name!r}, a {column.type}, is nothing that Python can represent ({error}); write the column in "
            "another type, or name another field"
        )
