"""Better by more than noise: the paired interval is wide enough, and the rule is the one that docs/retraining.md states."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model import durable
from pipelines.stages import compare
from pipelines.stages.compare import decided
from pipelines.tasks import language_modelling
from pipelines.tasks.metrics import difference, ratio_difference
from tests.pipelines.data_attempts import attempt


def test_a_difference_that_is_the_same_for_all_documents_has_no_width() -> None:
    sizes = [100, 200, 300]
    found = ratio_difference([110.0, 220.0, 330.0], [100.0, 200.0, 300.0], sizes)
    assert found == {"gain": 0.1, "low": 0.1, "high": 0.1}


def test_noise_alone_is_hardly_ever_better() -> None:
    """Two equally good models on 200 documents, 200 times: about 1 in 40 lower ends is above 0."""
    random = np.random.default_rng(0)
    wins = 0
    for _ in range(200):
        hard = random.gamma(2.0, 100.0, 200)
        ours, theirs = (hard + random.normal(0, 20, 200) for _ in range(2))
        wins += ratio_difference(theirs.tolist(), ours.tolist(), [100] * 200)["low"] > 0
    assert 0 < wins <= 14


def test_what_is_hard_for_both_does_not_hide_a_small_gain() -> None:
    random = np.random.default_rng(0)
    hard = random.gamma(2.0, 100.0, 200)
    ours = hard + random.normal(-5, 5, 200)
    paired = ratio_difference(hard.tolist(), ours.tolist(), [100] * 200)
    assert paired["low"] > 0 and paired["gain"] == pytest.approx(0.05, abs=0.01)


def test_films_succeed_and_fail_together() -> None:
    """Forty sentences of two films that went the other way say less than forty of forty films."""
    labels = [1] * 400
    theirs = [0] * 40 + [1] * 360
    ours = [1] * 400
    many = difference(labels, ours, theirs, [f"f{i}" for i in range(400)])
    few = difference(labels, ours, theirs, [f"f{i // 20}" for i in range(400)])
    assert many["accuracy_gain_interval_by_group"][0] > 0.05
    assert few["accuracy_gain_interval_by_group"][0] == 0.0


def test_the_lower_end_has_to_be_above_what_the_recipe_asks_for() -> None:
    found = {
        "metric": "accuracy",
        "challenger": 0.8,
        "champion": 0.78,
        "gain": 0.02,
        "low": 0.01,
        "high": 0.03,
        "groups": 40,
    }
    assert decided(found, 0.0)["better"]
    assert not decided(found, 0.01)["better"] and "is not above 0.01" in decided(found, 0.01)["detail"]
    assert not decided(found | {"low": 0.0}, 0.0)["better"]
    assert decided(found | {"low": -0.01}, -0.02)["better"]


def test_of_one_group_nobody_is_better() -> None:
    """It gives no interval: one film, one article, one document."""
    found = difference([1] * 100, [1] * 100, [0, *[1] * 99], ["one film"] * 100)
    assert found == {"accuracy_gain": 0.01, "accuracy_gain_interval_by_group": None}
    told = {
        "metric": "accuracy",
        "challenger": 1.0,
        "champion": 0.99,
        "gain": 0.01,
        "low": None,
        "high": None,
        "groups": 1,
    }
    said = decided(told, 0.0)
    assert not said["better"] and "one group of held-out examples" in said["detail"]
    assert decided(told | {"low": 0.01, "high": 0.01, "groups": 2}, 0.0)["better"]


def test_each_model_reads_windows_as_it_did_in_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, str] = {}

    def compute(made: Any, function: str, export: Path, output: str, attention: str, **job: Any) -> None:
        asked[export.parent.name] = attention
        durable.write_json(Path(output), [100.0, 50.0])

    monkeypatch.setattr(compare, "compute", compute)
    monkeypatch.setattr(language_modelling, "texts", lambda root, manifest: iter([b"ab", b"c"]))
    inputs = {name: tmp_path / name for name in ("export", "champion", "text_heldout", "tokens_heldout")}
    for config, ours, theirs in (
        ({}, "across_documents", "across_documents"),
        ({"attention": "within_documents"}, "within_documents", "across_documents"),
        ({"champion_attention": "within_documents"}, "across_documents", "within_documents"),
    ):
        made = attempt(tmp_path, config, {}, inputs)
        for name in ("text_heldout", "tokens_heldout"):
            made.inputs[name].check_units = lambda *_: None  # type: ignore[method-assign]
        assert compare.language_model(made)["gain"] == 0
        assert asked == {"export": ours, "champion": theirs}
