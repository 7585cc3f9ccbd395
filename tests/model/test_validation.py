"""What early stopping looks at: a classifier's validation loss as it is trained, its accuracy as it is evaluated."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model.examples import write_examples
from model.heads import build
from model.validation import Validation
from tests.model import tiny


class Engine:
    """A model that says of a row what stands in a table under its first token."""

    def __init__(self, said: dict[int, list[float]]) -> None:
        self.said = said

    def eval(self) -> None:
        """As a module of torch."""

    def train(self) -> None:
        """As a module of torch."""

    def __call__(self, tokens: Tensor) -> Tensor:
        return torch.tensor([self.said[int(row[0])] for row in tokens])  # (B, K)


def measured(folder: Path, rows: list[tuple[str, int, list[float]]], weights: list[float] | None) -> dict[str, float]:
    """What is measured of windows (text, class, logits), two to five tokens long."""
    tokens = [[1 + place] * (2 + place % 4) for place in range(len(rows))]
    facts: dict[str, Any] = {"tokenizer": "t", "vocab_size": 500, "eot": 0}
    ids, labels = [row[0] for row in rows], [row[1] for row in rows]
    write_examples(folder / "validation.arrow", tokens, ids, labels=labels, weights=weights, **facts)
    world: Any = SimpleNamespace(rank=0, size=1, device=torch.device("cpu"), gather=lambda value: [value])
    validation = Validation(folder / "validation.arrow", "classification", 8, 0, world)
    return validation.measure(Engine({1 + place: row[2] for place, row in enumerate(rows)}))


def loss(rows: list[tuple[str, int, list[float]]]) -> Tensor:
    """The loss of each window, from torch itself."""
    logits, labels = torch.tensor([row[2] for row in rows]), torch.tensor([row[1] for row in rows])
    return F.cross_entropy(logits, labels, reduction="none")


RIGHT, WRONG = [0.0, 2.0], [1.0, 0.0]  # of class 1


def test_a_text_counts_once_in_however_many_windows_it_is_read(tmp_path: Path) -> None:
    rows = [("long", 1, RIGHT)] * 9 + [("short", 1, WRONG)]
    found = measured(tmp_path, rows, [1 / 9] * 9 + [1.0])
    assert found["validation_accuracy"] == 0.5
    assert found["validation_loss"] == pytest.approx(float(loss(rows)[[0, 9]].mean()))


def test_the_windows_of_a_text_decide_together_as_in_evaluation(tmp_path: Path) -> None:
    rows = [("sure", 1, [0.0, 4.0]), ("sure", 1, [0.5, 0.0]), ("sure", 1, [0.5, 0.0]), ("other", 1, RIGHT)]
    assert measured(tmp_path, rows, [1 / 3] * 3 + [1.0])["validation_accuracy"] == 1.0


def test_the_loss_is_weighted_by_class_and_the_accuracy_counts_texts(tmp_path: Path) -> None:
    rows = [(str(place), 1, RIGHT) for place in range(36)] + [(f"rare {place}", 0, RIGHT) for place in range(4)]
    weights = [40 / (2 * 36)] * 36 + [40 / (2 * 4)] * 4
    found = measured(tmp_path, rows, weights)
    assert found["validation_accuracy"] == 36 / 40
    assert found["validation_loss"] == pytest.approx(float((loss(rows) * torch.tensor(weights)).sum() / sum(weights)))
    assert found["validation_loss"] > measured(tmp_path, rows, None)["validation_loss"] + 0.1


def test_without_weights_the_figures_are_the_plain_means_to_the_last_bit(tmp_path: Path) -> None:
    rows = [(str(place), 1, RIGHT if place % 3 else WRONG) for place in range(7)]
    order = sorted(range(7), key=lambda place: -(place % 4))  # longest first: so the batch is made
    logits = torch.tensor([rows[place][2] for place in order])
    total = F.cross_entropy(logits, torch.ones(7, dtype=torch.long), reduction="sum")
    assert measured(tmp_path, rows, None) == {"validation_loss": float(total) / 7, "validation_accuracy": 4 / 7}


@torch.no_grad()
def test_of_a_reply_only_what_is_learned_is_measured_and_a_span_is_measured_as_it_is_trained_on(tmp_path: Path) -> None:
    world: Any = SimpleNamespace(rank=0, size=1, device=torch.device("cpu"), gather=lambda value: [value])
    facts: dict[str, Any] = {"tokenizer": "t", "vocab_size": 301, "eot": 7}
    tokens = [[10, 11, 12, 13, 7], [20, 21, 7]]
    masks = [[False, False, False, True, True], [False, True, True]]
    write_examples(tmp_path / "replies.arrow", tokens, ["a", "b"], loss_masks=masks, **facts)
    model = build(tiny.config(), seed=1).eval()
    each = [-model(torch.tensor([row[:-1]]))[0].log_softmax(-1)[range(len(row) - 1), row[1:]] for row in tokens]
    learned = torch.cat([nats[torch.tensor(mask[1:])] for nats, mask in zip(each, masks, strict=True)])
    found = Validation(tmp_path / "replies.arrow", "causal_lm", 8, 7, world).measure(model)
    assert found == {"validation_loss": pytest.approx(float(learned.mean()), rel=1e-5)}

    write_examples(tmp_path / "spans.arrow", [[5, 9, 7, 30, 31, 7]], ["a"], spans=[(3, 4, 3)], **facts)
    bert = tiny.config(family="bert", head="span", pad_token_id=3, cls_token_id=5, sep_token_id=7, mask_token_id=4)
    finder = build(bert, seed=1).eval()
    scores = finder(torch.tensor([[5, 9, 7, 30, 31, 7]]), token_types=torch.tensor([[0, 0, 0, 1, 1, 1]]))[0]  # (T, 2)
    expected = -(scores[:, 0].log_softmax(0)[3] + scores[:, 1].log_softmax(0)[4]) / 2
    measured = Validation(tmp_path / "spans.arrow", "span", 8, 3, world).measure(finder)
    assert measured["validation_loss"] == pytest.approx(float(expected), rel=1e-5)
