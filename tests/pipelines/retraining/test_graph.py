"""The graph of a challenger: what each way to start trains, what it begins from, and that nothing is released uncompared."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from pipelines import challenge, flow, frozen, package, recipes
from pipelines.champions import SOURCE_GROUPS, Champion
from pipelines.config import ConfigError, Recipe, RetrainConfig, Source
from pipelines.engine.step import Step
from pipelines.forms import long_texts

TOKENIZER = "7" * 64


def champion(folder: Path, name: str, **pretraining: Any) -> Champion:
    """A champion whose package is a manifest; its pre-training had these options."""
    folder.mkdir()
    lineage = {"pretrain": {"config": {"train": pretraining}}, "shard": {"sources": {"corpus": ["c1", "c2"]}}, "champion-base": {"sources": {"corpus": ["c0"], "package": ["p"]}},
               "train_tokenizer": {"sources": {"text": ["t1"]}}}  # fmt: skip
    said: dict[str, Any] = {"schema": 1, "kind": "model_package", "name": name, "lineage": lineage}
    said["files"] = {"tokenizer.json": {"sha256": TOKENIZER, "size": 1}}
    (folder / "MANIFEST.json").write_text(json.dumps(said | {"digest": package._digest(said)}))
    return Champion(name, 3, "d" * 64, folder)


@pytest.fixture
def champions(tmp_path: Path) -> dict[str, Champion]:
    return {"base": champion(tmp_path / "base", "base"), "task": champion(tmp_path / "task", "sentiment")}


def graph(champions: dict[str, Champion], task: bool = True, **how: Any) -> dict[str, Step]:
    recipe = recipes.tiny().model_copy(
        update={"retrain": RetrainConfig(**how)} | ({} if task else {"task": None, "finetune": None})
    )
    there = champions if task else {"base": champions["base"]}
    steps = challenge.retraining(challenge.challenging(recipe, there), there, _files)
    before: set[str] = set()
    for step in steps:
        assert {source.step for source in step.inputs.values()} <= before, f"{step.name} reads what comes later"
        before.add(step.name)
    return {step.name: step for step in steps}


def _files(source: Source) -> list[dict[str, Any]]:
    return [{"path": "here", "sha256": "new", "label": "x", "size": 1}]


def _begins(step: Step) -> str | None:
    return step.inputs["base"].step if "base" in step.inputs else None


@pytest.mark.parametrize(
    ("start", "pretrain", "finetune"),
    [("continue_pretraining", "champion-base", "pretrain"), ("scratch", None, "pretrain"), ("base", "-", "champion-base"),
     ("champion", "-", "champion-task")],
)  # fmt: skip
def test_training_begins_where_the_recipe_says(
    champions: dict[str, Champion], start: str, pretrain: str | None, finetune: str
) -> None:
    steps = graph(champions, start=start)
    assert (_begins(steps["pretrain"]) if "pretrain" in steps else "-") == pretrain
    assert _begins(steps["finetune"]) == finetune
    assert ("shard" in steps) == ("pretrain" in steps)
    released = [name for name in steps if name.startswith("register-")]
    assert released == (["register-base", "register-task"] if "pretrain" in steps else ["register-task"])
    assert all(steps[name].inputs["comparison"].step == name.replace("register", "compare") for name in released)


@pytest.mark.parametrize("start", ["continue_pretraining", "base", "champion"])
def test_without_a_task_the_base_goes_on_from_its_champion(champions: dict[str, Champion], start: str) -> None:
    steps = graph(champions, task=False, start=start)
    assert _begins(steps["pretrain"]) == "champion-base" and "champion-task" not in steps


def test_the_tokenizer_is_the_champions_whatever_is_new(champions: dict[str, Champion]) -> None:
    for start in ("continue_pretraining", "scratch", "base", "champion"):
        (pinned,) = graph(champions, start=start)["train_tokenizer"].sources["pinned"]
        assert pinned["sha256"] == TOKENIZER


def test_a_champion_lists_what_its_weights_have_seen_only_where_training_begins_from_it(
    champions: dict[str, Champion],
) -> None:
    def known(steps: dict[str, Step], name: str) -> dict[str, list[str]]:
        return {
            group: [file["sha256"] for file in files]
            for group, files in steps[name].sources.items()
            if group != "package"
        }

    went_on, anew = graph(champions), graph(champions, start="scratch")
    assert known(went_on, "champion-base") == {"corpus": ["c0", "c1", "c2"], "text": ["t1"]}
    assert known(went_on, "champion-task") == known(anew, "champion-base") == {"text": ["t1"]}


def test_steps_and_rates_are_shortened_only_where_training_begins_from_a_champion(
    champions: dict[str, Champion],
) -> None:
    how: dict[str, Any] = {"pretrain_steps": 3, "finetune_steps": 7, "learning_rate_factor": 0.5}
    steps = graph(champions, **how)
    pretrain, finetune = (steps[name].config["train"] for name in ("pretrain", "finetune"))
    assert (pretrain["max_steps"], pretrain["warmup_steps"], pretrain["learning_rate"]) == (3, 3, 5e-3)
    assert (finetune["max_steps"], finetune["warmup_steps"], finetune["learning_rate"]) == (7, 3, 2.5e-3)
    plain = {step.name: step for step in flow.build(recipes.tiny(), _files)}
    anew = graph(champions, start="scratch", **how)
    assert all(anew[name].config == plain[name].config for name in ("pretrain", "finetune", "shard", "evaluate-task"))


@pytest.mark.parametrize(
    ("start", "kind", "step"), [("continue_pretraining", "base", "pretrain"), ("base", "base", "pretrain"), ("champion", "task", "finetune")]
)  # fmt: skip
def test_a_champion_of_another_shape_is_refused_before_any_step(
    champions: dict[str, Champion], start: str, kind: str, step: str
) -> None:
    shape = recipes.tiny().model
    assert shape
    as_made = shape.model_dump(mode="json")
    _say_shape(champions[kind], step, as_made | {"resid_pdrop": 0.3})
    assert graph(champions, start=start), "dropout is of the run"
    _say_shape(champions[kind], step, as_made | {"n_layer": 3, "layer_norm_epsilon": 1e-6})
    name = champions[kind].name
    said = f"retrain.start={start} begins with {name}@3, whose weights are of n_layer=3 where the recipe has 2, layer_norm_epsilon=1e-06 where the recipe has 1e-05; give"
    with pytest.raises(ConfigError, match=re.escape(said)):
        graph(champions, start=start)
    assert graph(champions, start="scratch")


def _say_shape(one: Champion, step: str, shape: dict[str, Any]) -> None:
    """Have a champion's package say that its weights had this shape in a step."""
    _say(one, step, model=shape)


def _say(one: Champion, step: str, **config: Any) -> None:
    """Have a champion's package say that this was in a step's configuration."""
    said = json.loads((one.folder / "MANIFEST.json").read_text())
    said["lineage"].setdefault(step, {}).setdefault("config", {}).update(config)
    del said["digest"]
    (one.folder / "MANIFEST.json").write_text(json.dumps(said | {"digest": package._digest(said)}))


@pytest.mark.parametrize("start", ["base", "champion"])
def test_what_goes_on_with_a_text_is_measured_beside_what_it_went_on_from(
    champions: dict[str, Champion], start: str
) -> None:
    """No pre-training is done, and `evaluate-task` of a text reads the weights that fine-tuning began with."""
    recipe = recipes.NAMED["generation"]().model_copy(update={"retrain": RetrainConfig(start=start)})
    made = {
        step.name: step for step in challenge.retraining(challenge.challenging(recipe, champions), champions, _files)
    }
    assert "pretrain" not in made
    assert (
        _begins(made["evaluate-task"])
        == _begins(made["finetune"])
        == f"champion-{'task' if start == 'champion' else 'base'}"
    )


def test_a_champion_is_asked_in_its_own_windows(champions: dict[str, Champion]) -> None:
    plain, task = recipes.tiny(), champions["task"]
    assert plain.finetune
    windows = {"long_texts": "windows", "window_stride": 24}
    windowed = plain.model_copy(update={"finetune": plain.finetune.model_copy(update=windows)})

    def compared(recipe: Recipe) -> dict[str, Any]:
        made = challenge.retraining(challenge.challenging(recipe, champions), champions, _files)
        return next(dict(step.config) for step in made if step.name == "compare-task")

    assert "champion_windows" not in compared(plain) and "stride" not in compared(plain)
    assert compared(windowed)["champion_windows"] == {} and compared(windowed)["stride"] == 24
    _say(task, "evaluate-task", window=48, stride=24)
    assert "champion_windows" not in compared(windowed)
    assert compared(plain)["champion_windows"] == {"window": 48, "stride": 24}
    assert long_texts.champion_asked(compared(plain)) == {"max_length": 48, "stride": 24}
    assert long_texts.asked(compared(plain)) == {} and long_texts.champion_asked(compared(windowed))["stride"] == 24


def test_every_group_of_sources_that_can_be_new_is_known_of_a_champion() -> None:
    assert {*frozen._READ} <= {*SOURCE_GROUPS}


def test_a_recipes_retraining_changes_no_step_of_a_run() -> None:
    plain = flow.build(recipes.tiny(), _files)
    changed = recipes.tiny().model_copy(update={"retrain": RetrainConfig(start="scratch", minimum_gain=0.1)})
    assert flow.build(changed, _files) == plain


def test_each_base_is_compared_as_it_was_trained(champions: dict[str, Champion], tmp_path: Path) -> None:
    within = {"attention": "within_documents"}
    recipe = recipes.tiny()
    assert recipe.pretrain
    other = recipe.model_copy(update={"pretrain": recipe.pretrain.model_copy(update=within)})
    others = champions | {"base": champion(tmp_path / "other", "base", **within)}
    said: dict[str, str] = {"kind": "language_model"}
    for one, there, expected in (
        (recipe, champions, {}), (other, champions, within), (other, others, within | {"champion_attention": within["attention"]}),
    ):  # fmt: skip
        steps = {step.name: step for step in challenge.retraining(challenge.challenging(one, there), there, _files)}
        assert steps["compare-base"].config == said | {"minimum_gain": one.retrain.minimum_gain} | expected
