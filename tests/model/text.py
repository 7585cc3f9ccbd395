"""A small corpus of numbered tokens with sentences, and a vocabulary for masking it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from model import durable
from model.job import StreamData
from model.pretraining import Order, Pretraining
from model.token_shards import ShardMetadata, ShardUnit, TokenShards, flatten, token_dtype, write_token_shard
from model.train_config import ObjectiveConfig
from model.vocabulary import Vocabulary

SIZE, PAD, CLS, SEP, MASK = 1000, 0, 1, 2, 3


def vocabulary() -> Vocabulary:
    """Four special tokens; of the others, those with a number that three divides go on with a word."""
    special = np.arange(SIZE) < 4
    return Vocabulary(SIZE, PAD, CLS, SEP, MASK, special, special | (np.arange(SIZE) % 3 > 0))


def corpus(folder: Path, seed: int = 1, shards: int = 3, documents: int = 60, largest: int = 0) -> TokenShards:
    """Shards of documents of 1 to 9 sentences of 1 to 30 tokens; the first document has `largest` more sentences."""
    generator, units = np.random.default_rng(seed), []
    folder.mkdir(exist_ok=True)
    for index in range(shards):
        texts, marks, filled = [], [], 0
        for number in range(documents):
            sentences = generator.integers(1, 10) + (largest if index == number == 0 else 0)
            sizes = generator.integers(1, 31, sentences)
            marks += (filled + np.cumsum([0, *sizes[:-1]])).tolist()
            texts.append([*generator.integers(4, SIZE, sizes.sum()).tolist(), SEP])
            filled += len(texts[-1])
        tokens, offsets = flatten(texts, token_dtype(SIZE))
        path = folder / f"{index}.arrow"
        metadata = ShardMetadata("t", SIZE, SEP, "x")
        write_token_shard(path, tokens, offsets, [f"{n:032x}" for n in range(documents)], metadata, np.array(marks))
        units.append(ShardUnit(path, durable.sha256(path), documents, len(tokens), 0, len(marks)))
    return TokenShards(units, "t", SIZE, SEP)


def manifest(folder: Path, corpora: dict[str, TokenShards]) -> StreamData:
    """A manifest of several corpora, by their labels."""
    units = [
        asdict(unit) | {"path": str(unit.path), "corpus": name} for name, one in corpora.items() for unit in one.units
    ]
    head = {"schema": 1, "kind": "token_shards", "tokenizer": "t", "vocab_size": SIZE, "eot": SEP}
    durable.write_json(folder / "train.json", head | {"units": units})
    return StreamData(manifest=str(folder / "train.json"), root="/")


def batches(
    corpora: TokenShards | dict[str, TokenShards], objective: str, order: dict[str, int] | None = None, **options: Any
) -> Pretraining:
    """The batches of an objective: 16 sequences of 64 tokens, unless `order` says otherwise."""
    named = corpora if isinstance(corpora, dict) else {"": corpora}
    places: dict[str, int] = {"seed": 3, "global_batch_size": 16, "length": 64} | (order or {})
    return Pretraining(named, objective, ObjectiveConfig(**options), Order(**places), vocabulary())


def tokenizer(folder: Path, text: str, **config: Any) -> Path:
    """A tokenizer directory as the stage makes it, without Ray."""
    from pipelines.config import Source
    from pipelines.sources import described, source_file
    from pipelines.stages.train_tokenizer_work import train
    from pipelines.stretches import whole

    source = folder.with_suffix(".txt")
    source.write_text(text)
    (file,) = described(Source(path=str(source)), folder, durable.sha256, True)
    folder.mkdir()
    settings = {"vocab_size": 400, "min_frequency": 2, "max_bytes": 1 << 20} | config
    train({"folder": str(folder), "config": settings, "stretches": [asdict(whole(source_file(file)))]})
    return folder
