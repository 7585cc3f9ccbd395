"""Masking: hidden tokens a second against `transformers`' DataCollatorForLanguageModeling, single tokens and whole words.

The one idea: the same rows, the same tokenizer, the same rates. The collator draws from a generator, so that a restart
hides other tokens; ours reads a hash of (seed, place in the run).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import contender
from benchmarks.report import Figure, Options, at_least

LENGTH, ROWS, TURNS = 512, 64, 7
FULL, SMALL = 8, 1  # batches in a turn


def run(options: Options) -> list[Figure]:
    """Both ways of masking, in million tokens of the batch a second."""
    item = {"folder": str(options.folder / "masking"), "batches": SMALL if options.small else FULL}
    found = contender.run("benchmarks.masking:measure", item, threads=1)
    name = "masking"
    other = "transformers' DataCollatorForLanguageModeling"
    return [
        at_least(name, "M tokens/s", found["tokens"][0], other, found["tokens"][1], 1),
        at_least(f"{name}, whole words", "M tokens/s", found["words"][0], other, found["words"][1], 1),
    ]


def measure(item: dict[str, Any]) -> dict[str, list[float]]:
    """The median of some turns of each: [ours, theirs] for single tokens and for whole words."""
    import torch
    from transformers import AutoTokenizer, DataCollatorForLanguageModeling

    from model.masking import Masking
    from model.vocabulary import load

    folder = _tokenizer(item["folder"])
    tokenizer, vocabulary = AutoTokenizer.from_pretrained(folder), load(folder)
    rows = np.random.default_rng(0).integers(5, vocabulary.size, (ROWS, LENGTH))
    rows[:, 0], rows[:, -1] = vocabulary.cls, vocabulary.sep
    theirs_rows = [{"input_ids": torch.from_numpy(row)} for row in rows]
    places = np.arange(ROWS)
    found = {}
    for name, words in (("tokens", False), ("words", True)):
        masking = Masking(vocabulary, 0, whole_words=words)
        collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15, whole_word_mask=words)
        theirs = (
            [row | _offsets(rows, vocabulary)[index] for index, row in enumerate(theirs_rows)] if words else theirs_rows
        )
        found[name] = [
            _speed(lambda m=masking: m(rows, places), item["batches"]),  # type: ignore[misc]
            _speed(lambda c=collator, r=theirs: c([dict(row) for row in r]), item["batches"]),  # type: ignore[misc]
        ]
    return found


def _offsets(rows: np.ndarray, vocabulary: Any) -> list[dict[str, Any]]:
    """The characters of each token, as the collator wants them to know which tokens are one word: a word is a run of them."""
    found = []
    for row in rows:
        starts, place = [], 0
        for token in row.tolist():
            place += 2 if vocabulary.begins_word[token] else 1
            starts.append((0, 0) if vocabulary.special[token] else (place, place + 1))
        found.append({"offset_mapping": starts})
    return found


def _speed(work: Callable[[], Any], batches: int) -> float:
    """Million tokens a second, the median of some turns."""
    work()
    speeds = []
    for _ in range(TURNS):
        began = time.perf_counter()
        for _ in range(batches):
            work()
        speeds.append(batches * ROWS * LENGTH / (time.perf_counter() - began) / 1e6)
    return float(np.median(speeds))


def _tokenizer(folder: str) -> Any:
    """A WordPiece tokenizer of numbers, a third of which go on with a word."""
    from pathlib import Path

    from tokenizers import Tokenizer, models, pre_tokenizers

    from model import durable

    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *(f"{'##' if n % 3 == 0 else ''}w{n}" for n in range(30_000)),
    ]
    tokenizer = Tokenizer(models.WordPiece({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(words[:5])
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    durable.write_bytes(target / "tokenizer.json", tokenizer.to_str().encode())
    special = {f"{name[1:-1].lower()}_token": name for name in words[:5]}
    durable.write_json(target / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"} | special)
    return target
