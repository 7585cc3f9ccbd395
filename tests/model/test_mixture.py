"""A mixture is a function of the sample's number: its proportions hold, and each corpus goes through its own epochs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from model.mixture import items, mixed
from model.mixture_quotas import BLOCK, quotas
from model.pretraining import Order, streams
from model.train_config import ObjectiveConfig
from tests.model.text import batches, corpus, manifest


def test_the_proportions_hold_in_every_block_and_nearly_in_any_stretch() -> None:
    counts = tuple(quotas({"a": 6.0, "b": 3.0, "c": 1.0}).values())
    assert sum(counts) == BLOCK
    for block in range(3):
        which, _ = mixed(counts, 0, block * BLOCK, BLOCK)
        assert np.bincount(which).tolist() == list(counts)
    shares = np.bincount(mixed(counts, 0, 1000, 1000)[0]) / 1000
    assert abs(shares - [0.6, 0.3, 0.1]).max() < 0.05


def test_a_stretch_is_the_same_wherever_it_is_begun() -> None:
    counts = tuple(quotas({"a": 2.0, "b": 1.0}).values())
    whole = mixed(counts, 5, 0, 3 * BLOCK)
    for start, count in ((0, 1), (BLOCK - 3, 7), (BLOCK + 11, 2 * BLOCK - 11)):
        part = mixed(counts, 5, start, count)
        assert all(np.array_equal(a, b[start : start + count]) for a, b in zip(part, whole, strict=True))
    for corpus_number in (0, 1):  # a corpus's samples are counted without a gap
        assert whole[1][whole[0] == corpus_number].tolist() == list(range(3 * counts[corpus_number]))
    assert not np.array_equal(mixed(counts, 6, 0, BLOCK)[0], whole[0][:BLOCK])


def test_a_corpus_that_was_seen_whole_begins_its_next_epoch() -> None:
    found = items(10, "0 a", np.arange(35))
    for epoch in range(3):
        assert sorted(found[10 * epoch : 10 * epoch + 10].tolist()) == list(range(10))
    assert found[:10].tolist() != found[10:20].tolist()
    assert items(10, "0 a", np.arange(7, 16)).tolist() == found[7:16].tolist()
    assert items(10, "0 b", np.arange(10)).tolist() != found[:10].tolist()


def test_a_weight_that_is_next_to_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="weight 1e-05 of 'b' is less than 1/4096"):
        quotas({"a": 1.0, "b": 1e-5})


@pytest.mark.parametrize("objective", ["causal_lm", "masked_lm", "masked_lm_next_sentence"])
def test_every_objective_takes_its_rows_from_the_corpora_by_weight(tmp_path: Path, objective: str) -> None:
    corpora = {"large": corpus(tmp_path / "l", 1, 3), "small": corpus(tmp_path / "s", 2, 1, 12)}
    made = batches(corpora, objective, {"global_batch_size": 512}, mixture={"large": 1.0, "small": 3.0})
    which, chosen = made.drawn(8)
    assert abs((which == 1).mean() - 0.75) < 0.06
    assert chosen[which == 1].max() < made.sizes[1], "the small corpus is in a later epoch by now"
    for (shards, start), row in list(zip(made.beginnings(8), made(8).rows.tokens, strict=True))[:50]:
        first = 0 if objective == "causal_lm" else 1  # after [CLS]
        same = [a == b for a, b in zip(row[first : first + 8].tolist(), shards.read(start, 8).tolist(), strict=True)]
        assert sum(same) >= 3, "but for what is hidden it is the corpus's text"


def test_the_order_in_which_a_recipe_names_its_corpora_changes_nothing(tmp_path: Path) -> None:
    data = manifest(tmp_path, {"small": corpus(tmp_path / "s", 2, 1, 12), "large": corpus(tmp_path / "l", 1, 3)})
    one, other = (
        streams(data, "causal_lm", ObjectiveConfig(mixture=mixture), tmp_path, Order(3, 16, 64))
        for mixture in ({"large": 1.0, "small": 3.0}, {"small": 3.0, "large": 1.0})
    )
    for step in (0, 40):
        assert torch.equal(one(step).rows.tokens, other(step).rows.tokens)


def test_which_corpus_comes_when_depends_on_the_seed(tmp_path: Path) -> None:
    corpora = {"large": corpus(tmp_path / "l", 1, 3), "small": corpus(tmp_path / "s", 2, 1, 12)}
    first, same, other = (
        batches(corpora, "causal_lm", {"seed": seed}, mixture={"large": 1.0, "small": 1.0}).drawn(0)[0].tolist()
        for seed in (3, 3, 4)
    )
    assert first == same != other
