"""Encoding: text to token ids, as fast as can be proven right.

The one idea: `tokenizers` says what is right and `gigatoken` is a hundred times faster. So gigatoken encodes, and its
output for a sample of every batch is compared with what `tokenizers` makes of the same documents; a batch with any
difference is encoded by `tokenizers`, with the reason kept.

Reserved tokens (`<|endoftext|>`) that stand in a text are text, in both.
"""

from __future__ import annotations

import functools
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines import tokenizer_files
from pipelines.tokenizer_files import EOT, TokenizerFacts

SAMPLE_SHARE, SAMPLE_BYTES = (
    2048,
    (16 << 10, 64 << 10),
)  # a 2048th of a batch is compared, within these bounds, in bytes
_RENEW_BYTES = 1 << 30  # gigatoken caches every word it has seen, without a bound: it is loaded anew after so much text
HARD = (
    f"a{EOT}b {EOT}", "\x00\x01\x7f\ufeff", "漢字かな交じり文。한국어 텍스트", "👩‍👩‍👧‍👦 🏳️‍🌈 e\u0301", "x" * 3000, " " * 300 + "\t\t\r\n\n\n  y",
    "don't WE'LL I'd ’s", "١٢٣ 四五 1234567890", "\u2028\u2029\x85\u3000 \u00a0", "\U0010ffff\ufdd0",
)  # fmt: skip  # compared once a worker: what corpora rarely hold and tokenizers get wrong


@dataclass(frozen=True)
class Encoded:
    """A batch of documents as ids: document i is tokens[offsets[i]:offsets[i + 1]], its EOT included."""

    tokens: np.ndarray  # (tokens,) of the vocabulary's dtype
    offsets: np.ndarray  # (documents + 1,) int64
    engine: str  # "gigatoken", or "tokenizers: why"


class Encoder:
    """A tokenizer in both engines. Lives as long as its worker; see `load`."""

    def __init__(self, folder: Path, facts: TokenizerFacts) -> None:
        # Ray's tasks are the parallelism; more threads in each would only fight over the cores.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        self.facts = facts
        self._json = (folder / "tokenizer.json").read_text("utf-8")
        self._reference = tokenizer_files.load(folder)
        self._reference.encode_special_tokens = True
        self._dtype = np.dtype(np.uint16 if facts.vocab_size <= 1 << 16 else np.uint32)
        self._fast: Any = None
        self._encoded = _RENEW_BYTES
        self._refusal = self._prove()

    def encode(self, texts: Any) -> Encoded:
        """Encode a pyarrow ChunkedArray of strings, each document closed by EOT.

        A chunk at a time: what was just decoded is still in the processor's cache, which makes gigatoken faster by half.
        """
        fast, refusal = (None, self._refusal) if self._refusal else self._checked(texts, sample(texts))
        return Encoded(
            *(fast or self._closed(texts, self._tokenizers)), f"tokenizers: {refusal}" if refusal else "gigatoken"
        )

    def _prove(self) -> str | None:
        """Why gigatoken cannot be used with this tokenizer at all, or None."""
        return self._checked(_as_arrow(HARD), range(len(HARD)))[1]

    def _checked(self, texts: Any, chosen: Sequence[int]) -> tuple[tuple[np.ndarray, np.ndarray] | None, str | None]:
        """What gigatoken makes of the texts, if the chosen documents are right; else why it is not used."""
        try:
            fast = self._closed(texts, self._gigatoken)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # not installed, a tokenizer it does not know, or a panic, which is no Exception
            return None, f"gigatoken failed ({type(error).__name__}: {error})"
        difference = self._difference(texts, *fast, chosen)
        return (None if difference else fast), difference

    def _gigatoken(self, chunk: Any) -> tuple[np.ndarray, np.ndarray]:
        """Ids (tokens,) uint32 and offsets (documents + 1,) int64, without a Python object for any document."""
        if self._encoded >= _RENEW_BYTES:
            import gigatoken

            self._fast, self._encoded = gigatoken.Tokenizer.from_json(_without_reserved(self._json)), 0
        rows = _as_awkward(chunk)
        self._encoded += int(rows.layout.offsets[-1] - rows.layout.offsets[0])
        encoded = self._fast.encode_batch(rows, parallel=False).layout
        offsets = np.asarray(encoded.offsets.data)
        return np.asarray(encoded.content.data)[offsets[0] : offsets[-1]], offsets - offsets[0]

    def _tokenizers(self, chunk: Any) -> tuple[np.ndarray, np.ndarray]:
        encoded = self._reference.encode_batch_fast(chunk.to_pylist(), add_special_tokens=False)
        rows = [np.array(row.ids, self._dtype) for row in encoded]
        offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows], dtype=np.int64)])
        return np.concatenate([*rows, np.zeros(0, self._dtype)]), offsets

    def _difference(self, texts: Any, tokens: np.ndarray, offsets: np.ndarray, chosen: Sequence[int]) -> str | None:
        """How the closed documents differ from what `tokenizers` makes of the chosen ones, or None."""
        documents = [texts[int(index)].as_py() for index in chosen]
        for index, row in zip(
            chosen, self._reference.encode_batch_fast(documents, add_special_tokens=False), strict=True
        ):
            if not np.array_equal(tokens[offsets[index] : offsets[index + 1]], [*row.ids, self.facts.eot]):
                return f"gigatoken differs on {documents[list(chosen).index(index)][:60]!r}"
        return None

    def _closed(
        self, texts: Any, encode: Callable[[Any], tuple[np.ndarray, np.ndarray]]
    ) -> tuple[np.ndarray, np.ndarray]:
        """The documents of all chunks with EOT after each: tokens, and offsets (documents + 1,)."""
        parts: list[np.ndarray] = [np.zeros(0, self._dtype)]
        ends: list[np.ndarray] = [np.zeros(1, np.int64)]
        filled = 0
        for chunk in texts.chunks:
            tokens, offsets = encode(chunk)
            offsets = offsets + np.arange(len(offsets))
            is_text = np.ones(offsets[-1], bool)
            is_text[offsets[1:] - 1] = False
            closed = np.empty(offsets[-1], self._dtype)
            closed[offsets[1:] - 1] = self.facts.eot
            closed[is_text] = tokens
            parts.append(closed)
            ends.append(offsets[1:] + filled)
            filled += len(closed)
        return np.concatenate(parts), np.concatenate(ends)


@functools.lru_cache(maxsize=1)
def load(folder: Path, facts: TokenizerFacts) -> Encoder:
    """The encoder of a tokenizer directory, once a worker."""
    return Encoder(folder, facts)


def _without_reserved(tokenizer_json: str) -> str:
    """The tokenizer without its reserved tokens: what spells one is then text like any other."""
    state = json.loads(tokenizer_json)
    state["added_tokens"] = [token for token in state["added_tokens"] if not token["special"]]
    return json.dumps(state, ensure_ascii=False)


def _as_awkward(chunk: Any) -> Any:
    """A pyarrow array of strings as awkward's, sharing its characters."""
    import awkward as ak  # type: ignore[import-untyped]

    characters = ak.contents.NumpyArray(np.frombuffer(chunk.buffers()[2], np.uint8), parameters={"__array__": "char"})
    starts = ak.index.Index64(_starts(chunk))
    return ak.Array(ak.contents.ListOffsetArray(starts, characters, parameters={"__array__": "string"}))


def _as_arrow(texts: Sequence[str]) -> Any:
    """Texts as a chunked array of one chunk. `pa.array` would do, and import pandas: a second of each worker's start."""
    import pyarrow as pa

    utf8 = [text.encode("utf-8") for text in texts]
    starts = np.cumsum([0, *map(len, utf8)], dtype=np.int32)
    return pa.chunked_array(
        [pa.StringArray.from_buffers(len(utf8), pa.py_buffer(starts), pa.py_buffer(b"".join(utf8)))]
    )


def _starts(chunk: Any) -> np.ndarray:
    """Where each document of a pyarrow array of strings begins in its bytes: (documents + 1,) int64."""
    # Strings have 32-bit offsets: a chunk is a row group of a text shard, a few megabytes.
    return np.frombuffer(chunk.buffers()[1], np.int32)[chunk.offset : chunk.offset + len(chunk) + 1].astype(np.int64)


def sample(texts: Any) -> list[int]:
    """Which documents of a chunked array are compared: the first, some with more than ASCII, and an even spread."""
    sizes = np.concatenate([np.diff(_starts(chunk)) for chunk in texts.chunks])
    budget = int(np.clip(sizes.sum() // SAMPLE_SHARE, *SAMPLE_BYTES))
    beyond_ascii = _some_beyond_ascii(texts)
    order = np.concatenate([[0], beyond_ascii, _spread(len(sizes), budget)])
    order = order[np.sort(np.unique(order, return_index=True)[1])]
    taken = np.searchsorted(np.cumsum(sizes[order]), budget) + 1
    return [int(index) for index in order[:taken]]


def _some_beyond_ascii(texts: Any, most: int = 4) -> np.ndarray:
    """Some documents that hold other characters than ASCII, from the first chunk that has any: (<= most,) int64.

    To the word of eight bytes, read as one number: a document that ends in the same word may be named for the next.
    """
    before = 0
    for chunk in texts.chunks:
        starts = _starts(chunk)
        utf8 = np.frombuffer(chunk.buffers()[2], np.uint8)[starts[0] : starts[-1]]
        words = utf8[: len(utf8) // 8 * 8].view(np.uint64)
        found = np.flatnonzero(words & np.uint64(0x8080808080808080)) * 8 + starts[0]
        if len(found):
            documents = np.unique(np.searchsorted(starts, found, side="right") - 1)
            return documents[:: max(1, len(documents) // most)][:most] + before
        before += len(chunk)
    return np.zeros(0, np.int64)


def _spread(count: int, limit: int) -> np.ndarray:
    """Numbers below `count`, each once, evenly spread however few are taken; at most `limit`: (<= limit,) int64.

    A document has at least one byte, so a limit of as many documents as the budget has bytes cuts nothing off.
    """
    # Multiples of the golden ratio leave no large gap; a stride prime to the count visits every number.
    stride = max(1, round(count * 0.6180339887))
    while math.gcd(stride, count) != 1:
        stride += 1
    return np.arange(min(count, limit), dtype=np.int64) * stride % count
