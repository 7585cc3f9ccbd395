"""The whole line, in order: a recipe in, steps out. The only file that knows the graph.

The one idea: each step names its stage, its part of the recipe, and exactly those outputs of earlier steps that it
reads. What it does not read cannot make it stale.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from model.tuning_config import Tuning
from pipelines.champions import Champion
from pipelines.config import ADDED_TO_FINETUNE, ConfigError, FinetuneConfig, Recipe, Source, TaskConfig, TokenizerConfig
from pipelines.engine.step import Input, Step
from pipelines.pretrained import Pretrained
from pipelines.stages import (
    champion,
    compare,
    evaluate,
    evaluate_masked,
    finetune,
    import_model,
    prepare_task,
    pretrain,
    pull,
    register,
    shard,
    tokenize,
    train_tokenizer,
)
from pipelines.task_config import ADDED_TO_TASK
from pipelines.tasks import task

Files = Callable[[Source | Pretrained], list[dict[str, Any]]]


def build(recipe: Recipe, files: Files) -> list[Step]:
    """The steps of `recipe` in an order in which each stands after those it reads.

    `files` resolves a source to its files, each with its digest and how it is read.
    """
    steps = [*_imported(recipe, files), *_data(recipe, files)]
    if recipe.pretrain:
        steps += _base(recipe)
    if recipe.task and recipe.finetune:
        steps += _task(recipe)
    return steps


def retraining(recipe: Recipe, champions: Mapping[str, Champion], files: Files) -> list[Step]:
    """The steps that challenge the champions ("base", "task"): those of `build`, begun from a champion, released by comparison.

    The recipe is that of `challenging`: its tokenizer is pinned to the champion's.
    """
    begun = _begun_from(recipe)
    if "finetune" not in begun and recipe.pretrain and recipe.pretrain.objective != "causal_lm":
        raise ConfigError(
            f"retrain.start={recipe.retrain.start!r} compares base models by bits per byte, which one of pretrain.objective="
            f"{recipe.pretrain.objective!r} has none of; with a task set retrain.start=base or champion, else make run again"
        )
    # An adapter stands on a registered base, and a challenger's may be the task's own champion: it is merged only.
    steps = [step for step in build(recipe, files) if not step.name.endswith("-adapter")]
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
    """The recipe of a challenger: the champion's tokenizer, and as many steps as `retrain` says where training is begun from one."""
    how = recipe.retrain
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
        yield replace(step, inputs={**step.inputs, "base": Input(f"champion-{begun[step.name]}", "export/")})
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
        if form_of(recipe) == "classification":  # the champion's labels need not be this challenger's
            examples["labels"] = Input("prepare_task", "labels.json")
        yield Step("compare-task", compare.STAGE, _asked(recipe) | config, theirs | examples)
    else:
        documents = {
            f"{what}_heldout": Input(made, "heldout.json") for what, made in (("text", "shard"), ("tokens", "tokenize"))
        }
        yield Step(
            "compare-base",
            compare.STAGE,
            {"kind": "language_model"} | config,
            theirs | {"export": Input("pretrain", "export/")} | documents,
        )
    yield replace(step, inputs={**step.inputs, "comparison": Input(f"compare-{kind}", "comparison.json")})


def _champion(kind: str, one: Champion, started_from: bool, pinned: bool) -> Step:
    """A champion as a step. What its weights were made from is listed if training starts from them, else its tokenizer's text."""
    package = [{"path": str(one.folder), "sha256": one.digest, "label": one.name, "size": 0}]
    groups = [group for group in one.sources if started_from or (pinned and group == "text")]
    known = {
        group: [{"path": "", "sha256": sha256, "label": "champion", "size": 0} for sha256 in one.sources[group]]
        for group in groups
    }
    return Step(f"champion-{kind}", champion.STAGE, {}, {}, {"package": package} | known)


def form_of(recipe: Recipe) -> str:
    """The form of the recipe's task, which decides how it is learned and measured."""
    assert recipe.task
    return task.form_of(recipe.task.name)


def _json(config: Any, *exclude: str) -> dict[str, Any]:
    return config.model_dump(mode="json", exclude=set(exclude))


def _all(sources: tuple[Source, ...], files: Files) -> list[dict[str, Any]]:
    return [file for source in sources for file in files(source)]


def _tokenizer(config: TokenizerConfig, files: Files) -> dict[str, list[dict[str, Any]]]:
    """What a tokenizer is made from: its own sources, or a directory that is known by its digest."""
    if config.pinned:
        folder = Path(config.pinned).expanduser().absolute()
        return {"pinned": [{"path": str(folder), "sha256": config.digest, "label": "pinned", "size": 0}]}
    return {"text": _all(config.sources, files)}


def task_settings(config: TaskConfig) -> dict[str, Any]:
    """What decides the examples beside the data. A field that came later counts where it is set: what was made stays made."""
    settings = _json(config, "source", "validation_source", "test_source", "benchmark_source")
    return {name: value for name, value in settings.items() if value or name not in ADDED_TO_TASK}


def _imported(recipe: Recipe, files: Files) -> list[Step]:
    """Somebody else's model, where the recipe begins with one: it stands for the tokenizer and, where nothing is pre-trained, for the base."""
    return (
        [Step("import", import_model.STAGE, {}, {}, {"model": files(recipe.pretrained)})] if recipe.pretrained else []
    )


def _tokenizer_of(recipe: Recipe) -> Input:
    return Input("import" if recipe.pretrained else "train_tokenizer", "tokenizer/")


def _shape(recipe: Recipe) -> tuple[dict[str, Any], dict[str, Input]]:
    """What decides the model's shape: the recipe, or the model that it begins with."""
    if recipe.pretrained:
        return {}, {"shape": Input("import", import_model.MODEL)}
    return _json(recipe.model), {}


def _weights(recipe: Recipe) -> tuple[str, dict[str, Any]]:
    """The output that holds what was trained, and how a training step is told where it is no export."""
    return ("export/", {}) if recipe.release else ("weights/", {"release": False})


def _finetune_settings(config: FinetuneConfig) -> dict[str, Any]:
    """What decides how the task is learned; what came later counts where it is not at its default."""
    defaults = {name: FinetuneConfig.model_fields[name].default for name in ADDED_TO_FINETUNE}
    settings = _json(config, *Tuning.model_fields)
    return {name: value for name, value in settings.items() if name not in defaults or value != defaults[name]}


def _asked(recipe: Recipe) -> dict[str, Any]:
    """How the task's model is asked: in its form, and where it learned from windows in such windows."""
    assert recipe.finetune
    windows = (
        {"window": recipe.finetune.sequence_length, "stride": recipe.finetune.stride} if recipe.finetune.stride else {}
    )
    return {"kind": form_of(recipe)} | windows


def _data(recipe: Recipe, files: Files) -> list[Step]:
    """Labelled examples first: the corpus is cleaned of the held-out ones."""
    steps = []
    evaluation = {}
    if recipe.task:
        labelled = {group: files(source) for group, source in recipe.task.sources.items()}
        steps.append(Step("prepare_task", prepare_task.STAGE, task_settings(recipe.task), {}, labelled))
        evaluation = _examples("validation", *recipe.task.test_sets)
    if recipe.shard is None:
        return steps
    corpus = {"corpus": _all(recipe.shard.sources, files)}
    steps.append(Step("shard", shard.STAGE, _json(recipe.shard, "sources"), evaluation, corpus))
    if recipe.tokenizer:
        steps.append(
            Step("train_tokenizer", train_tokenizer.STAGE, _json(recipe.tokenizer, "sources", "pinned"), {}, _tokenizer(recipe.tokenizer, files))
        )  # fmt: skip
    return [
        *steps,
        Step(
            "tokenize", tokenize.STAGE, _token_options(recipe),
            {"train": Input("shard", "train.json"), "heldout": Input("shard", "heldout.json"), "tokenizer": _tokenizer_of(recipe)},
        ),
    ]  # fmt: skip


def _token_options(recipe: Recipe) -> dict[str, Any]:
    """What the objective needs beside tokens; nothing where it needs nothing, so that what was made stays made."""
    assert recipe.pretrain
    paired, mixed = recipe.pretrain.objective.endswith("next_sentence"), bool(recipe.pretrain.mixture)
    return {name: True for name, needed in {"sentences": paired, "corpora": mixed}.items() if needed}


def _base_evaluation(recipe: Recipe) -> dict[str, Any]:
    """How a base model is measured: by its objective."""
    trained = recipe.pretrain
    assert trained
    if trained.objective == "causal_lm":
        return {"kind": "language_model"} | _json(recipe.evaluate)
    options = {name: value for name, value in trained.options.items() if name != "mixture"}
    how = {"objective": trained.objective, "options": options, "sequence_length": trained.sequence_length}
    return {"kind": evaluate_masked.KIND} | how


def _base(recipe: Recipe) -> list[Step]:
    """Pre-train, measure, register and pull the base model."""
    shape, known = _shape(recipe)
    made, how = _weights(recipe)
    begun = {"base": Input("import", "export/")} if recipe.pretrained else {}
    return [
        Step(
            "pretrain", pretrain.STAGE, {"model": shape, "train": _json(recipe.pretrain)} | how,
            {"tokens": Input("tokenize", "train.json"), "tokenizer": _tokenizer_of(recipe)} | known | begun,
        ),
        Step(
            "evaluate-base", evaluate.STAGE, _base_evaluation(recipe),
            {"export": Input("pretrain", made)}
            | {f"{kind}_{split}": Input(step, f"{split}.json") for kind, step in (("text", "shard"), ("tokens", "tokenize")) for split in ("train", "heldout")},
        ),
        *(_released("base", recipe.register_as.base, _json(recipe.register_as)["base_gates"], "pretrain") if recipe.release else []),
    ]  # fmt: skip


def _task(recipe: Recipe) -> list[Step]:
    """Fine-tune, measure, register and pull the task's model."""
    assert recipe.task and recipe.finetune
    shape, known = _shape(recipe)
    made, how = _weights(recipe)
    start = Input("pretrain", made) if recipe.pretrain else Input("import", "export/")
    base = {"base": start} if recipe.finetune.init == "base" else {}
    examples = _examples("train", "validation", *recipe.task.test_sets)
    form = form_of(recipe)
    labels = {"labels": Input("prepare_task", "labels.json")} if form == "classification" else {}
    named = {} if form == "classification" else {"form": form}  # it was the only one: what was made stays made
    return [
        Step(
            "finetune", finetune.STAGE, {"model": shape, "train": _finetuning(recipe.finetune)} | named | how,
            {"examples": examples["train"], "tokenizer": _tokenizer_of(recipe)} | labels | base | known
            | ({"validation": examples["validation"]} if recipe.finetune.early_stopping else {}),
        ),
        Step(
            "evaluate-task", evaluate.STAGE, _asked(recipe),
            {"export": Input("finetune", made)} | labels | examples | (base if form == "text" else {}),
        ),
        *(_released("task", recipe.register_as.task, _json(recipe.register_as)["task_gates"], "finetune") if recipe.release else []),
        *(_adapter(recipe) if recipe.register_as.adapter else []),
    ]  # fmt: skip


def _examples(*names: str) -> dict[str, Input]:
    return {name: Input("prepare_task", f"{name}.jsonl") for name in names}


def _finetuning(config: FinetuneConfig) -> dict[str, Any]:
    """What decides the fine-tuned weights. Tuning counts where something was chosen: what was made stays made."""
    return _finetune_settings(config) | config.meaning()


def _adapter(recipe: Recipe) -> list[Step]:
    """Register the adapter alone, against the base that it was trained on, under the gates of the model that it makes."""
    register_as = _json(recipe.register_as)
    gates = [gate for gate in register_as["task_gates"] if gate["metric"] not in ("export_bytes", "latency_ms")]
    return [
        Step(
            "register-adapter", register.STAGE, {"name": register_as["adapter"], "kind": "adapter", "gates": gates},
            {"export": Input("finetune", "adapter/"), "evaluation": Input("evaluate-task", "metrics.json"), "base": Input("register-base", "registered.json")},
        ),
        Step("pull-adapter", pull.STAGE, {"name": register_as["adapter"]}, {"registered": Input("register-adapter", "registered.json")}),
    ]  # fmt: skip


def _released(kind: str, name: str, gates: list[dict[str, Any]], trained: str) -> list[Step]:
    """Register the export of step `trained` under `name`, and pull it back as downstream would."""
    return [
        Step(
            f"register-{kind}", register.STAGE, {"name": name, "kind": kind, "gates": gates},
            {"export": Input(trained, "export/"), "evaluation": Input(f"evaluate-{kind}", "metrics.json")},
        ),
        Step(f"pull-{kind}", pull.STAGE, {"name": name}, {"registered": Input(f"register-{kind}", "registered.json")}),
    ]  # fmt: skip
