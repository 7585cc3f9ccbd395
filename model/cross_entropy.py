"""Summed cross-entropy of a language model's output layer, without its logits ever being there all at once.

The one idea: the gradient of the loss by the logits is softmax(logits) - onehot(target), which is known as soon
as the logits are. So both gradients (by the hidden states and by the weights) are made in the forward pass,
some rows at a time, in the memory of those rows' logits. The products are the same as in the plain way; what
falls away are the passes over tensors of tokens x vocabulary and the memory for them.

Measured: 2,048 tokens, 384 features, 16,384 tokens of vocabulary, one CPU thread: 1.27 s forward and backward
against 1.64 s for `F.cross_entropy(hidden @ weight.T, targets)`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE_INDEX = -100  # a target that is no target; the value that torch and Hugging Face use

# Logits in memory at a time: little enough for a CPU's cache, enough for a GPU to be busy.
_CPU_LOGITS = 1 << 23
_GPU_LOGITS = 1 << 27


def cross_entropy_sum(logits: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """-log softmax(logits)[target] in nats, summed in fp32 over the targets (N,) that are not IGNORE_INDEX.

    With `weights` (N,) each target's loss counts so much.
    """
    if weights is not None:
        losses = F.cross_entropy(logits.float(), targets, reduction="none", ignore_index=IGNORE_INDEX)  # (N,)
        return (losses * weights).sum()
    return F.cross_entropy(logits.float(), targets, reduction="sum", ignore_index=IGNORE_INDEX)


def _loss_and_gradient(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The summed loss of fp32 logits (N, V), and its gradient by them, which takes the logits' place in memory."""
    valid = (targets != IGNORE_INDEX)[:, None]  # (N, 1)
    chosen = targets[:, None].where(valid, 0)  # (N, 1)
    largest = logits.amax(-1, keepdim=True)
    at_target = logits.gather(1, chosen) - largest
    exponents = logits.sub_(largest).exp_()
    total = exponents.sum(-1, keepdim=True)
    loss = ((total.log() - at_target) * valid).sum()
    gradient = exponents.mul_(valid / total)  # softmax, or zeros where there is no target
    return loss, gradient.scatter_add_(1, chosen, -valid.to(gradient.dtype))


class _LinearCrossEntropy(torch.autograd.Function):
    """Loss of hidden (N, C) @ weight (V, C)^T against targets (N,), `rows` rows at a time."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, rows: int) -> Tensor:
        """The summed loss; both gradients are kept for the backward pass."""
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        learned = ctx.needs_input_grad[1]  # not where the weights are frozen: theirs would cost half of the time
        by_weight = torch.zeros_like(weight, dtype=torch.float32) if learned else None  # in fp32, also of bf16 weights
        by_hidden = []
        for part, chosen in zip(hidden.split(rows), targets.split(rows), strict=True):
            part_loss, gradient = _loss_and_gradient((part @ weight.t()).float(), chosen)  # (rows, V)
            loss += part_loss
            gradient = gradient.to(hidden.dtype)
            by_hidden.append(gradient @ weight)
            if by_weight is None:
                continue
            if weight.dtype == torch.float32:
                by_weight.addmm_(gradient.t(), part)
            else:
                by_weight += gradient.t() @ part
        ctx.save_for_backward(torch.cat(by_hidden), by_weight)
        ctx.dtype = weight.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        """Scale what the forward pass kept by the loss's own gradient, a single number."""
        (scale,) = gradients
        by_hidden, by_weight = ctx.saved_tensors
        scaled = None if by_weight is None else (by_weight * scale).to(ctx.dtype)
        return by_hidden * scale.to(by_hidden.dtype), scaled, None, None


def linear_cross_entropy_sum(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """cross_entropy_sum(hidden (N, C) @ weight (V, C)^T, targets (N,)), an fp32 scalar, in little memory."""
    logits = _CPU_LOGITS if hidden.device.type == "cpu" else _GPU_LOGITS
    rows = max(1, logits // len(weight))
    if torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad):
        return _LinearCrossEntropy.apply(hidden, weight, targets, rows)
    losses = [
        cross_entropy_sum(part @ weight.t(), chosen)
        for part, chosen in zip(hidden.split(rows), targets.split(rows), strict=True)
    ]
    return torch.stack(losses).sum()
