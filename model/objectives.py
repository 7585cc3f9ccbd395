"""What each objective makes of a batch: the tokens that the model sees, and what it has to say about them.

The one idea: an objective is a pure function from a batch to (inputs, targets), and every model returns the
summed loss of its targets. So an objective knows no model, and the loss tokens of a batch can be counted
before any model has run, which the division by the *global* batch's count needs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from model.cross_entropy import IGNORE_INDEX
from model.dropout import DropoutKey

Objective = Literal["causal_lm", "classification"]


@dataclass(frozen=True)
class Batch:
    """Some rows of a global batch, on one device. Rows are padded on the right with EOT."""

    tokens: Tensor  # (B, S) int64
    indices: Tensor  # (B,) int64, where each row stands in the global batch, on the host
    loss_mask: Tensor | None = None  # (B, S) bool, the tokens that are to be predicted; none: all of them
    labels: Tensor | None = None  # (B,) int64, the class; IGNORE_INDEX for a row of weight zero
    weights: Tensor | None = None  # (B,) fp32, what the loss of each row counts; none: all alike


def causal_lm(batch: Batch) -> tuple[Tensor, Tensor]:
    """Predict each token from those before it: inputs (B, S - 1), targets (B, S - 1)."""
    targets = batch.tokens[:, 1:]
    if batch.loss_mask is not None:
        targets = targets.masked_fill(~batch.loss_mask[:, 1:], IGNORE_INDEX)
    return batch.tokens[:, :-1], targets


def classification(batch: Batch) -> tuple[Tensor, Tensor]:
    """Predict the label from the whole sequence: inputs (B, S), targets (B,). ValueError if there are no labels."""
    if batch.labels is None:
        raise ValueError("classification needs a label for each example, and this batch has none")
    return batch.tokens, batch.labels


_OBJECTIVES: dict[str, Callable[[Batch], tuple[Tensor, Tensor]]] = {
    "causal_lm": causal_lm,
    "classification": classification,
}


def count_loss_tokens(objective: Objective, batch: Batch) -> Tensor:
    """How many targets the batch has (for classification: labelled rows), an int64 scalar on the batch's device."""
    return (_OBJECTIVES[objective](batch)[1] != IGNORE_INDEX).sum()


def loss(model: nn.Module, objective: Objective, batch: Batch, key: DropoutKey | None = None) -> tuple[Tensor, Tensor]:
    """The summed loss in nats (fp32 scalar), weighted where rows have weights, and the number of its targets (int64 scalar).

    `model` may be wrapped (DeepSpeed's engine, torch.compile): it is only called. Without `key` there is no dropout.
    """
    inputs, targets = _OBJECTIVES[objective](batch)
    row_keys = None if key is None else key.row_keys(inputs.device)
    weights = {} if batch.weights is None else {"weights": batch.weights}
    return model(inputs, targets, row_keys, **weights), (targets != IGNORE_INDEX).sum()
