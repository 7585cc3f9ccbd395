"""What each objective makes of a batch: the tokens that the model sees, and what it has to say about them.

The one idea: an objective is a pure function from a batch to (inputs, targets), and every model returns the
summed loss of its targets. So an objective knows no model, and the loss tokens of a batch can be counted
before any model has run, which the division by the *global* batch's count needs. What is hidden and which sentences
are paired was decided when the batch was made (`pretraining.py`).

Masked language modelling and next-sentence prediction together are, as in BERT, the mean over hidden tokens plus the mean
over pairs. Summed for a division by the hidden tokens, a pair weighs (hidden tokens / pairs) of the *global* batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from torch import Tensor, device, nn

from model.cross_entropy import IGNORE_INDEX
from model.dropout import DropoutKey

Objective = Literal["causal_lm", "masked_lm", "next_sentence", "masked_lm_next_sentence", "classification", "span"]
_INPUTS = ("weights", "token_types", "padding", "documents")  # what models take by name, where a batch has it


@dataclass(frozen=True)
class Batch:
    """Some rows of a global batch, on one device. Rows are padded on the right."""

    tokens: Tensor  # (B, S) int64
    indices: Tensor  # (B,) int64, where each row stands in the global batch, on the host
    loss_mask: Tensor | None = None  # (B, S) bool, the tokens that are to be predicted; none: all of them
    labels: Tensor | None = None  # (B,) int64, the class; IGNORE_INDEX for a row of weight zero; (B, 2) of a span
    weights: Tensor | None = None  # (B,) fp32, what the loss of each row counts; none: all alike
    targets: Tensor | None = None  # (B, S) int64, what was hidden at each position; IGNORE_INDEX where nothing was
    token_types: Tensor | None = None  # (B, S) int64, the segment of each token
    padding: Tensor | None = None  # (B, S) bool, true where a token is real
    documents: Tensor | None = None  # (B, inputs) int64, attention stays between equal numbers
    sentence_weight: Tensor | None = None  # scalar, of a pair's loss against a hidden token's

    def cut(self, rows: slice) -> Batch:
        """Some of the rows, as views."""
        return self._each(lambda tensor: tensor[rows] if tensor.ndim else tensor)

    def to(self, place: device) -> Batch:
        """The batch with what the model reads on `place`; the indices stay on the host, where dropout's keys are made."""
        return replace(self._each(lambda tensor: tensor.to(place, non_blocking=True)), indices=self.indices)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        own = {one.name: getattr(self, one.name) for one in fields(self)}
        return replace(self, **{name: change(tensor) for name, tensor in own.items() if tensor is not None})


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


def masked_lm(batch: Batch) -> tuple[Tensor, Tensor]:
    """Say what was hidden: inputs (B, S), targets (B, S)."""
    if batch.targets is None:
        raise ValueError("masked language modelling needs a batch in which tokens were hidden")
    return batch.tokens, batch.targets


def span(batch: Batch) -> tuple[Tensor, Tensor]:
    """Say where the answer begins and ends: inputs (B, S), targets (B, 2), both 0, at [CLS], where it is not in the row."""
    if batch.labels is None or batch.labels.ndim != 2:
        raise ValueError("finding spans needs the first and the last token of each answer, and this batch has none")
    return batch.tokens, batch.labels


_OBJECTIVES: dict[str, Callable[[Batch], tuple[Tensor, Tensor]]] = {
    "causal_lm": causal_lm,
    "masked_lm": masked_lm,
    "next_sentence": classification,
    "masked_lm_next_sentence": masked_lm,
    "classification": classification,
    "span": span,
}


def count_loss_tokens(objective: Objective, batch: Batch) -> Tensor:
    """How many targets the batch has (for classification and spans: labelled rows), an int64 scalar on the batch's device."""
    return _counted(objective, _OBJECTIVES[objective](batch)[1])


def _counted(objective: Objective, targets: Tensor) -> Tensor:
    """How many targets there are. A span's two are one: a model's loss is the mean of both."""
    return ((targets[:, 0] if objective == "span" else targets) != IGNORE_INDEX).sum()


def loss(model: nn.Module, objective: Objective, batch: Batch, key: DropoutKey | None = None) -> tuple[Tensor, Tensor]:
    """The summed loss in nats (fp32 scalar), weighted where rows have weights, and the number of its targets (int64 scalar).

    `model` may be wrapped (DeepSpeed's engine, torch.compile): it is only called. Without `key` there is no dropout.
    """
    tokens, targets = _OBJECTIVES[objective](batch)
    row_keys = None if key is None else key.row_keys(tokens.device)
    inputs: dict[str, Any] = {name: getattr(batch, name) for name in _INPUTS if getattr(batch, name) is not None}
    count = _counted(objective, targets)
    if objective == "next_sentence":
        return model(tokens, None, row_keys, sentence_targets=targets, **inputs), count
    if objective == "masked_lm_next_sentence":
        inputs |= {"sentence_targets": batch.labels, "sentence_weight": batch.sentence_weight}
    return model(tokens, targets, row_keys, **inputs), count
