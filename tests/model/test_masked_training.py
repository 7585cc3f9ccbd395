"""BERT's objectives under the real engine: killed and continued, on one rank and on two, and exported."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model import durable
from model.inspection import training_batch
from model.token_shards import ShardMetadata, flatten, token_dtype, write_token_shard
from model.vocabulary import load
from tests.model.text import tokenizer
from tests.model.training_runs import MIDDLE, finish, metrics, start, weights
from tests.pipelines.test_tokenizer import TEXT

STEPS = 12


class Pairs:
    """Documents that count upwards, each in sentences of ten numbers, and jobs that learn from them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tokenizer = tokenizer(folder / "tokenizer", TEXT, special_tokens="bert")
        self.vocabulary = load(self.tokenizer)
        generator, documents, marks, filled = np.random.default_rng(0), [], [], 0
        for _ in range(80):
            counting = generator.integers(0, self.vocabulary.size) + np.arange(generator.integers(15, 90))
            marks += (filled + np.arange(0, len(counting), 10)).tolist()
            documents.append([*(counting % (self.vocabulary.size - 4) + 4), self.vocabulary.sep])
            filled += len(documents[-1])
        tokens, offsets = flatten(documents, token_dtype(self.vocabulary.size))
        path, facts = folder / "0.arrow", ShardMetadata("t", self.vocabulary.size, self.vocabulary.sep, "x")
        write_token_shard(path, tokens, offsets, [f"{n:032x}" for n in range(80)], facts, np.array(marks))
        unit = {"path": path.name, "documents": 80, "tokens": len(tokens), "bytes": 1, "sentences": len(marks)}
        head = {"schema": 1, "kind": "token_shards", "tokenizer": "t", "vocab_size": facts.vocab_size, "eot": facts.eot}
        units = [unit | {"sha256": durable.sha256(path), "size": path.stat().st_size}]
        durable.write_json(folder / "train.json", head | {"units": units})

    def job(self, name: str, objective: str, **train: Any) -> dict[str, Any]:
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
            "objective": objective, "objective_options": {"whole_words": objective == "masked_lm_next_sentence"},
            "data": {"manifest": str(self.folder / "train.json"), "root": str(self.folder)},
            "tokenizer": str(self.tokenizer),
            "attempt": str(home / "attempts" / "a"), "outputs": str(home / "attempts" / "a" / "outputs"),
            "checkpoints": str(home / "checkpoints"), "micro_batch_size": 2, "checkpoint_every": MIDDLE,
            "keep_checkpoints": 9,
        }  # fmt: skip


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    return Pairs(tmp_path_factory.mktemp("pairs"))


def test_a_killed_run_ends_with_identical_bytes_and_two_ranks_lose_the_same(pairs: Pairs) -> None:
    """Every objective in one process; that of both, killed after its first checkpoint and started again; and on two ranks."""
    both = "masked_lm_next_sentence"
    whole = {objective: pairs.job(objective, objective) for objective in (both, "masked_lm", "next_sentence")}
    killed, split = pairs.job("killed", both), pairs.job("split", both, zero_stage=2)
    victim = start([killed], 1)
    deadline = time.monotonic() + 120
    while not any(Path(killed["checkpoints"]).glob("step-*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    victim.kill()
    victim.communicate()
    assert not Path(killed["outputs"], "export").exists()
    alone, ranks = start([*whole.values(), killed], 1), start([split], 2)
    results, _ = finish(alone)
    assert results[-1]["resumed_from"], "from a checkpoint"
    assert weights(killed) == weights(whole[both]) and metrics(killed) == metrics(whole[both])
    finish(ranks)
    for ours, theirs in zip(metrics(whole[both]), metrics(split), strict=True):
        assert (ours["tokens"], ours["learning_rate"]) == (theirs["tokens"], theirs["learning_rate"])
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)


def test_a_batch_is_shown_as_the_model_sees_it_with_what_was_hidden(pairs: Pairs) -> None:
    for objective in ("masked_lm", "masked_lm_next_sentence", "next_sentence"):
        rows = training_batch(pairs.job(f"shown-{objective}", objective) | {"step": 1})
        assert len(rows) == 8 and all(row["origin"].startswith("0.arrow document ") for row in rows)
        for row in rows:
            hidden = [
                at for at, (seen, said) in enumerate(zip(row["tokens"], row["targets"], strict=True)) if seen != said
            ]
            assert all(row["loss_mask"][at] for at in hidden)
        assert any(any(row["loss_mask"]) for row in rows) == (objective != "next_sentence")
