"""The whole line, in order: a recipe in, steps out. What retraining makes of it: challenge.py.

The one idea: each step names its stage, its part of the recipe, and exactly those outputs of earlier steps that it
reads. What it does not read cannot make it stale.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from model.tuning_config import Tuning
from pipelines import amendments, labels_flow
from pipelines.config import FinetuneConfig, Recipe, Source, TaskConfig, TokenizerConfig
from pipelines.engine.step import Input, Step
from pipelines.finetune_config import ADDED_TO_FINETUNE
from pipelines.forms import form as forms
from pipelines.forms import long_texts
from pipelines.pretrained import Pretrained
from pipelines.release_config import MEASURED
from pipelines.stages import (
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
    if recipe.few_labels:
        known = cache(files)  # its many points read the same sources
        return labels_flow.build(recipe, lambda one: build(one, known))
    steps = [*_imported(recipe, files), *_data(recipe, files)]
    if recipe.pretrain:
        steps += _base(recipe)
    if recipe.task and recipe.finetune:
        steps += _task(recipe)
    return steps


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
    """What decides the examples beside the data: the recipe's settings, and the version of the task's own code.

    A field that came later counts where it is set: what was made stays made.
    """
    settings = _json(config, "source", "validation_source", "test_source", "benchmark_source")
    given = {name: value for name, value in settings.items() if value or name not in ADDED_TO_TASK}
    return given | amendments.words(config) | _version(task.of(config.name), "VERSION")


def _version(module: ModuleType, name: str) -> dict[str, int]:
    """What a task's or form's module calls the version of its own work, from the second on: what was made stays made.

    A stage's version makes the steps of all tasks stale, this one those of one task or form.
    """
    version = getattr(module, name, 1)
    return {"version": version} if version != 1 else {}


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
    """The output that holds what was trained, and how a training step is told where it is no export, or none in fp32."""
    if not recipe.release:
        return "weights/", {"release": False}
    return "export/", {} if recipe.export_precision == "fp32" else {"export_precision": recipe.export_precision}


def _finetune_settings(config: FinetuneConfig) -> dict[str, Any]:
    """What decides how the task is learned; what came later counts where it is not at its default."""
    defaults = {name: FinetuneConfig.model_fields[name].default for name in ADDED_TO_FINETUNE}
    settings = _json(config, *Tuning.model_fields)
    return {name: value for name, value in settings.items() if name not in defaults or value != defaults[name]}


def asked(recipe: Recipe) -> dict[str, Any]:
    """How the task's model is asked: in its form, and where it learned from windows in such windows, and plainly beside them."""
    assert recipe.finetune
    window, stride = recipe.finetune.sequence_length, recipe.finetune.stride
    windows = {"window": window, "stride": stride, long_texts.PLAIN: True} if stride else {}
    kind = form_of(recipe)
    amended = amendments.windows(recipe, kind) | amendments.overlap(recipe, kind)
    return {"kind": kind} | _version(forms.of(kind), "EVALUATION") | windows | amended


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
    cleaned = amendments.cleaned(recipe.task, form_of(recipe)) if recipe.task else {}
    steps.append(Step("shard", shard.STAGE, _json(recipe.shard, "sources") | cleaned, evaluation, corpus))
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


def attention(recipe: Recipe) -> dict[str, Any]:
    """How documents of one window see each other, where it is not as usual: a base model is measured as it was trained."""
    assert recipe.pretrain
    return {name: value for name, value in recipe.pretrain.options.items() if name == "attention"}


def _base_evaluation(recipe: Recipe) -> dict[str, Any]:
    """How a base model is measured: by its objective."""
    trained = recipe.pretrain
    assert trained
    if trained.objective == "causal_lm":
        return {"kind": "language_model"} | _json(recipe.evaluate) | attention(recipe)
    options = {name: value for name, value in trained.options.items() if name != "mixture"}
    how = {"objective": trained.objective, "options": options, "sequence_length": trained.sequence_length}
    return {"kind": evaluate_masked.KIND} | how | _version(evaluate_masked, "EVALUATION")


def _base(recipe: Recipe) -> list[Step]:
    """Pre-train, measure, register and pull the base model."""
    shape, known = _shape(recipe)
    made, how = _weights(recipe)
    begun = {"base": Input("import", "export/")} if recipe.pretrained else {}
    return [
        Step(
            "pretrain", pretrain.STAGE, {"model": shape, "train": _json(recipe.pretrain)} | how | amendments.mixture(recipe),
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
    kind = form_of(recipe)
    labels = {"labels": Input("prepare_task", "labels.json")} if kind == "classification" else {}
    named = {} if kind == "classification" else {"form": kind}  # it was the only one: what was made stays made
    return [
        Step(
            "finetune", finetune.STAGE, {"model": shape, "train": _finetuning(recipe)} | named | how,
            {"examples": examples["train"], "tokenizer": _tokenizer_of(recipe)} | labels | base | known
            | ({"validation": examples["validation"]} if recipe.finetune.early_stopping else {}),
        ),
        Step(
            "evaluate-task", evaluate.STAGE, asked(recipe),
            {"export": Input("finetune", made)} | labels | examples | (base if kind == "text" else {}),
        ),
        *(_released("task", recipe.register_as.task, _json(recipe.register_as)["task_gates"], "finetune") if recipe.release else []),
        *(_adapter(recipe) if recipe.register_as.adapter else []),
    ]  # fmt: skip


def _examples(*names: str) -> dict[str, Input]:
    return {name: Input("prepare_task", f"{name}.jsonl") for name in names}


def _finetuning(recipe: Recipe) -> dict[str, Any]:
    """What decides the fine-tuned weights. Tuning counts where something was chosen: what was made stays made."""
    assert recipe.finetune
    return _finetune_settings(recipe.finetune) | recipe.finetune.meaning()


def _adapter(recipe: Recipe) -> list[Step]:
    """Register the adapter alone, against the base that it was trained on, under the gates of the model that it makes.

    A base that others trained and nothing was made of is registered for it as it was imported: nobody measured it.
    """
    register_as = _json(recipe.register_as)
    gates = [gate for gate in register_as["task_gates"] if gate["metric"] not in MEASURED]
    base = "register-base" if recipe.pretrain else "register-import"
    labels = {"labels": Input("prepare_task", "labels.json")} if form_of(recipe) == "classification" else {}
    imported = {"name": register_as["base"], "kind": "import", "gates": register_as["base_gates"]}
    own = [
        Step("register-import", register.STAGE, imported, {"export": Input("import", "export/")}),
        Step("pull-import", pull.STAGE, {"name": register_as["base"]}, {"registered": Input("register-import", "registered.json")}),
    ]  # fmt: skip
    return [
        *([] if recipe.pretrain else own),
        Step(
            "register-adapter", register.STAGE, {"name": register_as["adapter"], "kind": "adapter", "gates": gates},
            {"export": Input("finetune", "adapter/"), "evaluation": Input("evaluate-task", "metrics.json"), "base": Input(base, "registered.json"),
             "tokenizer": Input("finetune", "export/")} | labels,
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
