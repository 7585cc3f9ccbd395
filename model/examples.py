"""Tokenised examples of any length: what a task's stage writes and the fine-tuning loop reads.

The one idea: the same kind of file as a token shard (an Arrow IPC file with one memory-mapped record
batch), with what an objective needs beside the tokens. Examples are padded when a batch is made, never
on disk.

    column tokens:    large_list<uint16 | uint32>
    column loss_mask: large_list<bool> or null     true where a token is to be predicted
    column label:     int64 or null                the class
    column weight:    float64                      what the example's loss counts; not there where all count alike
    columns span_start, span_end, second_segment: int64    the tokens at which an answer begins and ends, and where the
                                                   text that it stands in begins; there for questions only
    column id:        string
    schema metadata b"gptline": canonical JSON {"format", "tokenizer", "vocab_size", "eot"}
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from model import durable
from model.token_shards import flatten, map_batch, metadata_bytes, token_dtype, view

SPAN_COLUMNS = ("span_start", "span_end", "second_segment")


@dataclass(frozen=True)
class Example:
    """One example. `loss_mask` is None where every token counts, `label` where there is no class."""

    id: str
    tokens: np.ndarray  # (T,)
    loss_mask: np.ndarray | None  # (T,) bool
    label: int | None


def _mask_column(path: Path, masks: Sequence[Any | None], tokens: Sequence[Any], ids: Sequence[str]) -> pa.Array:
    """The masks as a column. ValueError if one is not as long as its tokens."""
    for identifier, mask, row in zip(ids, masks, tokens, strict=True):
        if mask is not None and len(mask) != len(row):
            raise ValueError(f"{path}: example {identifier} has {len(row)} tokens but a loss mask of {len(mask)}")
    rows = [None if mask is None else np.asarray(mask, bool) for mask in masks]
    return pa.array(rows, pa.large_list(pa.bool_()))


def write_examples(
    path: Path,
    tokens: Sequence[Any],
    ids: Sequence[str],
    *,
    tokenizer: str,
    vocab_size: int,
    eot: int,
    labels: Sequence[int | None] | None = None,
    loss_masks: Sequence[Any | None] | None = None,
    weights: Sequence[float] | None = None,
    spans: Sequence[tuple[int, int, int]] | None = None,
) -> None:
    """Write examples whole or not at all; `tokens[i]` are the ids of example `ids[i]`.

    `weights` are what each example's loss counts, above 0; all alike if none. `spans` are the first and the last token of
    each answer and where the second segment begins. `tokenizer` is the digest of the tokenizer that made them. ValueError
    names the example that is empty, outside of the vocabulary or does not fit its mask.
    """
    for identifier, row in zip(ids, tokens, strict=True):
        if len(row) == 0 or max(row) >= vocab_size:
            raise ValueError(
                f"{path}: example {identifier} is empty or has an id outside of the vocabulary of {vocab_size}"
            )
    flat, offsets = flatten(tokens, token_dtype(vocab_size))
    column = pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), pa.array(flat))
    columns = {
        "tokens": column,
        "loss_mask": _mask_column(path, loss_masks or [None] * len(ids), tokens, ids),
        "label": pa.array(labels if labels is not None else [None] * len(ids), pa.int64()),
        "id": pa.array(ids, pa.string()),
    } | ({} if weights is None else {"weight": pa.array(weights, pa.float64())})
    if spans is not None:
        places = np.array(spans, np.int64).reshape(-1, len(SPAN_COLUMNS))  # (examples, 3)
        columns |= {name: pa.array(places[:, column]) for column, name in enumerate(SPAN_COLUMNS)}
    metadata = metadata_bytes({"tokenizer": tokenizer, "vocab_size": vocab_size, "eot": eot})
    schema = pa.schema([(name, values.type) for name, values in columns.items()], metadata)
    batch = pa.record_batch(list(columns.values()), schema=schema)
    with durable.writing(path) as draft, pa.OSFile(str(draft), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(batch)


def surrounding(encode: Callable[[bool], list[int]]) -> tuple[list[int], list[int]]:
    """What a tokenizer puts before and after each text (BERT's [CLS] and [SEP]); `encode(special)` encodes any short text."""
    plain, whole = encode(False), encode(True)
    start = next(place for place in range(len(whole)) if whole[place : place + len(plain)] == plain)
    return whole[:start], whole[start + len(plain) :]


def text_windows(tokens: list[int], length: int, stride: int) -> list[list[int]]:
    """A text in windows of `length` tokens, each `stride` (at most `length`) after the one before it, the last one at the text's end.

    A text that fits is its own only window. Without a stride (0) there is one window: what is longer loses its end.
    """
    return [tokens[start : start + length] for start in window_starts(len(tokens), length, stride)]


def window_starts(count: int, length: int, stride: int) -> list[int]:
    """At which of a text's `count` tokens each of its windows begins. No token is passed over: the longest stride is `length`."""
    stride = min(stride, length)
    return [0] if not stride or count <= length else [*range(0, count - length, stride), count - length]


class Examples:
    """The examples of one file, memory-mapped, with random access. DamagedShard if it is not such a file.

    `pad` is what the model that reads them takes for padding: a classifier finds the last token of a row by it. EOT if none.
    """

    def __init__(self, path: Path, pad: int | None = None) -> None:
        batch, metadata = map_batch(path)
        self.path = path
        self.tokenizer: str = metadata["tokenizer"]
        self.vocab_size: int = metadata["vocab_size"]
        self.eot: int = metadata["eot"]
        self.pad = self.eot if pad is None else pad  # what batches are filled up with
        column = batch.column("tokens")
        self._tokens: np.ndarray = view(column.values)
        self._offsets: np.ndarray = view(column.offsets)
        self.lengths: np.ndarray = np.diff(self._offsets)  # (examples,) tokens of each
        weighted = "weight" in batch.schema.names
        self.weights: np.ndarray | None = view(batch.column("weight")) if weighted else None  # (examples,) float64
        asked = SPAN_COLUMNS[0] in batch.schema.names
        places = np.stack([view(batch.column(name)) for name in SPAN_COLUMNS], 1) if asked else None
        self.spans: np.ndarray | None = (
            places  # (examples, 3) int64: the answer's first and last token, the second segment's first
        )
        self._masks, self._labels, self._ids = batch.column("loss_mask"), batch.column("label"), batch.column("id")
        self._mask_bits: np.ndarray = self._masks.values.to_numpy(zero_copy_only=False)  # Arrow packs eight in a byte
        self._mask_offsets: np.ndarray = view(self._masks.offsets)

    def __len__(self) -> int:
        """How many examples there are."""
        return len(self._ids)

    def tokens(self, index: int) -> np.ndarray:
        """The tokens (T,) of example `index`, a view of the file."""
        return self._tokens[self._offsets[index] : self._offsets[index + 1]]

    def loss_mask(self, index: int) -> np.ndarray:
        """Which tokens of example `index` are to be predicted, (T,) bool; all of them where no mask was written.

        The first token has nothing before it and is a target of nothing, whatever its mask says.
        """
        if not self._masks[index].is_valid:
            return np.ones(int(self.lengths[index]), bool)
        return self._mask_bits[self._mask_offsets[index] : self._mask_offsets[index + 1]]

    def __getitem__(self, index: int) -> Example:
        """Example `index`, decoded."""
        mask = self.loss_mask(index) if self._masks[index].is_valid else None
        return Example(
            id=self._ids[index].as_py(),
            tokens=self.tokens(index),
            loss_mask=mask,
            label=self._labels[index].as_py(),
        )
