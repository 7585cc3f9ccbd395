"""Fine-tuning options in a recipe: what says nothing changes nothing, what cannot be is refused, an adapter gets its steps."""

from __future__ import annotations

from typing import Any

import pytest

from model.tuning_config import Tuning
from pipelines import flow, recipes
from pipelines.config import ConfigError, Recipe
from pipelines.settings import override


def steps(recipe: Recipe) -> dict[str, Any]:
    """The steps of a recipe by name; its sources have no files."""
    return {step.name: step for step in flow.build(recipe, lambda source: [])}


def test_a_recipe_that_tunes_all_weights_has_the_configuration_that_it_had_before() -> None:
    before = {
        "seed", "max_steps", "global_batch_size", "sequence_length", "learning_rate", "min_learning_rate", "warmup_steps",
        "weight_decay", "beta1", "beta2", "epsilon", "grad_clip", "precision", "zero_stage", "offload",
        "activation_checkpointing", "compile", "init", "dropout",
    }  # fmt: skip
    finetune = steps(recipes.tiny())["finetune"]
    assert not finetune.config["train"].keys() & Tuning.model_fields.keys()
    assert before <= finetune.config["train"].keys()
    assert finetune.inputs.keys() == {"examples", "labels", "tokenizer", "base"}


def test_what_is_chosen_is_in_the_configuration_and_nothing_else_is() -> None:
    lora = override(recipes.tiny(), {"finetune.tune": "lora", "finetune.lora.rank": "4"})
    chosen = steps(lora)["finetune"].config["train"]
    assert (chosen["tune"], chosen["lora"]["rank"]) == ("lora", 4) and "last_layers" not in chosen
    early = override(recipes.tiny(), {"finetune.early_stopping": '{"every":5}'})
    finetune = steps(early)["finetune"]
    assert finetune.config["train"]["early_stopping"] == {"metric": "loss", "every": 5, "patience": 3}
    assert "tune" not in finetune.config["train"] and "validation" in finetune.inputs


def test_an_adapter_is_registered_against_the_registered_base() -> None:
    named = {"finetune.tune": "lora", "register_as.adapter": "sentiment-adapter"}
    found = steps(override(recipes.tiny(), named))
    assert found["register-adapter"].inputs["base"].step == "register-base"
    assert found["register-adapter"].inputs["export"].step == "finetune"
    assert "register-adapter" not in steps(override(recipes.tiny(), {"finetune.tune": "lora"}))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"finetune.tune": "last_layers"}, "last_layers"),
        ({"finetune.last_layers": "1"}, "tune=last_layers"),
        ({"finetune.lora.rank": "4"}, "tune=lora"),
        ({"finetune.tune": "head", "finetune.init": "random"}, "init=random"),
        ({"register_as.adapter": "a"}, "needs finetune.tune=lora"),
        ({"finetune.tune": "lora", "register_as.adapter": "sentiment"}, "its own"),
    ],
)
def test_what_cannot_be_is_refused_when_the_recipe_is_read(settings: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        override(recipes.tiny(), settings)
