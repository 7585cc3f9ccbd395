"""The token shard: documents as token ids in one memory-mapped file, reader and writer together.

The one idea: a shard is an Arrow IPC file with a single record batch, so all of its tokens lie one after
another in one buffer. Many shards read as one long stream of tokens, without a copy and without loading
anything; the document boundaries are kept beside it, and `datasets` opens the same file.

    column tokens:    large_list<uint16 | uint32>   one row a document, its last token is the end-of-text token
    column id:        string                        the document's id in the text shard
    column sentences: large_list<int64>             only in format 2: where each sentence of the document begins, counted
                                                    in the shard's tokens, so that the column is ascending as a whole
    schema metadata b"gptline": canonical JSON {"format", "tokenizer", "vocab_size", "eot", "text_shard"}

A file holds nothing but its content: equal documents and equal metadata give equal bytes. A shard without sentences is
of format 1, byte for byte what it was before there were any. CLS and SEP are never stored: an objective puts them.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from model import durable

FORMAT = 1  # raised when the layout of the file changes
WITH_SENTENCES = 2  # the format of a shard that has the column
METADATA_KEY = b"gptline"


class DamagedShard(Exception):
    """A token shard is not what its manifest says: wrong bytes, wrong tokenizer, or not a token shard."""


@dataclass(frozen=True)
class ShardMetadata:
    """What a shard says of itself in its schema."""

    tokenizer: str  # digest of the tokenizer that made the ids
    vocab_size: int
    eot: int  # id of the end-of-text token
    text_shard: str  # SHA-256 of the text shard it was made from


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """The smallest of uint16 and uint32 that holds every id of the vocabulary."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


def flatten(documents: Sequence[Any], dtype: np.dtype[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Documents (sequences of ids) as one array of tokens and the int64 offsets (documents + 1) that cut it."""
    offsets: np.ndarray = np.zeros(len(documents) + 1, np.int64)
    np.cumsum([len(document) for document in documents], out=offsets[1:])
    tokens = np.empty(offsets[-1], dtype)
    for document, start, end in zip(documents, offsets[:-1], offsets[1:], strict=True):
        tokens[start:end] = document
    return tokens, offsets


def metadata_bytes(values: dict[str, Any], format: int = FORMAT) -> dict[bytes, bytes]:
    """Schema metadata with `values` as canonical JSON (sorted keys, no spaces), for shards and examples alike."""
    return {METADATA_KEY: json.dumps(values | {"format": format}, sort_keys=True, separators=(",", ":")).encode()}


def _check_flat(
    path: Path, tokens: np.ndarray, offsets: np.ndarray, ids: Sequence[str] | pa.Array, metadata: ShardMetadata
) -> None:
    """ValueError unless the arrays describe whole documents of this vocabulary, each closed by its EOT."""
    if len(offsets) != len(ids) + 1 or offsets[0] != 0 or offsets[-1] != len(tokens):
        raise ValueError(
            f"{path}: {len(ids)} ids and {len(offsets)} offsets do not cut {len(tokens)} tokens into documents"
        )
    if len(ids) == 0 or (np.diff(offsets) < 1).any():
        raise ValueError(f"{path}: a shard needs at least one document, and a document at least its end-of-text token")
    if int(tokens.max()) >= metadata.vocab_size:
        raise ValueError(f"{path}: token id {int(tokens.max())} is outside of the vocabulary of {metadata.vocab_size}")
    ends = tokens[offsets[1:] - 1]
    if (ends != metadata.eot).any():
        first = int(np.argmax(ends != metadata.eot))
        raise ValueError(
            f"{path}: document {ids[first]} ends with token {int(ends[first])}, not with EOT {metadata.eot}"
        )


def _check_sentences(path: Path, sentences: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """How many sentences come before each document and the end, (documents + 1,) int64. ValueError unless they ascend
    and each document begins with one."""
    before: np.ndarray = np.asarray(np.searchsorted(sentences, offsets))
    begun = len(sentences) > before[:-1].max() and (sentences[before[:-1]] == offsets[:-1]).all()
    if not begun or (np.diff(sentences) < 1).any() or before[-1] != len(sentences):
        raise ValueError(f"{path}: {len(sentences)} sentences do not ascend from the beginning of each document")
    return before


def write_token_shard(
    draft: Path,
    tokens: np.ndarray,
    offsets: np.ndarray,
    ids: Sequence[str] | pa.Array,
    metadata: ShardMetadata,
    sentences: np.ndarray | None = None,
) -> None:
    """Write a shard to `draft`; whoever publishes it flushes it.

    `tokens` holds every document's ids one after another, each document ending with EOT; document i is
    `tokens[offsets[i]:offsets[i + 1]]` and is named `ids[i]`. `sentences`, if given, are the places in `tokens` where
    sentences begin, ascending. ValueError if they do not fit together.
    """
    _check_flat(draft, tokens, offsets, ids, metadata)
    values = _integers(np.ascontiguousarray(tokens, token_dtype(metadata.vocab_size)))
    columns = {
        "tokens": pa.LargeListArray.from_arrays(_integers(np.ascontiguousarray(offsets, np.int64)), values),
        "id": ids if isinstance(ids, pa.Array) else pa.array(ids, pa.string()),
    }
    if sentences is not None:
        before = _integers(_check_sentences(draft, sentences, offsets))
        starts = _integers(np.ascontiguousarray(sentences, np.int64))
        columns["sentences"] = pa.LargeListArray.from_arrays(before, starts)
    described = metadata_bytes(asdict(metadata), FORMAT if sentences is None else WITH_SENTENCES)
    schema = pa.schema([(name, column.type) for name, column in columns.items()], described)
    batch = pa.record_batch(list(columns.values()), schema=schema)
    with pa.OSFile(str(draft), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(batch)


def map_batch(path: Path) -> tuple[pa.RecordBatch, dict[str, Any]]:
    """Memory-map an Arrow file of ours: its single record batch and its metadata. DamagedShard if it is none.

    The descriptor is closed at once while the map lives on with the arrays: a thousand shards need no
    thousand open files.
    """
    try:
        with pa.memory_map(str(path)) as source:
            reader = pa.ipc.open_file(source)
            metadata = json.loads((reader.schema.metadata or {})[METADATA_KEY])
            if metadata["format"] not in (FORMAT, WITH_SENTENCES) or reader.num_record_batches != 1:
                raise DamagedShard(
                    f"{path}: format {metadata['format']} with {reader.num_record_batches} record batches; "
                    f"this version reads formats {FORMAT} and {WITH_SENTENCES} with one: make it again"
                )
            return reader.get_batch(0), metadata
    except (pa.ArrowInvalid, KeyError, ValueError) as error:
        raise DamagedShard(
            f"{path} is not an Arrow file of gptline ({error}); remove it and run the stage again"
        ) from error


def view(column: pa.Array) -> np.ndarray:
    """An integer column without nulls as an array over the file's own bytes. Its `to_numpy` imports pandas: 0.6 s."""
    dtype = np.dtype(str(column.type))
    return np.frombuffer(column.buffers()[1], dtype, len(column), column.offset * dtype.itemsize)


def _integers(values: np.ndarray) -> pa.Array:
    """An array of integers as Arrow's, over the same memory. `pa.array` does the same and imports pandas: 0.6 s."""
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, pa.py_buffer(values)])


class TokenShard:
    """One mapped shard: `tokens` and `offsets` are views of the file, `ids` is decoded on demand."""

    def __init__(self, path: Path) -> None:
        batch, values = map_batch(path)
        values.pop("format")
        self.path = path
        self.metadata = ShardMetadata(**values)
        column = batch.column("tokens")
        self.tokens: np.ndarray = view(column.values)  # (tokens,) the file's own bytes, read-only
        self.offsets: np.ndarray = view(column.offsets)  # (documents + 1,)
        self._ids = batch.column("id")
        column = batch.column("sentences") if "sentences" in batch.schema.names else None
        # Where sentences begin (sentences,), and how many begin before each document (documents + 1,); of the file too.
        self.sentences: np.ndarray | None = None if column is None else view(column.values)
        self.sentence_offsets: np.ndarray | None = None if column is None else view(column.offsets)

    def __len__(self) -> int:
        """Documents in the shard."""
        return len(self._ids)

    def documents(self) -> Iterator[tuple[str, np.ndarray]]:
        """Each document's id and tokens, EOT included, in file order."""
        for index, identifier in enumerate(self._ids):
            yield identifier.as_py(), self.tokens[self.offsets[index] : self.offsets[index + 1]]


@dataclass(frozen=True)
class ShardUnit:
    """A shard as its manifest describes it."""

    path: Path
    sha256: str
    documents: int
    tokens: int
    bytes: int  # UTF-8 bytes of the text that the tokens stand for
    sentences: int = 0  # 0 where they were not looked for


class TokenShards:
    """The shards of a manifest as one stream of tokens, each shard mapped when it is first read.

    Only the manifest is in memory; what is mapped is the page cache's, not ours.
    """

    def __init__(self, units: Sequence[ShardUnit], tokenizer: str, vocab_size: int, eot: int) -> None:
        if not units:
            raise ValueError("no token shards: the manifest lists no units, so there is nothing to read")
        self.units = tuple(units)
        self.tokenizer, self.vocab_size, self.eot = tokenizer, vocab_size, eot
        self.ends = np.cumsum([unit.tokens for unit in units])  # (shards,) where each shard ends in the stream
        self._ends: list[int] = self.ends.tolist()  # bisecting a list is faster than searching an array for one number
        self._streams: list[np.ndarray | None] = [None] * len(units)

    @classmethod
    def from_manifest(cls, manifest: Path, root: Path, corpus: str | None = None) -> TokenShards:
        """The shards that a `token_shards` manifest lists, with paths relative to `root`: all, or those of one corpus.

        ValueError if the manifest is of another kind or lists no such corpus.
        """
        content = durable.read_json(manifest)
        if content.get("kind") != "token_shards" or content.get("schema") != 1:
            raise ValueError(
                f"{manifest}: kind {content.get('kind')!r} schema {content.get('schema')!r}, not token_shards schema 1"
            )
        chosen = [unit for unit in content["units"] if corpus is None or unit.get("corpus") == corpus]
        if not chosen and corpus is not None:
            known = sorted({unit.get("corpus", "") for unit in content["units"]} - {""})
            raise ValueError(
                f"{manifest}: no shard of the corpus {corpus!r}; it lists those of {', '.join(known) or 'none'}"
            )
        units = [
            ShardUnit(
                root / unit["path"], unit["sha256"], unit["documents"], unit["tokens"], unit["bytes"], unit.get("sentences", 0)
            )
            for unit in chosen
        ]  # fmt: skip
        return cls(units, content["tokenizer"], content["vocab_size"], content["eot"])

    def __len__(self) -> int:
        """Tokens in the stream."""
        return self._ends[-1]

    def verify(self, index: int) -> None:
        """Hash shard `index` and compare it with the manifest. DamagedShard if it is missing or other bytes."""
        unit = self.units[index]
        if not unit.path.exists():
            raise DamagedShard(f"{unit.path} is missing; run the tokenize stage again")
        found = durable.sha256(unit.path)
        if found != unit.sha256:
            raise DamagedShard(
                f"{unit.path} has SHA-256 {found}, its manifest says {unit.sha256}; remove it and run the tokenize stage again"
            )

    def shard(self, index: int) -> TokenShard:
        """Map shard `index` and check that it is the one the manifest means. DamagedShard otherwise."""
        unit, shard = self.units[index], TokenShard(self.units[index].path)
        if shard.metadata.tokenizer != self.tokenizer:
            raise DamagedShard(
                f"{unit.path} was made by tokenizer {shard.metadata.tokenizer}, the manifest says {self.tokenizer}"
            )
        if shard.metadata.eot != self.eot:
            raise DamagedShard(
                f"{unit.path} ends documents with token {shard.metadata.eot}, the manifest says {self.eot}; run the tokenize "
                "stage again"
            )
        if len(shard.tokens) != unit.tokens:
            raise DamagedShard(f"{unit.path} holds {len(shard.tokens)} tokens, the manifest says {unit.tokens}")
        return shard

    def _stream(self, index: int) -> np.ndarray:
        """The tokens of shard `index`, mapped at its first use."""
        stream = self._streams[index]
        if stream is None:
            stream = self._streams[index] = self.shard(index).tokens
        return stream

    def read_into(self, out: np.ndarray, start: int) -> None:
        """Fill `out` (length,) with the stream's tokens from `start` on, across shards. IndexError past the end."""
        if start < 0 or start + len(out) > self._ends[-1]:
            raise IndexError(f"tokens {start} to {start + len(out)} are outside of a stream of {len(self)}")
        index = bisect_right(self._ends, start)
        filled = 0
        while filled < len(out):
            stream = self._stream(index)
            offset = start + filled - (self._ends[index] - len(stream))
            piece = stream[offset : offset + len(out) - filled]
            out[filled : filled + len(piece)] = piece
            filled += len(piece)
            index += 1

    def read(self, start: int, length: int) -> np.ndarray:
        """`length` tokens of the stream from `start` on, as a new array. IndexError past the end."""
        out = np.empty(length, token_dtype(self.vocab_size))
        self.read_into(out, start)
        return out

    def documents(self) -> Iterator[tuple[str, np.ndarray]]:
        """Every document's id and tokens, shard after shard; one shard is mapped at a time."""
        for index in range(len(self.units)):
            yield from self.shard(index).documents()
