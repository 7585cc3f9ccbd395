"""What the card of a model that others trained says, by what its files are."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from model import durable
from pipelines.engine.step import Attempt
from pipelines.forms import long_texts
from pipelines.model_card import Card, render
from pipelines.stages import cards

FILE = {"label": "config.json", "size": 700, "sha256": "5" * 64}


def card(folder: Path, kind: str, fresh: int = 0, settings: dict[str, Any] | None = None) -> Card:
    """The card of an import whose export is of class `kind`, of which `fresh` weights were drawn."""
    (folder / "export").mkdir(parents=True)
    durable.write_json(folder / "export" / "config.json", {"architectures": [kind]})
    durable.write_json(folder / "export" / "tokenizer_config.json", settings or {})
    metrics = {"family": "llama", "parameters": 18456, "weights_from_seed": fresh}
    record = SimpleNamespace(
        stage="import", version=2, fingerprint="f", config={}, inputs={}, sources={"model": [FILE]}, metrics=metrics
    )
    attempt = SimpleNamespace(
        config={"name": "theirs", "kind": "import", "gates": []},
        ancestors={"import": record},
        inputs={"export": SimpleNamespace(path=lambda name: folder / name)},
    )
    return cards.card(cast(Attempt, attempt), {})


@pytest.mark.parametrize(
    ("kind", "task"),
    [
        ("LlamaForCausalLM", "text-generation"),
        ("BertForMaskedLM", "fill-mask"),
        ("BertForPreTraining", "fill-mask"),
        ("GPT2ForSequenceClassification", "text-classification"),
        ("BertForQuestionAnswering", "question-answering"),
    ],
)
def test_a_model_of_others_is_for_what_its_class_is_for(tmp_path: Path, kind: str, task: str) -> None:
    made = card(tmp_path, kind)
    assert made.task == task and kind in made.summary and not made.chat
    assert made.lineage["import"]["sources"] == {"model": ["5" * 64]}
    said = render(made)
    assert "None were measured." in said and "config.json, 700 bytes" in said and "language:" not in said


def test_what_was_drawn_at_random_is_said_and_a_chat_template_is_used(tmp_path: Path) -> None:
    assert "drawn at random" in render(card(tmp_path / "a", "BertForPreTraining", fresh=6))
    assert "drawn at random" not in render(card(tmp_path / "b", "BertForPreTraining"))
    assert card(tmp_path / "c", "LlamaForCausalLM", settings={"chat_template": "{{ messages }}"}).chat


def test_figures_of_windows_are_said_to_be_of_windows() -> None:
    assert long_texts.limits({"kind": "classification"}) == ()
    (said,) = long_texts.limits({"window": 128, "stride": 64, "plain": True})
    assert "windows of 128 tokens, one every 64" in said and "`plain`" in said
    (older,) = long_texts.limits({"window": 128, "stride": 64})
    assert "`plain`" not in older and "as much of a text" in older
