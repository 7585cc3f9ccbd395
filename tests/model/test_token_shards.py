"""The token shard: what is written is what is read, across shards, and what is damaged says so."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from model import durable
from model.token_shards import (
    DamagedShard,
    ShardMetadata,
    ShardUnit,
    TokenShard,
    TokenShards,
    flatten,
    token_dtype,
    write_token_shard,
)

EOT = 3
METADATA = ShardMetadata(tokenizer="t" * 64, vocab_size=1000, eot=EOT, text_shard="x" * 64)
DOCUMENTS = [[5, 6, 7, EOT], [EOT], [999, 0, EOT]]


def write(path: Path, documents: list[list[int]], metadata: ShardMetadata = METADATA) -> ShardUnit:
    tokens, offsets = flatten(documents, token_dtype(metadata.vocab_size))
    write_token_shard(path, tokens, offsets, [f"{index:032x}" for index in range(len(documents))], metadata)
    return ShardUnit(path, durable.sha256(path), len(documents), len(tokens), 0)


def stream(units: list[ShardUnit]) -> TokenShards:
    return TokenShards(units, METADATA.tokenizer, METADATA.vocab_size, EOT)


@pytest.mark.parametrize(("vocab_size", "dtype"), [(1 << 16, np.uint16), ((1 << 16) + 1, np.uint32)])
def test_documents_come_back_with_their_ids_in_the_smallest_dtype(tmp_path: Path, vocab_size: int, dtype: type) -> None:
    documents = [[vocab_size - 1, EOT], [0, 1, EOT]]
    write(tmp_path / "a.arrow", documents, replace(METADATA, vocab_size=vocab_size))
    shard = TokenShard(tmp_path / "a.arrow")
    assert shard.tokens.dtype == dtype
    assert [(name, tokens.tolist()) for name, tokens in shard.documents()] == [
        (f"{0:032x}", documents[0]),
        (f"{1:032x}", documents[1]),
    ]
    assert shard.metadata == replace(METADATA, vocab_size=vocab_size)


def test_equal_documents_give_equal_bytes(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a.arrow", DOCUMENTS), write(tmp_path / "b.arrow", DOCUMENTS)
    assert first.sha256 == second.sha256


def test_tokens_are_views_of_the_file_and_its_descriptor_is_closed(tmp_path: Path) -> None:
    write(tmp_path / "a.arrow", DOCUMENTS)
    before = len(os.listdir("/proc/self/fd"))
    shard = TokenShard(tmp_path / "a.arrow")
    assert len(os.listdir("/proc/self/fd")) == before
    assert not shard.tokens.flags.owndata and not shard.tokens.flags.writeable
    assert shard.tokens.tolist() == [5, 6, 7, EOT, EOT, 999, 0, EOT]


def test_many_shards_read_as_one_stream(tmp_path: Path) -> None:
    documents = [[[index, index + 1, EOT]] * (index + 1) for index in range(4, 9)]
    shards = stream([write(tmp_path / f"{index}.arrow", docs) for index, docs in enumerate(documents)])
    whole = [token for docs in documents for document in docs for token in document]
    assert len(shards) == len(whole)
    for start in range(len(whole)):
        for length in (0, 1, 7, len(whole) - start):
            assert shards.read(start, min(length, len(whole) - start)).tolist() == whole[start : start + length]
    assert [tokens.tolist() for _, tokens in shards.documents()] == [
        document for docs in documents for document in docs
    ]


@pytest.mark.parametrize(("start", "length"), [(-1, 1), (0, 9), (8, 1)])
def test_reading_outside_of_the_stream_is_refused(tmp_path: Path, start: int, length: int) -> None:
    with pytest.raises(IndexError, match="outside of a stream of 8"):
        stream([write(tmp_path / "a.arrow", DOCUMENTS)]).read(start, length)


def test_datasets_opens_a_token_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.arrow", DOCUMENTS)
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    from datasets import load_dataset

    dataset = load_dataset(
        "arrow", data_files=str(tmp_path / "a.arrow"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert dataset["tokens"][:] == DOCUMENTS
    assert dataset["id"][:] == [f"{index:032x}" for index in range(3)]


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ([[1, 2]], "ends with token 2, not with EOT 3"),
        ([[1, EOT], []], "at least its end-of-text token"),
        ([[1000, EOT]], "token id 1000 is outside of the vocabulary of 1000"),
        ([], "at least one document"),
    ],
)
def test_what_is_not_whole_documents_is_not_written(tmp_path: Path, documents: list[list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "a.arrow", documents)
    assert list(tmp_path.iterdir()) == []


def test_a_manifest_gives_the_shards_and_another_kind_is_refused(tmp_path: Path) -> None:
    unit = write(tmp_path / "a.arrow", DOCUMENTS)
    entry = {"path": "a.arrow", "sha256": unit.sha256, "size": 1, "documents": 3, "tokens": 8, "bytes": 20}
    facts = {"schema": 1, "tokenizer": METADATA.tokenizer, "vocab_size": 1000, "eot": EOT, "units": [entry]}
    durable.write_json(tmp_path / "train.json", facts | {"kind": "token_shards"})
    durable.write_json(tmp_path / "text.json", facts | {"kind": "text_shards"})
    shards = TokenShards.from_manifest(tmp_path / "train.json", tmp_path)
    assert (len(shards), shards.units[0].bytes) == (8, 20)
    with pytest.raises(ValueError, match="'text_shards'"):
        TokenShards.from_manifest(tmp_path / "text.json", tmp_path)


def test_a_flipped_bit_a_missing_file_and_a_foreign_file_are_told_apart(tmp_path: Path) -> None:
    unit = write(tmp_path / "a.arrow", DOCUMENTS)
    stream([unit]).verify(0)
    data = bytearray(unit.path.read_bytes())
    data[len(data) // 2] ^= 1
    unit.path.write_bytes(data)
    with pytest.raises(DamagedShard, match="its manifest says"):
        stream([unit]).verify(0)
    unit.path.write_bytes(b"not arrow at all")
    with pytest.raises(DamagedShard, match="not an Arrow file of gptline"):
        stream([unit]).read(0, 1)
    unit.path.unlink()
    with pytest.raises(DamagedShard, match="missing"):
        stream([unit]).verify(0)


def test_a_shard_of_another_tokenizer_is_refused(tmp_path: Path) -> None:
    unit = write(tmp_path / "a.arrow", DOCUMENTS, replace(METADATA, tokenizer="other"))
    with pytest.raises(DamagedShard, match="made by tokenizer other"):
        stream([unit]).read(0, 1)


def test_a_shard_whose_documents_end_otherwise_than_its_manifest_says_is_refused(tmp_path: Path) -> None:
    unit = write(tmp_path / "a.arrow", DOCUMENTS)
    with pytest.raises(DamagedShard, match="ends documents with token 3, the manifest says 7; run the tokenize stage"):
        TokenShards([unit], METADATA.tokenizer, METADATA.vocab_size, 7).read(0, 1)
