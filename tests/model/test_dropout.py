"""Dropout is a pure function of (seed, step, index, site), and its masks look like chance."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from model import heads, objectives
from model.dropout import DropoutKey, dropout, keep_mask, site_constants
from tests.model import tiny

SIZE = 64 * 96  # activations in a row
GOLDEN_KEYS = [[1505451193, -849515911], [-1315122007, 1656276910]]
GOLDEN_MASKS = ["1111101001011011", "0100001111000111"]


def masks(seed: int, step: int, indices: list[int], site: int, probability: float = 0.5) -> Tensor:
    row_keys = DropoutKey(seed, step, torch.tensor(indices)).row_keys()
    return keep_mask(row_keys, site_constants(site), SIZE, probability)


def test_rows_lose_the_same_activations_however_the_batch_is_cut() -> None:
    whole = masks(1, 2, [0, 1, 2, 3, 4, 5], 3)
    pieces = torch.cat([masks(1, 2, [5, 4], 3), masks(1, 2, [3], 3), masks(1, 2, [2, 1, 0], 3)]).flip(0)
    assert torch.equal(whole, pieces)


def test_padding_moves_no_activation() -> None:
    row_keys = DropoutKey(1, 2, torch.arange(3)).row_keys()
    site = site_constants(0)
    short = dropout(torch.ones(3, 5, 7), 0.4, row_keys, site)
    long = dropout(torch.ones(3, 12, 7), 0.4, row_keys, site)
    assert torch.equal(short, long[:, :5])


def test_masks_do_not_change_between_versions() -> None:
    """A resumed run must go on with the masks of the code that started it."""
    row_keys = DropoutKey(7, 11, torch.tensor([0, 13])).row_keys()
    assert row_keys.tolist() == GOLDEN_KEYS
    bits = keep_mask(row_keys, site_constants(5), 16, 0.5).int()
    assert ["".join(map(str, row)) for row in bits.tolist()] == GOLDEN_MASKS


@pytest.mark.parametrize("probability", [0.05, 0.1, 0.5, 0.9])
def test_share_of_dropped_activations_is_the_probability(probability: float) -> None:
    dropped = 1 - masks(3, 1, list(range(256)), 2, probability).double()
    deviation = (probability * (1 - probability)) ** 0.5
    assert dropped.mean().item() == pytest.approx(probability, abs=4 * deviation / dropped.numel() ** 0.5)
    rows = (dropped.mean(1) - probability) / (deviation / SIZE**0.5)  # standard normal
    columns = (dropped.mean(0) - probability) / (deviation / 256**0.5)
    assert rows.std().item() == pytest.approx(1, abs=0.2)
    assert columns.std().item() == pytest.approx(1, abs=0.05)


def test_masks_of_other_seeds_steps_indices_and_sites_are_uncorrelated() -> None:
    keys = list(itertools.product((0, 1), (0, 1, 2), (0, 1, 2, 3), (0, 1, 2, 3)))
    rows = torch.cat([masks(seed, step, [index], site) for seed, step, index, site in keys]).double() * 2 - 1
    correlation = (rows @ rows.T / SIZE).fill_diagonal_(0)
    assert correlation.abs().max() < 5.5 / SIZE**0.5  # 4,560 pairs of standard normals: beyond 5.5 by chance 2e-4


def test_neighbouring_activations_are_uncorrelated() -> None:
    signs = masks(5, 9, list(range(200)), 1).double() * 2 - 1
    for distance in (1, 2, 3, 4, 64, 96, 128):
        correlation = (signs[:, distance:] * signs[:, :-distance]).mean()
        assert abs(correlation.item()) < 4.5 / signs.numel() ** 0.5


def test_expected_value_is_kept_and_gradients_follow_the_mask() -> None:
    x = torch.ones(64, 96, 10, requires_grad=True)
    row_keys = DropoutKey(0, 0, torch.arange(64)).row_keys()
    y = dropout(x, 0.3, row_keys, site_constants(1))
    y.sum().backward()
    assert y.mean().item() == pytest.approx(1, abs=0.01)
    assert torch.equal(x.grad, y.detach())
    assert y.detach().unique().tolist() == pytest.approx([0, 1 / 0.7], rel=1e-4)


def test_without_keys_or_probability_nothing_happens() -> None:
    x = torch.randn(2, 3, 4)
    row_keys = DropoutKey(0, 0, torch.arange(2)).row_keys()
    assert dropout(x, 0.5, None, site_constants(0)) is x
    assert dropout(x, 0.0, row_keys, site_constants(0)) is x


@pytest.mark.parametrize("objective", ["causal_lm", "classification"])
def test_gradients_of_micro_batches_add_up_to_those_of_the_global_batch(objective: objectives.Objective) -> None:
    labels = 3 if objective == "classification" else None
    config = tiny.config(embd_pdrop=0.1, resid_pdrop=0.2, head_pdrop=0.3, num_labels=labels)
    tokens = torch.randint(8, 301, (6, 20), generator=torch.Generator().manual_seed(1))
    classes = torch.tensor([0, 1, 2, 0, 1, 2])

    def gradients(slices: list[list[int]]) -> list[Tensor]:
        model = heads.build(config)
        for rows in slices:
            batch = objectives.Batch(tokens[rows], torch.tensor(rows), labels=classes[rows])
            objectives.loss(model, objective, batch, DropoutKey(3, 8, batch.indices))[0].backward()
        return [parameter.grad for parameter in model.parameters()]

    for whole, cut in zip(gradients([[0, 1, 2, 3, 4, 5]]), gradients([[4, 5], [0], [1, 2, 3]]), strict=True):
        torch.testing.assert_close(whole, cut, rtol=1e-4, atol=1e-5)


def test_dropout_of_every_site_reaches_the_loss() -> None:
    tokens = torch.randint(8, 301, (4, 20), generator=torch.Generator().manual_seed(1))
    batch = objectives.Batch(tokens, torch.arange(4), labels=torch.tensor([0, 1, 1, 0]))
    losses = set()
    for changes in ({}, {"embd_pdrop": 0.5}, {"resid_pdrop": 0.5}, {"head_pdrop": 0.5}):
        model = heads.build(tiny.config(num_labels=2, initializer_range=0.3, **changes))
        losses.add(objectives.loss(model, "classification", batch, DropoutKey(1, 1, batch.indices))[0].item())
    assert len(losses) == 4
