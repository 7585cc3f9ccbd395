"""Objectives in recipes: what cannot be learned is refused, and what says nothing of them is what it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from model.train_config import ObjectiveConfig
from pipelines import challenge, flow, recipes
from pipelines.config import ConfigError, Recipe, Source, TokenizerConfig
from pipelines.engine.fingerprint import digest
from pipelines.pretrain_config import PretrainConfig
from pipelines.settings import override
from pipelines.stages import evaluate
from pipelines.tasks import language_modelling
from tests.pipelines.data_attempts import attempt

GOLDEN = {
    "shard": "136d0a2c68376db294543f890aecad78f18df98e62ee8b2b864f99f497c396e9",
    "train_tokenizer": "8890abb1dbbda7f6795c731f36911f2993a4c4327e452eeb7a18e42fd30d1211",
    "pretrain": "11c3484981835d69a7a29f4944c1ac0f2d9cc137ff1435abb6e16f11251ab8b9",
    "evaluate-base": "fcad18581c7a91d73aca50716d86992a34d7b32dd0f592602b11d0029a6d740e",
}
TRAIN: dict[str, Any] = {"max_steps": 10, "global_batch_size": 8, "sequence_length": 16, "learning_rate": 1e-3}


@pytest.mark.parametrize(
    ("recipe", "settings", "message"),
    [
        (
            "tiny",
            ["pretrain.objective=masked_lm"],
            "'masked_lm' cannot be learned by model.family='gpt2', .* causal_lm",
        ),
        ("bert_tiny", ["pretrain.objective=causal_lm"], "'causal_lm' cannot be learned by model.family='bert'"),
        ("bert_tiny", ["tokenizer.special_tokens=gpt2"], "special_tokens='gpt2' does not go with .* say bert"),
        ("tiny", ["pretrain.whole_words=true"], "causal_lm hides no tokens; leave out mask_fraction and whole_words"),
        ("bert_tiny", ["pretrain.attention=within_documents"], "a sample is a pair"),
        ("tiny", ['pretrain.mixture={"news":1.0}'], "mixture weighs news; .* to no other: tiny_shakespeare"),
        ("tiny", ['pretrain.mixture={"tiny_shakespeare":0.0}'], "weight of 'tiny_shakespeare' is 0"),
        ("tiny", ['pretrain.mixture={"a":1.0,"b":100000.0}'], "weight 1.0 of 'a' is less than 1/4096 of all; raise it"),
        ("tiny", ['pretrain.mixture={"a":1.0,"b":Infinity}'], "weight of 'b' is inf"),
    ],
)
def test_what_a_family_cannot_learn_is_refused_when_the_recipe_is_read(
    recipe: str, settings: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        override(recipes.load(recipe), dict(setting.split("=", 1) for setting in settings))


def test_options_at_their_defaults_are_in_no_fingerprint_and_others_are() -> None:
    plain = PretrainConfig(**TRAIN)
    assert not set(plain.model_dump()) & set(ObjectiveConfig.model_fields)
    assert "special_tokens" not in TokenizerConfig(sources=(Source(sample="tiny_shakespeare"),)).model_dump()
    chosen = PretrainConfig(**TRAIN, attention="within_documents", mixture={"a": 1.0})
    assert chosen.options == {"attention": "within_documents", "mixture": {"a": 1.0}}
    assert chosen.model_dump(mode="json") == plain.model_dump(mode="json") | chosen.options
    assert PretrainConfig.model_validate_json(chosen.model_dump_json()) == chosen


def steps(recipe: Recipe) -> dict[str, Any]:
    files = [{"path": "x", "sha256": "0" * 64, "label": "x", "size": 1}]
    return {step.name: step for step in flow.build(recipe, lambda source: files)}


def test_the_steps_of_a_causal_recipe_are_what_they_were() -> None:
    """If this fails, every run that was made before is made again: was that meant?"""
    plain = steps(recipes.load("tiny"))
    assert plain["tokenize"].config == {}
    assert plain["evaluate-base"].config["kind"] == "language_model"
    known = {name: digest(plain[name].config) for name in ("shard", "train_tokenizer", "pretrain", "evaluate-base")}
    assert known == GOLDEN


def test_tokenize_and_evaluate_are_told_what_the_objective_needs() -> None:
    both = steps(recipes.load("bert_tiny"))
    assert both["tokenize"].config == {"sentences": True}
    assert both["evaluate-base"].config == {
        "kind": "masked_language_model", "objective": "masked_lm_next_sentence", "options": {}, "sequence_length": 64,
        "version": 2,
    }  # fmt: skip
    masked = override(recipes.load("bert_tiny"), {"pretrain.objective": "masked_lm", "pretrain.whole_words": "true"})
    assert steps(masked)["tokenize"].config == {}
    assert steps(masked)["evaluate-base"].config["options"] == {"whole_words": True}
    mixture = json.dumps({"tiny_shakespeare": 2.0})
    mixed = steps(override(recipes.load("tiny"), {"pretrain.mixture": mixture}))
    assert mixed["tokenize"].config == {"corpora": True}


def test_corpora_are_drawn_from_by_name_and_what_was_made_by_the_order_of_keys_is_made_again() -> None:
    """Both orders had one fingerprint and other samples. One corpus alone has no order."""
    recipe = recipes.load("tiny")
    assert recipe.pretrain

    def key(mixture: dict[str, float]) -> tuple[str, Any]:
        made = recipe.model_copy(update={"pretrain": recipe.pretrain.model_copy(update={"mixture": mixture})})
        config = steps(made)["pretrain"].config
        return digest(config), config.get("mixture_order")

    assert key({"a": 1.0, "b": 3.0}) == key({"b": 3.0, "a": 1.0}) != key({"a": 3.0, "b": 1.0})
    assert [key(one)[1] for one in ({}, {"a": 1.0}, {"a": 1.0, "b": 1.0})] == [None, None, "names"]


@pytest.mark.parametrize(("recipe", "objective"), [("tiny", "causal_lm"), ("bert_tiny", "masked_lm")])
def test_a_base_model_is_measured_as_it_was_trained(recipe: str, objective: str) -> None:
    across = override(recipes.load(recipe), {"pretrain.objective": objective})
    within = override(across, {"pretrain.attention": "within_documents"})
    plain, other = (steps(one)["evaluate-base"].config for one in (across, within))
    told = other if objective == "causal_lm" else other["options"]
    assert told.pop("attention") == "within_documents" and other == plain


def test_what_evaluates_a_base_model_is_told_how_it_was_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def compute(*_: Any, **job: Any) -> dict[str, Any]:
        asked.append(job.get("attention"))
        return {} if len(asked) % 2 else []  # type: ignore[return-value]

    monkeypatch.setattr(evaluate, "compute", compute)
    monkeypatch.setattr(language_modelling, "baselines", lambda *_: dict.fromkeys(("token_unigram", "gzip", "xz"), 1.0))
    monkeypatch.setattr(language_modelling, "texts", lambda *_: iter(()))
    inputs = {f"{kind}_{split}": tmp_path for kind in ("text", "tokens") for split in ("train", "heldout")}
    for config in ({}, {"attention": "within_documents"}):
        made = attempt(tmp_path, {"continuations": 0, "continuation_tokens": 1} | config, {}, inputs)
        for one in made.inputs.values():
            one.check_units = lambda *_: None  # type: ignore[method-assign]
        evaluate.language_model(made)
    assert asked[::2] == ["across_documents", "within_documents"]


def test_a_bidirectional_base_model_is_not_retrained() -> None:
    with pytest.raises(ConfigError, match="compares base models by bits per byte"):
        challenge.retraining(recipes.load("bert_tiny"), {}, lambda source: [])
