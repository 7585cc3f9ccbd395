"""Sentence marks: at which token of a shard each sentence begins.

The one idea: sentences are found in the text (`sentences.py`) and tokens are not changed for them. In a byte-level
vocabulary each token stands for a known number of bytes, so adding these up says where every token begins, for a whole
shard at once; other tokenizers, and those with added tokens that swallow spaces, are asked for their offsets, document by
document.

A sentence begins with the first token that begins in it. One that has no token of its own is none.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from model import durable
from model.vocabulary import byte_lengths, is_byte_level, takes_spaces
from pipelines import sentences, tokenizer_files


def mark(texts: Any, tokens: np.ndarray, offsets: np.ndarray, folder: Path) -> np.ndarray:
    """The places in `tokens` where sentences begin, (sentences,) int64, ascending; each document begins with one.

    `texts` is a pyarrow ChunkedArray of the documents, `tokens` and `offsets` what the tokenizer in `folder` made of them,
    an EOT closing each. ValueError if they do not fit together.
    """
    state = durable.read_json(folder / "tokenizer.json")
    documents = (text.as_buffer().to_pybytes() for chunk in texts.chunks for text in chunk)
    later = (
        _by_bytes(documents, tokens, offsets, state)
        if is_byte_level(state) and not takes_spaces(state)
        else _by_offsets(documents, offsets, folder)
    )
    return np.concatenate(
        [part for start, inner in zip(offsets, later, strict=False) for part in ([start], inner)]
    ).astype(np.int64)


def _kept(places: np.ndarray, start: int, end: int) -> np.ndarray:
    """Those of ascending `places` that are inside of a document and not its EOT, each once."""
    return np.unique(places[(places > start) & (places < end - 1)])


def _by_bytes(
    documents: Iterator[bytes], tokens: np.ndarray, offsets: np.ndarray, state: dict[str, Any]
) -> Iterator[np.ndarray]:
    """The later sentences of each document, from the bytes that its tokens stand for."""
    begins: np.ndarray = np.zeros(len(tokens) + 1, np.int64)
    np.cumsum(byte_lengths(state)[tokens], out=begins[1:])
    for document, start, end in zip(documents, offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        first = int(begins[start])
        if int(begins[end]) - first != len(document):
            raise ValueError(
                f"{end - start} tokens stand for {int(begins[end]) - first} bytes of a document of {len(document)}: the "
                "vocabulary is not the byte-level one that its tokenizer.json says"
            )
        found = first + np.array(sentences.starts(document)[1:], np.int64)
        yield _kept(start + np.searchsorted(begins[start:end], found), start, end)


def _by_offsets(documents: Iterator[bytes], offsets: np.ndarray, folder: Path) -> Iterator[np.ndarray]:
    """The later sentences of each document, from the characters that `tokenizers` says its tokens begin at."""
    tokenizer = tokenizer_files.load(folder)
    tokenizer.encode_special_tokens = True
    for document, start, end in zip(documents, offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        encoding = tokenizer.encode(document.decode(), add_special_tokens=False)
        begins = np.array([begin for begin, _ in encoding.offsets], np.int64)  # (tokens,) in characters
        if len(begins) != end - start - 1:
            raise ValueError(f"a document of {end - start - 1} tokens has {len(begins)} in `tokenizers`")
        characters = [len(document[:place].decode()) for place in sentences.starts(document)[1:]]
        yield _kept(start + np.searchsorted(begins, characters), start, end)
