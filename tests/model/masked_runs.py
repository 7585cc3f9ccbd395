"""Small real jobs of BERT's objectives for the tests: a corpus with sentences and labels, and what is learned from it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from model import durable
from model.token_shards import ShardMetadata, flatten, token_dtype, write_token_shard
from model.vocabulary import load
from tests.model.text import tokenizer
from tests.model.training_runs import MIDDLE
from tests.pipelines.test_tokenizer import TEXT

STEPS = 12
# What is learned, by name: the objective and its options.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "both": ("masked_lm_next_sentence", {"whole_words": True}),
    "masked_lm": ("masked_lm", {}),
    "within": ("masked_lm", {"attention": "within_documents"}),
    "next_sentence": ("next_sentence", {}),
    "mixture": ("masked_lm_next_sentence", {"mixture": {"b": 3.0, "a": 1.0}}),
}


class Pairs:
    """Documents that count upwards, each in sentences of ten numbers, in two corpora, and jobs that learn from them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tokenizer = tokenizer(folder / "tokenizer", TEXT, special_tokens="bert")
        self.vocabulary = load(self.tokenizer)
        self.manifest = folder / "train.json"
        facts = self.vocabulary
        head = {"schema": 1, "kind": "token_shards", "tokenizer": "t", "vocab_size": facts.size, "eot": facts.sep}
        generator = np.random.default_rng(0)
        units = [self._write(generator, corpus, documents) for corpus, documents in (("a", 60), ("b", 20))]
        durable.write_json(self.manifest, head | {"units": units})

    def _write(self, generator: np.random.Generator, corpus: str, count: int) -> dict[str, Any]:
        documents, marks, filled = [], [], 0
        for _ in range(count):
            counting = generator.integers(0, self.vocabulary.size) + np.arange(generator.integers(15, 90))
            marks += (filled + np.arange(0, len(counting), 10)).tolist()
            documents.append([*(counting % (self.vocabulary.size - 4) + 4), self.vocabulary.sep])
            filled += len(documents[-1])
        tokens, offsets = flatten(documents, token_dtype(self.vocabulary.size))
        path, facts = (
            self.folder / f"{corpus}.arrow",
            ShardMetadata("t", self.vocabulary.size, self.vocabulary.sep, "x"),
        )
        write_token_shard(path, tokens, offsets, [f"{n:032x}" for n in range(count)], facts, np.array(marks))
        unit = {"path": path.name, "documents": count, "tokens": len(tokens), "bytes": 1, "sentences": len(marks)}
        return unit | {"sha256": durable.sha256(path), "size": path.stat().st_size, "corpus": corpus}

    def job(self, name: str, case: str, **train: Any) -> dict[str, Any]:
        """A job named `name` that learns one of CASES, in folders of its own."""
        objective, options = CASES[case]
        home = self.folder / name
        (home / "attempts" / "a").mkdir(parents=True)
        (home / "checkpoints").mkdir()
        facts = self.vocabulary
        return {
            "model": {
                "family": "bert", "n_positions": 48, "n_embd": 30, "n_layer": 2, "n_head": 3, "resid_pdrop": 0.1,
                "vocab_size": facts.size, "eot_token_id": facts.sep, "pad_token_id": facts.pad, "cls_token_id": facts.cls,
                "sep_token_id": facts.sep, "mask_token_id": facts.mask,
                "head": "masked_lm" if objective == "masked_lm" else "pretraining",
            },
            "train": {
                "max_steps": STEPS, "global_batch_size": 8, "sequence_length": 40, "learning_rate": 2e-3,
                "warmup_steps": 2,
            } | train,
            "objective": objective, "objective_options": options,
            "data": {"manifest": str(self.manifest), "root": str(self.folder)},
            "tokenizer": str(self.tokenizer),
            "attempt": str(home / "attempts" / "a"), "outputs": str(home / "attempts" / "a" / "outputs"),
            "checkpoints": str(home / "checkpoints"), "micro_batch_size": 2, "checkpoint_every": MIDDLE,
            "keep_checkpoints": 9,
        }  # fmt: skip

    def continuation(self, done: dict[str, Any], case: str) -> dict[str, Any]:
        """The job `done` as it stood in its middle: its checkpoint there is all that the new one finds."""
        new = self.job(f"resumed-{case}", case, **done["train"])
        middle = f"step-{MIDDLE:06d}"
        shutil.copytree(Path(done["checkpoints"], middle), Path(new["checkpoints"], middle))
        return new
