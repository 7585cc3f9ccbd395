"""Texts in disjoint rolling windows: lm-eval's own functions are the other implementation."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest
import torch

from model import evaluate, rolling
from model.evaluate import encode, load_tokenizer
from model.export import load_export
from tests.model import tiny
from tests.model.test_evaluate import DOCUMENTS, job, write_model


@pytest.mark.parametrize("length", [1, 2, 7, 16])
def test_windows_are_those_of_lm_eval(length: int) -> None:
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    for count in range(1, 60):
        tokens = [random.Random(f"{count} {place}").randrange(1, 300) for place in range(count)]
        theirs = [make_disjoint_window(pair) for pair in get_rolling_token_windows(tokens, 0, length, 1)]
        expected = [((context + continued), len(continued)) for context, continued in theirs]
        # Ours hold the last target as well, theirs are given to the model without it.
        assert [(ids, predicted) for ids, predicted in rolling.rolling_windows(tokens, 0, length)] == expected


def test_batches_of_windows_sum_to_what_one_window_at_a_time_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = tiny.write_tokenizer(tmp_path / "tokenizer")
    write_model(tmp_path / "export", tokenizer)
    model = load_export(tmp_path / "export").double()
    rows = encode(load_tokenizer(tmp_path / "export"), DOCUMENTS)
    length = model.config.n_positions
    expected = []
    for row in rows:
        nats = 0.0
        for ids, predicted in rolling.rolling_windows(row, 0, length):
            with torch.no_grad():
                logits = model(torch.tensor([ids[:-1]])).logits[0].log_softmax(-1)
            nats -= sum(float(logits[place, ids[place + 1]]) for place in range(len(ids) - 1 - predicted, len(ids) - 1))
        expected.append(nats)
    found = rolling.text_nats(model, rows, 0, length, 3)
    assert found == pytest.approx(expected, rel=1e-5)
    sizes = list[int]()
    model.register_forward_hook(lambda _module, _inputs, said: sizes.append(said.logits.numel()))
    monkeypatch.setattr(evaluate, "_LOGITS", 2 * length * model.config.vocab_size)
    assert rolling.text_nats(model, rows, 0, length, 16) == pytest.approx(expected, rel=1e-5)
    assert max(sizes) <= evaluate._LOGITS < 16 * length * model.config.vocab_size
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS))
    figures = rolling.evaluate_texts(job(tmp_path, texts=str(texts)))
    size = sum(len(text.encode()) for text in DOCUMENTS)
    assert figures["bits_per_byte"] == pytest.approx(sum(expected) / math.log(2) / size, rel=1e-5)
    assert figures["texts"] == len(DOCUMENTS) and figures["bytes"] == size


def test_no_texts_are_refused(tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").touch()
    with pytest.raises(ValueError, match="holds no text"):
        rolling.evaluate_texts(job(tmp_path, texts=str(tmp_path / "texts.jsonl")))
