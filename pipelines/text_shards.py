"""The text shard: documents with id and origin in a Parquet file, writer and reader together.

The one idea: a shard is bounded (a new file begins when one is full) and streamed (a row group at a time), so the
memory of whoever writes or reads it does not grow with the corpus. Equal documents give equal bytes.

    column id:     string   first 16 bytes of the SHA-256 of the text, 32 hex digits
    column text:   string   the document
    column source: string   `label:digest:line`: where it came from, see `records.Stretch.name`
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from model import durable
from pipelines.engine.units import Unit, UnitFile

ROW_GROUP = 4 << 20  # bytes of text


class TextShardWriter:
    """Writes documents of one split to drafts in `folder`: `train.parquet`, `train-1.parquet`, ... as they fill.

    `drafts` maps each file's name to its path and `counts` to its documents and bytes, once `close` was called.
    """

    def __init__(self, folder: Path, split: str, shard_bytes: int) -> None:
        self.drafts: dict[str, Path] = {}
        self.counts: dict[str, dict[str, int]] = {}
        self._folder, self._split, self._shard_bytes = folder, split, shard_bytes
        self._rows: tuple[list[str], list[bytes], list[str]] = ([], [], [])
        self._buffered = 0
        self._file: Any = None
        self._count = {"documents": 0, "bytes": 0}

    def add(self, id: str, utf8: bytes, source: str) -> None:
        """Append a document; a file that has its `shard_bytes` is closed first."""
        if self._count["bytes"] >= self._shard_bytes:
            self.close()
        for column, value in zip(self._rows, (id, utf8, source), strict=True):
            column.append(value)  # type: ignore[attr-defined]
        self._buffered += len(utf8)
        self._count["documents"] += 1
        self._count["bytes"] += len(utf8)
        if self._buffered >= ROW_GROUP:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        names = ("id", "text", "source")
        table = pa.table({name: pa.array(rows, pa.string()) for name, rows in zip(names, self._rows, strict=True)})
        if self._file is None:
            name = f"{self._split}{f'-{len(self.drafts)}' if self.drafts else ''}.parquet"
            self.drafts[name] = durable.temporary(self._folder / name)
            self.counts[name] = self._count
            # No dictionaries and statistics: texts repeat nothing, and the bytes are hashed, not queried.
            self._file = pq.ParquetWriter(
                self.drafts[name], table.schema, compression="zstd", use_dictionary=False, write_statistics=False
            )
        self._file.write_table(table, row_group_size=max(1, len(table)))
        self._rows, self._buffered = ([], [], []), 0

    def close(self) -> None:
        """Finish the current file, if it has any document."""
        if self._rows[0]:
            self._flush()
        if self._file is not None:
            self._file.close()
        self._file, self._count = None, {"documents": 0, "bytes": 0}


def row_groups(path: Path, columns: list[str]) -> Iterator[Any]:
    """The tables (pyarrow) of a shard's row groups, one after another."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for index in range(file.num_row_groups):
            yield file.read_row_group(index, columns=columns, use_threads=False)


def shard_files(unit: Unit, split: str) -> list[tuple[str, UnitFile]]:
    """The shards of one split in a text unit, in the order in which they were written."""
    found = [(name, file) for name, file in unit.files.items() if name.partition(".")[0].partition("-")[0] == split]
    return sorted(found, key=lambda item: (len(item[0]), item[0]))


def manifest(units: list[Unit], split: str) -> dict[str, Any]:
    """The manifest of the text shards of one split."""
    entries = [
        {"path": file.path, "sha256": file.sha256, "size": file.size} | unit.info["files"][name]
        for unit in units for name, file in shard_files(unit, split)
    ]  # fmt: skip
    return {"schema": 1, "kind": "text_shards", "units": entries}
