"""The data order is a pure function of the seed and the step, the same at any number of ranks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from model.batches import (
    POOL,
    Permutation,
    RankBatch,
    example_batch,
    example_order,
    padding,
    pretrain_batch,
    samples,
    sequences,
)
from model.examples import Examples, write_examples
from model.objectives import count_loss_tokens
from model.token_shards import TokenShards
from tests.model.test_token_shards import EOT, stream, write

ORDER = {"seed": 5, "global_batch_size": 8}


@pytest.fixture
def shards(tmp_path: Path) -> TokenShards:
    """Three shards whose stream is 0, 1, 2, ... but for the ends of documents."""
    starts = [0, 200, 320, 500]
    units = []
    for index in range(3):
        document = list(range(starts[index], starts[index + 1] - 1))
        units.append(write(tmp_path / f"{index}.arrow", [[*document, EOT]]))
    return stream(units)


@pytest.fixture
def examples(tmp_path: Path) -> Examples:
    """100 examples of 1 to 40 tokens; example i is labelled i % 3 and its tokens are all i."""
    lengths = np.random.default_rng(0).integers(1, 41, 100)
    tokens = [[index] * int(length) for index, length in enumerate(lengths)]
    ids, labels = [str(index) for index in range(100)], [index % 3 for index in range(100)]
    write_examples(tmp_path / "e.arrow", tokens, ids, tokenizer="t", vocab_size=500, eot=499, labels=labels)
    return Examples(tmp_path / "e.arrow")


@pytest.mark.parametrize("n", [1, 2, 3, 7, 64, 65, 1000, 4099])
def test_the_permutation_is_a_permutation_with_random_access(n: int) -> None:
    permutation = Permutation(n, seed=1)
    whole = permutation(np.arange(n))
    assert sorted(whole.tolist()) == list(range(n))
    places = np.array([n - 1, 0, n // 2])
    assert permutation(places).tolist() == whole[places].tolist()


def test_the_permutation_depends_on_seed_and_epoch_and_on_nothing_else() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return Permutation(1000, seed, epoch)(np.arange(1000)).tolist()

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(2, 0)
    assert order(1, 0) != order(1, 1)


def test_the_permutation_is_the_one_that_earlier_runs_had() -> None:
    assert Permutation(1000, 0)(np.arange(6)).tolist() == [776, 908, 865, 517, 545, 454]


def test_the_permutation_looks_random() -> None:
    order = Permutation(10_000, seed=3)(np.arange(10_000))
    assert abs(np.corrcoef(np.arange(10_000), order)[0, 1]) < 0.03
    assert (np.diff(order) == 1).mean() < 0.002
    places = np.bincount(order[:1000] // 1000, minlength=10)  # the first tenth comes from everywhere
    assert places.min() > 60 and places.max() < 140


def test_every_epoch_sees_each_sample_once_in_another_order() -> None:
    run = samples(10, seed=0, start=0, count=35)
    for epoch in range(3):
        assert sorted(run[epoch * 10 : epoch * 10 + 10].tolist()) == list(range(10))
    assert run[:10].tolist() != run[10:20].tolist()
    assert samples(10, seed=0, start=7, count=9).tolist() == run[7:16].tolist()


def ranks_of(batch: list[RankBatch]) -> list[list[int]]:
    return [row.tolist() for share in batch for row in share.rows.tokens]


@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_one_two_and_four_ranks_see_the_same_samples_of_a_stream(shards: TokenShards, world_size: int) -> None:
    for step in (0, 1, 9):
        alone = pretrain_batch(shards, step, length=16, **ORDER)
        shares = [
            pretrain_batch(shards, step, length=16, **ORDER, rank=rank, world_size=world_size)
            for rank in range(world_size)
        ]
        assert ranks_of(shares) == ranks_of([alone])
        assert torch.cat([share.rows.indices for share in shares]).tolist() == list(range(8))
        assert {share.loss_tokens for share in shares} == {alone.loss_tokens} == {8 * 16}


def test_a_sequence_is_the_stream_at_its_place_with_one_token_more(shards: TokenShards) -> None:
    count = sequences(shards, 16)
    order = samples(count, 5, 0, 8)
    rows = pretrain_batch(shards, 0, length=16, **ORDER).rows.tokens  # (8, 17)
    for row, sample in zip(rows, order.tolist(), strict=True):
        assert row.tolist() == shards.read(sample * 16, 17).tolist()
    assert count == 499 // 16


def test_micro_batches_are_the_rows_in_order(shards: TokenShards) -> None:
    share = pretrain_batch(shards, 3, length=16, **ORDER)
    pieces = list(share.micro_batches(2))
    assert [len(piece.tokens) for piece in pieces] == [2, 2, 2, 2]
    assert torch.equal(torch.cat([piece.tokens for piece in pieces]), share.rows.tokens)
    assert torch.cat([piece.indices for piece in pieces]).tolist() == list(range(8))


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_see_the_same_examples_padded_to_the_same_length(examples: Examples, world_size: int) -> None:
    for step in (0, 1, POOL, 3 * POOL + 1):
        alone = example_batch(examples, step, length=32, **ORDER)
        shares = [
            example_batch(examples, step, length=32, **ORDER, rank=rank, world_size=world_size)
            for rank in range(world_size)
        ]
        assert ranks_of(shares) == ranks_of([alone])
        labels = [share.rows.labels for share in shares]
        assert torch.equal(torch.cat([label for label in labels if label is not None]), alone.rows.labels)
        assert {(share.loss_tokens, share.real_tokens) for share in shares} == {(8, alone.real_tokens)}


def test_an_example_keeps_its_tokens_its_label_and_its_padding_on_the_right(examples: Examples) -> None:
    share = example_batch(examples, 2, length=32, **ORDER)
    assert share.rows.labels is not None
    for row, label, sample in zip(
        share.rows.tokens, share.rows.labels, example_order(examples, 2, **ORDER), strict=True
    ):
        length = min(32, int(examples.lengths[sample]))
        assert row.tolist() == [int(sample)] * length + [499] * (len(row) - length)
        assert int(label) == sample % 3


def test_an_epoch_of_examples_holds_each_once_and_batches_are_of_like_length(tmp_path: Path) -> None:
    lengths = np.random.default_rng(1).integers(1, 60, 3 * POOL * 8)
    ids = [str(index) for index in range(len(lengths))]
    tokens = [[1] * int(length) for length in lengths]
    write_examples(tmp_path / "e.arrow", tokens, ids, tokenizer="t", vocab_size=9, eot=0, labels=[0] * len(ids))
    examples = Examples(tmp_path / "e.arrow")
    batches = [example_order(examples, step, **ORDER) for step in range(3 * POOL)]
    assert sorted(np.concatenate(batches).tolist()) == list(range(3 * POOL * 8))
    spread = [np.ptp(examples.lengths[batch]) for batch in batches]
    assert max(spread) < 20
    first = [int(examples.lengths[batch].max()) for batch in batches]
    assert first[:POOL] != sorted(first[:POOL]), "short batches must not come first"


def test_the_seed_and_the_epoch_say_which_batch_of_an_epoch_comes_when(tmp_path: Path) -> None:
    """Examples that all differ in length, as many as a pool has: its batches are always the same ones."""
    count = POOL * 8
    tokens = [[1] * (1 + index) for index in range(count)]
    ids = [str(index) for index in range(count)]
    write_examples(tmp_path / "e.arrow", tokens, ids, tokenizer="t", vocab_size=9, eot=0, labels=[0] * count)
    examples = Examples(tmp_path / "e.arrow")

    def order(seed: int, epoch: int) -> list[tuple[int, ...]]:
        steps = range(epoch * POOL, (epoch + 1) * POOL)
        return [tuple(example_order(examples, step, seed=seed, global_batch_size=8).tolist()) for step in steps]

    orders = [order(0, 0), order(1, 0), order(0, 1)]
    assert all(set(one) == set(orders[0]) for one in orders)
    assert orders[0] != orders[1] and orders[0] != orders[2] and orders[1] != orders[2]


def test_a_batch_that_does_not_divide_over_the_ranks_is_refused(shards: TokenShards) -> None:
    with pytest.raises(ValueError, match="global_batch_size=8 does not divide over 3 ranks"):
        pretrain_batch(shards, 0, length=16, **ORDER, rank=0, world_size=3)


def test_a_stream_shorter_than_a_sequence_is_refused(shards: TokenShards) -> None:
    with pytest.raises(ValueError, match="500 tokens hold no sequence of 500"):
        pretrain_batch(shards, 0, length=500, **ORDER)


def test_an_example_without_a_label_is_refused_by_name(tmp_path: Path) -> None:
    write_examples(tmp_path / "e.arrow", [[1], [2]], ["x", "y"], tokenizer="t", vocab_size=9, eot=0)
    with pytest.raises(ValueError, match="has no label"):
        example_batch(Examples(tmp_path / "e.arrow"), 0, seed=0, global_batch_size=2, length=4)


@pytest.fixture
def answers(tmp_path: Path) -> Examples:
    """60 examples of 2 to 40 tokens, of which those from a random place on are to be learned; every tenth has no mask."""
    chance = np.random.default_rng(2)
    lengths = chance.integers(2, 41, 60)
    tokens = [[index] * int(length) for index, length in enumerate(lengths)]
    masks = [
        None if index % 10 == 9 else np.arange(length) >= chance.integers(1, length)
        for index, length in enumerate(lengths)
    ]
    ids = [str(index) for index in range(60)]
    write_examples(tmp_path / "a.arrow", tokens, ids, tokenizer="t", vocab_size=500, eot=499, loss_masks=masks)
    return Examples(tmp_path / "a.arrow")


@pytest.mark.parametrize("world_size", [2, 4])
def test_masks_and_their_count_do_not_depend_on_the_number_of_ranks(answers: Examples, world_size: int) -> None:
    how = {"length": 32, "objective": "causal_lm", **ORDER}
    for step in (0, 1, POOL, 3 * POOL + 1):
        alone = example_batch(answers, step, **how)
        shares = [example_batch(answers, step, **how, rank=rank, world_size=world_size) for rank in range(world_size)]
        masks = torch.cat([share.rows.loss_mask for share in shares if share.rows.loss_mask is not None])
        assert torch.equal(masks, alone.rows.loss_mask)
        assert alone.rows.labels is None
        targets = [int(count_loss_tokens("causal_lm", share.rows)) for share in shares]
        assert {share.loss_tokens for share in shares} == {alone.loss_tokens} == {sum(targets)}


def test_a_row_is_learned_where_its_mask_says_and_never_at_padding(answers: Examples) -> None:
    share = example_batch(answers, 2, length=32, objective="causal_lm", **ORDER)
    assert share.rows.loss_mask is not None
    for row, mask, sample in zip(
        share.rows.tokens, share.rows.loss_mask, example_order(answers, 2, **ORDER), strict=True
    ):
        expected = answers.loss_mask(int(sample))[:32].tolist()
        assert mask.tolist() == expected + [False] * (len(row) - len(expected))
        if sample % 10 == 9:
            assert all(expected)


def test_a_batch_without_anything_to_learn_is_refused(tmp_path: Path) -> None:
    nothing = [[False, False]] * 2
    write_examples(
        tmp_path / "e.arrow", [[1, 2]] * 2, ["x", "y"], tokenizer="t", vocab_size=9, eot=0, loss_masks=nothing
    )
    with pytest.raises(ValueError, match="has no token to learn"):
        example_batch(Examples(tmp_path / "e.arrow"), 0, seed=0, global_batch_size=2, length=4, objective="causal_lm")


@pytest.fixture
def weighted(tmp_path: Path) -> Examples:
    """40 examples of 3 classes with weights 0.5, 1.0 and 3.25."""
    labels = [index % 3 for index in range(40)]
    write_examples(
        tmp_path / "w.arrow", [[index] * (1 + index % 7) for index in range(40)], list(map(str, range(40))),
        tokenizer="t", vocab_size=500, eot=499, labels=labels, weights=[(0.5, 1.0, 3.25)[label] for label in labels],
    )  # fmt: skip
    return Examples(tmp_path / "w.arrow")


def test_weights_follow_their_examples_and_every_rank_divides_by_the_whole_batchs_sum(weighted: Examples) -> None:
    whole = example_batch(weighted, 3, length=16, **ORDER)
    assert whole.rows.weights is not None and whole.rows.labels is not None
    assert whole.rows.weights.tolist() == [(0.5, 1.0, 3.25)[label] for label in whole.rows.labels.tolist()]
    assert whole.loss_tokens == pytest.approx(float(whole.rows.weights.double().sum()))
    halves = [example_batch(weighted, 3, length=16, rank=rank, world_size=2, **ORDER) for rank in range(2)]
    assert [half.loss_tokens for half in halves] == [whole.loss_tokens] * 2
    assert torch.cat([half.rows.weights for half in halves if half.rows.weights is not None]).equal(whole.rows.weights)
    parts = [part.weights for part in whole.micro_batches(2) if part.weights is not None]
    assert torch.cat(parts).equal(whole.rows.weights) and len(parts) == 4


def test_a_weighted_loss_is_torchs_own_with_class_weights_however_the_batch_is_sliced(weighted: Examples) -> None:
    from model.config import ModelConfig
    from model.heads import build
    from model.objectives import loss

    config = ModelConfig(n_positions=16, n_embd=16, n_layer=1, n_head=2, vocab_size=500, eot_token_id=499, num_labels=3)
    model = build(config, seed=1).double()
    share = example_batch(weighted, 0, length=16, **ORDER)
    labels = share.rows.labels
    assert labels is not None
    expected = torch.nn.functional.cross_entropy(
        model(share.rows.tokens).float(), labels, weight=torch.tensor([0.5, 1.0, 3.25])
    )
    sums = [loss(model, "classification", part)[0] for part in share.micro_batches(2)]
    assert float(torch.stack(sums).detach().sum()) / share.loss_tokens == pytest.approx(
        float(expected.detach()), rel=1e-6
    )


def test_batches_by_length_leave_less_than_a_tenth_of_padding(tmp_path: Path) -> None:
    lengths = np.random.default_rng(1).lognormal(3.0, 0.5, 6400).astype(int).clip(2, 128)  # as sentences of reviews are
    write_examples(
        tmp_path / "l.arrow", [[1] * int(length) for length in lengths], list(map(str, range(6400))),
        tokenizer="t", vocab_size=9, eot=0, labels=[0] * 6400,
    )  # fmt: skip
    order = {"seed": 0, "global_batch_size": 32}
    examples = Examples(tmp_path / "l.arrow")
    found = {pool: padding(examples, 128, length=128, pool=pool, **order) for pool in (1, 16, 64)}
    assert found[1] > 0.4 and found[16] < 0.2 and found[64] < 0.1
    batches = [example_batch(examples, step, length=128, pool=64, **order) for step in range(128)]
    whole = sum(batch.rows.tokens.numel() for batch in batches)
    assert found[64] == pytest.approx(1 - sum(batch.real_tokens for batch in batches) / whole)
    seen = np.bincount(np.concatenate([example_order(examples, step, pool=64, **order) for step in range(192)]))
    assert seen.max() == 1 and seen.sum() == 192 * 32, "each comes once an epoch, but for the pool's end"


@pytest.mark.parametrize(("count", "batch"), [(40, 32), (100, 32), (300, 32), (1000, 32), (33, 8), (7000, 32)])
def test_a_batch_of_few_examples_holds_as_many_different_ones_as_without_pools(
    count: int, batch: int, tmp_path: Path
) -> None:
    """Copies are equally long: a pool over several epochs would put them side by side."""
    lengths = np.random.default_rng(1).integers(2, 12, count)
    write_examples(
        tmp_path / "few.arrow", [[1] * int(length) for length in lengths], list(map(str, range(count))),
        tokenizer="t", vocab_size=9, eot=0, labels=[0] * count,
    )  # fmt: skip
    examples = Examples(tmp_path / "few.arrow")

    def different(pool: int) -> float:
        order = {"seed": 0, "global_batch_size": batch, "pool": pool}
        return float(np.mean([len(set(example_order(examples, step, **order).tolist())) for step in range(96)]))

    assert different(16) > 0.96 * different(1) and different(64) > 0.96 * different(1)


def test_examples_come_in_another_order_by_another_seed(examples: Examples) -> None:
    first, same, other = (
        [example_order(examples, step, seed=seed, global_batch_size=8).tolist() for step in range(POOL)]
        for seed in (5, 5, 6)
    )
    assert first == same and sorted(map(sorted, first)) != sorted(map(sorted, other)), "other examples meet"
