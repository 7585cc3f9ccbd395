"""The whole line, in order: a recipe in, steps out. The only file that knows the graph.

The one idea: each step names its stage, its part of the recipe, and exactly those outputs of earlier steps that it
reads. What it does not read cannot make it stale.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.config import Recipe, Source, TokenizerConfig
from pipelines.engine.step import Input, Step
from pipelines.stages import (
    evaluate,
    finetune,
    prepare_task,
    pretrain,
    pull,
    register,
    shard,
    tokenize,
    train_tokenizer,
)

Files = Callable[[Source], list[dict[str, Any]]]


def build(recipe: Recipe, files: Files) -> list[Step]:
    """The steps of `recipe` in an order in which each stands after those it reads.

    `files` resolves a source to its files, each with its digest and how it is read.
    """
    steps = [*_data(recipe, files), *_base(recipe)]
    if recipe.task and recipe.finetune:
        steps += _task(recipe)
    return steps


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


def _data(recipe: Recipe, files: Files) -> list[Step]:
    """Labelled examples first: the corpus is cleaned of the held-out ones."""
    steps = []
    evaluation = {}
    if recipe.task:
        labelled = {"labelled": files(recipe.task.source)}
        steps.append(Step("prepare_task", prepare_task.STAGE, _json(recipe.task, "source"), {}, labelled))
        evaluation = {
            "test": Input("prepare_task", "test.jsonl"),
            "validation": Input("prepare_task", "validation.jsonl"),
        }
    corpus = {"corpus": _all(recipe.shard.sources, files)}
    return [
        *steps,
        Step("shard", shard.STAGE, _json(recipe.shard, "sources"), evaluation, corpus),
        Step("train_tokenizer", train_tokenizer.STAGE, _json(recipe.tokenizer, "sources", "pinned"), {}, _tokenizer(recipe.tokenizer, files)),
        Step(
            "tokenize", tokenize.STAGE, {},
            {"train": Input("shard", "train.json"), "heldout": Input("shard", "heldout.json"), "tokenizer": Input("train_tokenizer", "tokenizer/")},
        ),
    ]  # fmt: skip


def _base(recipe: Recipe) -> list[Step]:
    """Pre-train, measure, register and pull the base model."""
    model = {"model": _json(recipe.model)}
    tokenizer = Input("train_tokenizer", "tokenizer/")
    return [
        Step("pretrain", pretrain.STAGE, model | {"train": _json(recipe.pretrain)}, {"tokens": Input("tokenize", "train.json"), "tokenizer": tokenizer}),
        Step(
            "evaluate-base", evaluate.STAGE, {"kind": "language_model"} | _json(recipe.evaluate),
            {"export": Input("pretrain", "export/")}
            | {f"{kind}_{split}": Input(step, f"{split}.json") for kind, step in (("text", "shard"), ("tokens", "tokenize")) for split in ("train", "heldout")},
        ),
        *_released("base", recipe.register_as.base, _json(recipe.register_as)["base_gates"], "pretrain"),
    ]  # fmt: skip


def _task(recipe: Recipe) -> list[Step]:
    """Fine-tune, measure, register and pull the task's model."""
    assert recipe.task and recipe.finetune
    base = {"base": Input("pretrain", "export/")} if recipe.finetune.init == "base" else {}
    examples = {name: Input("prepare_task", f"{name}.jsonl") for name in ("train", "validation", "test")}
    labels = Input("prepare_task", "labels.json")
    return [
        Step(
            "finetune", finetune.STAGE, {"model": _json(recipe.model), "train": _json(recipe.finetune)},
            {"examples": examples["train"], "labels": labels, "tokenizer": Input("train_tokenizer", "tokenizer/")} | base,
        ),
        Step(
            "evaluate-task", evaluate.STAGE, {"kind": "classification"},
            {"export": Input("finetune", "export/"), "labels": labels} | examples,
        ),
        *_released("task", recipe.register_as.task, _json(recipe.register_as)["task_gates"], "finetune"),
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
