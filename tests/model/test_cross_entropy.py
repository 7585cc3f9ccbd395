"""The chunked loss of the output layer against the plain one: the same loss, the same gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from model import cross_entropy
from model.cross_entropy import IGNORE_INDEX, cross_entropy_sum, linear_cross_entropy_sum


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states (50, 24), weights (77, 24), targets (50,) some of which do not count."""
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(50, 24, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(77, 24, generator=generator).to(dtype).requires_grad_()
    targets = torch.randint(0, 77, (50,), generator=generator)
    targets[::7] = IGNORE_INDEX
    return hidden, weight, targets


def gradients(loss: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss / 43, leaves)


@pytest.mark.parametrize("rows", [1, 7, 50, 1000])
def test_chunked_loss_and_gradients_are_the_plain_ones(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy, "_CPU_LOGITS", rows * 77)
    hidden, weight, targets = inputs()
    found = linear_cross_entropy_sum(hidden, weight, targets)
    expected = cross_entropy_sum(hidden @ weight.t(), targets)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    for ours, plain in zip(gradients(found, hidden, weight), gradients(expected, hidden, weight), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(linear_cross_entropy_sum(hidden, weight, targets), expected, rtol=1e-6, atol=0)


def test_gradients_in_bf16_are_as_near_to_the_truth_as_the_plain_ones() -> None:
    hidden, weight, targets = inputs(torch.bfloat16)
    truth = gradients(cross_entropy_sum(hidden.double() @ weight.double().t(), targets), hidden, weight)
    plain = gradients(cross_entropy_sum(hidden @ weight.t(), targets), hidden, weight)
    ours = gradients(linear_cross_entropy_sum(hidden, weight, targets), hidden, weight)
    for true, a, b in zip(truth, ours, plain, strict=True):
        assert a.dtype == torch.bfloat16
        assert (a - true).float().norm() < 1.2 * (b - true).float().norm() + 1e-3


def test_large_logits_do_not_overflow_and_an_empty_batch_costs_nothing() -> None:
    hidden, weight, targets = inputs()
    huge = linear_cross_entropy_sum(hidden * 1e4, weight, targets)
    torch.testing.assert_close(huge, cross_entropy_sum(hidden * 1e4 @ weight.t(), targets), rtol=1e-6, atol=0)
    nothing = linear_cross_entropy_sum(hidden, weight, torch.full_like(targets, IGNORE_INDEX))
    assert nothing.item() == 0
    assert all(not gradient.any() for gradient in gradients(nothing, hidden, weight))


def test_frozen_weight_still_passes_gradients_to_the_hidden_states() -> None:
    hidden, weight, targets = inputs()
    found = linear_cross_entropy_sum(hidden, weight.detach(), targets)
    expected = cross_entropy_sum(hidden @ weight.t(), targets)
    kept = [one for one in found.grad_fn.saved_tensors if one is not None]  # type: ignore[union-attr]
    assert [one.shape for one in kept] == [hidden.shape], "no gradient of the weights is made or kept"
    torch.testing.assert_close(*gradients(found, hidden), *gradients(expected, hidden), rtol=1e-5, atol=1e-6)
