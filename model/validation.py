"""How good the model is on the validation examples while it is trained, and when that is a reason to stop.

The one idea: an evaluation is a pure function of the weights. Its batches are cut once, by the data alone, and shared out
over the ranks; their sums come back in the order of the batches. So how many ranks there are changes no digit of it,
and what a run knows about its best step can be read off its metrics file: nothing else is state but the best weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model import objectives
from model.batches import with_spans
from model.cross_entropy import cross_entropy_sum
from model.examples import Examples
from model.tuning_config import EarlyStopping
from model.world import World

PREFIX = "validation_"  # of the metrics that an evaluation adds to its step's line
# What a batch adds: its summed loss, what that is to be divided by, and of a classifier each row's probabilities.
Sums = tuple[float, float, list[list[float]]]
BATCH_SIZE = 32  # examples; whatever the micro-batch of training, so that no slicing changes a sum


class Validation:
    """The validation examples in batches, and the objective by which a model is measured on them."""

    def __init__(self, path: Path, objective: objectives.Objective, length: int, pad: int, world: World) -> None:
        examples = Examples(path, pad)
        if not len(examples):
            raise ValueError(f"{path} has no examples; early stopping needs some: raise task.validation_fraction")
        self._objective, self._world = objective, world
        lengths = np.minimum(examples.lengths, length)
        by_length = np.argsort(-lengths, kind="stable")
        self._texts = _texts(examples, by_length) if objective == "classification" else None
        self._batches = [
            _batch(examples, by_length[start : start + BATCH_SIZE], length)
            for start in range(0, len(by_length), BATCH_SIZE)
        ]

    @torch.no_grad()
    def measure(self, engine: Any) -> dict[str, float]:
        """`validation_loss`, nats a target, and of a classifier `validation_accuracy`. Every rank has to call it.

        The loss is weighted as that of training is, by class and by window. The accuracy is that of evaluation: each text
        counts once, whatever its class, and is what the mean of its windows' probabilities says.
        """
        engine.eval()
        rank, size = self._world.rank, self._world.size
        own: dict[int, Sums] = {}
        # Under ZeRO 3 all ranks call the model equally often: who has no batch left measures the last one once more.
        for first in range(0, len(self._batches), size):
            number = min(first + rank, len(self._batches) - 1)
            own[number] = self._sums(engine, self._batches[number].to(self._world.device))
        engine.train()
        found = {number: sums for part in self._world.gather(own) for number, sums in part.items()}
        losses, targets, said = zip(*(found[number] for number in sorted(found)), strict=True)
        measured = {f"{PREFIX}loss": sum(losses) / max(sum(targets), 1)}
        if self._objective == "classification":
            measured[f"{PREFIX}accuracy"] = self._accuracy([row for part in said for row in part])
        return measured

    def _sums(self, engine: Any, batch: objectives.Batch) -> Sums:
        """What one batch adds to the sums."""
        if self._objective != "classification":
            loss, targets = objectives.loss(engine, self._objective, batch)
            return float(loss), int(targets), []
        assert batch.labels is not None
        logits = engine(batch.tokens)  # (B, K)
        counted = len(batch.labels) if batch.weights is None else float(batch.weights.double().sum())
        loss = cross_entropy_sum(logits, batch.labels, batch.weights)
        return float(loss), counted, logits.double().softmax(-1).tolist()

    def _accuracy(self, said: list[list[float]]) -> float:
        """The share of texts whose class is the one that their windows (`said`, in the order of the batches) find likeliest."""
        probabilities = torch.tensor(said, dtype=torch.float64)  # (windows, K)
        assert self._texts
        texts, labels = self._texts  # (windows,), (texts,)
        summed = probabilities.new_zeros(len(labels), probabilities.shape[1]).index_add_(0, texts, probabilities)
        return int((summed.argmax(-1) == labels).sum()) / len(labels)


def _texts(examples: Examples, order: np.ndarray) -> tuple[Tensor, Tensor]:
    """Of which text (a number) each of the examples `order` is a window, and each text's class: windows share an id."""
    numbers: dict[str, int] = {}
    labels: dict[int, int] = {}
    windows = []
    for index in order.tolist():
        example = examples[index]
        windows.append(numbers.setdefault(example.id, len(numbers)))
        labels[windows[-1]] = -1 if example.label is None else example.label
    return torch.tensor(windows), torch.tensor(list(labels.values()))


def _batch(examples: Examples, chosen: np.ndarray, length: int) -> objectives.Batch:
    """Examples as they are trained on: cut at `length`, padded on the right to the longest of them."""
    rows = [examples[int(index)] for index in chosen]
    width = max(min(len(row.tokens), length) for row in rows)
    tokens = torch.full((len(rows), width), examples.pad)  # (B, T)
    mask = torch.zeros((len(rows), width), dtype=torch.bool)  # (B, T)
    for place, row in enumerate(rows):
        size = min(len(row.tokens), length)
        tokens[place, :size] = torch.from_numpy(row.tokens[:size].astype(np.int64))
        mask[place, :size] = True if row.loss_mask is None else torch.from_numpy(row.loss_mask[:size])
    labels = None if rows[0].label is None else torch.tensor([row.label for row in rows])  # (B,)
    weights = (
        None if examples.weights is None else torch.from_numpy(examples.weights[chosen].astype(np.float32))
    )  # (B,)
    batch = objectives.Batch(tokens, torch.arange(len(rows)), mask, labels, weights)
    return batch if examples.spans is None else with_spans(batch, examples, chosen)


@dataclass
class Best:
    """The best evaluation so far, and how many came after it. Told everything again, it knows everything again."""

    config: EarlyStopping
    max_steps: int
    step: int = 0  # 0: nothing was measured
    value: float = math.nan
    later: int = 0  # evaluations since

    def due(self, step: int) -> bool:
        """Whether the model is measured after this step."""
        return step % self.config.every == 0 or step == self.max_steps

    def see(self, step: int, measured: Mapping[str, Any]) -> bool:
        """Take note of a step's line of metrics, measured or not; whether it is the best so far."""
        value = measured.get(PREFIX + self.config.metric)
        if value is None:
            return False
        better = self.step == 0 or (value < self.value if self.config.metric == "loss" else value > self.value)
        if better:
            self.step, self.value, self.later = step, value, 0
        else:
            self.later += 1
        return better

    @property
    def over(self) -> bool:
        """Whether it is time to stop."""
        return self.later >= self.config.patience


@dataclass
class BestWeights:
    """The trained parameters of the best step, as the bytes of a safetensors file: what a checkpoint carries of them."""

    data: bytes = b""

    def keep(self, step: int, trained: Mapping[str, Tensor]) -> None:
        """Keep these instead."""
        from safetensors.torch import save

        self.data = save({name: tensor.contiguous() for name, tensor in trained.items()}, metadata={"step": str(step)})

    def tensors(self) -> dict[str, Tensor]:
        """The parameters by name."""
        from safetensors.torch import load

        return load(self.data)
