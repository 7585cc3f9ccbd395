"""The line of a retraining: the steps of `flow.py`, begun from a champion and released by comparison with it.

The one idea: a challenger is made by the steps that made the champion. Two things differ: where training begins, and that
a comparison stands before each registration.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from model.config import ModelShape
from pipelines import flow
from pipelines.champions import Champion
from pipelines.config import ConfigError, Recipe
from pipelines.engine.step import Input, Step
from pipelines.forms.long_texts import ASKED
from pipelines.stages import champion, compare


def retraining(recipe: Recipe, champions: Mapping[str, Champion], files: flow.Files) -> list[Step]:
    """The steps that challenge the champions ("base", "task"): those of `flow.build`, begun from a champion, released by comparison.

    The recipe is that of `challenging`: its tokenizer is pinned to the champion's.
    """
    if recipe.few_labels:
        raise ConfigError(f"recipe {recipe.name} measures few_labels and makes no model to retrain; use make run")
    begun = _begun_from(recipe)
    if "finetune" not in begun and recipe.pretrain and recipe.pretrain.objective != "causal_lm":
        raise ConfigError(
            f"retrain.start={recipe.retrain.start!r} compares base models by bits per byte, which one of pretrain.objective="
            f"{recipe.pretrain.objective!r} has none of; with a task set retrain.start=base or champion, else make run again"
        )
    # An adapter stands on a registered base, and a challenger's may be the task's own champion: it is merged only.
    steps = [step for step in flow.build(recipe, files) if not step.name.endswith("-adapter")]
    if recipe.task and begun.get("finetune"):  # nothing is pre-trained, so no document is read
        steps = [step for step in steps if step.name not in _PRETRAINED]
    changed = [part for step in steps for part in _challenged(step, recipe, champions, begun)]
    needed = {source.step for step in changed for source in step.inputs.values()}
    pinned = next(file["sha256"] for step in steps for file in step.sources.get("pinned", []))
    found = [
        _champion(kind, one, kind in begun.values(), one.tokenizer == pinned)
        for kind, one in champions.items()
        if f"champion-{kind}" in needed
    ]
    return [*found, *changed]


def challenging(recipe: Recipe, champions: Mapping[str, Champion]) -> Recipe:
    """The recipe of a challenger: the champion's tokenizer, and as many steps as `retrain` says where training is begun from one.

    ConfigError where training would begin from a champion of another shape.
    """
    how = recipe.retrain
    _require_same_shape(recipe, champions)
    one = champions.get(needs(recipe) or "base") or champions["task"]
    assert recipe.tokenizer and recipe.pretrain  # one that begins with somebody else's model is not retrained
    tokenizer = recipe.tokenizer.model_copy(update={"sources": (), "pinned": str(one.folder), "digest": one.tokenizer})
    if how.start == "scratch":
        return recipe.model_copy(update={"tokenizer": tokenizer})
    pretrain = _shorter(recipe.pretrain, how.pretrain_steps, how.learning_rate_factor)
    finetune = recipe.finetune and _shorter(recipe.finetune, how.finetune_steps, how.learning_rate_factor)
    if finetune and how.start in ("base", "champion"):
        finetune = finetune.model_copy(update={"init": "base"})
    return recipe.model_copy(update={"tokenizer": tokenizer, "pretrain": pretrain, "finetune": finetune})


def needs(recipe: Recipe) -> str | None:
    """Which champion training starts from: "base" or "task"; None from scratch."""
    return next(iter(_begun_from(recipe).values()), None)


def _require_same_shape(recipe: Recipe, champions: Mapping[str, Champion]) -> None:
    """ConfigError, with both values, where the weights that training begins from are of another shape than `recipe.model`.

    Training would refuse them too, but only after hours of other steps.
    """
    kind = needs(recipe)
    if kind is None or kind not in champions or recipe.model is None:
        return
    said = champions[kind].shape("pretrain" if kind == "base" else "finetune")
    if not said:
        return
    made, asked = ModelShape.model_validate(said), recipe.model
    theirs, ours = made.computation | made.sizes, asked.computation | asked.sizes
    wrong = [f"{name}={theirs[name]} where the recipe has {ours[name]}" for name in ours if theirs[name] != ours[name]]
    if wrong:
        raise ConfigError(
            f"retrain.start={recipe.retrain.start} begins with {champions[kind].name}@{champions[kind].version}, whose weights "
            f"are of {', '.join(wrong)}; give model.* that shape, or say retrain.start=scratch"
        )


_PRETRAINED = ("shard", "tokenize", "pretrain", "evaluate-base", "register-base", "pull-base")


def _begun_from(recipe: Recipe) -> dict[str, str]:
    """The step that begins from a champion, and from whose."""
    match recipe.retrain.start:
        case "scratch":
            return {}
        case "base" if recipe.task:
            return {"finetune": "base"}
        case "champion" if recipe.task:
            return {"finetune": "task"}
    return {"pretrain": "base"}


def _shorter(config: Any, steps: int | None, factor: float) -> Any:
    chosen = {"max_steps": steps, "warmup_steps": min(config.warmup_steps, steps)} if steps else {}
    rates = {name: getattr(config, name) * factor for name in ("learning_rate", "min_learning_rate")}
    return config.model_copy(update=chosen | rates)


def _challenged(
    step: Step, recipe: Recipe, champions: Mapping[str, Champion], begun: Mapping[str, str]
) -> Iterator[Step]:
    """A step of `build` as a challenger has it; a registration comes after its comparison."""
    if step.name in begun:
        yield _from_champion(step, begun[step.name])
        return
    if step.name == "evaluate-task" and "base" in step.inputs and "finetune" in begun:  # beside what it went on from
        yield _from_champion(step, begun["finetune"])
        return
    kind = step.name.removeprefix("register-")
    if step.name == kind or kind not in champions:
        yield step
        return
    config = {"minimum_gain": recipe.retrain.minimum_gain}
    theirs = {"champion": Input(f"champion-{kind}", "export/")}
    if kind == "task":
        examples = {
            "predictions": Input("evaluate-task", "predictions.jsonl"),
            "test": Input("prepare_task", "test.jsonl"),
        }
        if flow.form_of(recipe) == "classification":  # the champion's labels need not be this challenger's
            examples["labels"] = Input("prepare_task", "labels.json")
        asked = flow.asked(recipe) | config | _windows(recipe, champions[kind])
        yield Step("compare-task", compare.STAGE, asked, theirs | examples)
    else:
        documents = {
            f"{what}_heldout": Input(made, "heldout.json") for what, made in (("text", "shard"), ("tokens", "tokenize"))
        }
        yield Step(
            "compare-base",
            compare.STAGE,
            {"kind": "language_model"} | config | flow.attention(recipe) | _as_trained(champions[kind]),
            theirs | {"export": Input("pretrain", "export/")} | documents,
        )
    yield replace(step, inputs={**step.inputs, "comparison": Input(f"compare-{kind}", "comparison.json")})


def _from_champion(step: Step, kind: str) -> Step:
    return replace(step, inputs={**step.inputs, "base": Input(f"champion-{kind}", "export/")})


def _windows(recipe: Recipe, one: Champion) -> dict[str, Any]:
    """How the champion reads long texts, where it is not as the challenger does: each is asked as it was evaluated."""
    ours = {name: value for name, value in flow.asked(recipe).items() if name in ASKED}
    return {"champion_windows": one.windows} if one.windows != ours else {}


def _as_trained(one: Champion) -> dict[str, Any]:
    """How documents of one window see each other in a champion, where it is not as usual: its recipe may have been another."""
    return {f"champion_{name}": value for name, value in one.pretraining.items() if name == "attention"}


def _champion(kind: str, one: Champion, started_from: bool, pinned: bool) -> Step:
    """A champion as a step. What its weights were made from is listed if training starts from them, else its tokenizer's text."""
    package = [{"path": str(one.folder), "sha256": one.digest, "label": one.name, "size": 0}]
    groups = [group for group in one.sources if started_from or (pinned and group == "text")]
    known = {
        group: [{"path": "", "sha256": sha256, "label": "champion", "size": 0} for sha256 in one.sources[group]]
        for group in groups
    }
    return Step(f"champion-{kind}", champion.STAGE, {}, {}, {"package": package} | known)
