"""evaluate: an export over held-out data, beside the baselines that anybody would try first.

The one idea: what is measured is the directory that ships, through `transformers`, and every figure has the simple
method's figure next to it, so that nobody has to guess whether it is good.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from model import durable
from pipelines.engine.step import Attempt, Stage, StepInput
from pipelines.forms import form
from pipelines.stages import evaluate_masked
from pipelines.stages.fan_out import connect, one

STAGE = Stage("evaluate", 2, "pipelines.stages.evaluate:run")
_PROMPT_WORDS = 8


def run(attempt: Attempt) -> dict[str, Any]:
    """Write metrics.json and what was predicted or generated; return the metrics."""
    connect(attempt)
    kind = attempt.config["kind"]  # that of a base model, or the form of a task
    base = {"language_model": language_model, evaluate_masked.KIND: evaluate_masked.measure}
    metrics = base[kind](attempt) if kind in base else form.of(kind).evaluate(attempt)
    durable.write_json(attempt.outputs / "metrics.json", metrics)
    return metrics


def compute(attempt: Attempt, function: str, export: Path | None = None, **job: Any) -> Any:
    """Run a function of model/ on an export (the step's own input if none is given), see `alone`."""
    return alone(attempt, function, export=str(export or weights(attempt.inputs["export"])), **job)


def weights(made: StepInput) -> Path:
    """What a training step made: its export, or the weights of a recipe that releases nothing."""
    export = made.path("export")
    return export if export.is_dir() else made.path("weights")


def alone(attempt: Attempt, function: str, **job: Any) -> Any:
    """Run a function of model/ on `job`, in a task with the threads or the GPU that it uses."""
    execution = attempt.execution
    # Here all cores are ours; on a cluster no node need have as many as this one, so what a rank has must do.
    threads = execution["workers"] if execution["ray_address"] == "local" else execution["threads"]
    how = {"threads": threads, "device": execution["device"]}
    attempt.numerics.update(how)
    gpus = 1 if execution["device"] == "cuda" else 0
    return one(attempt, function, how | job, cpus=threads, gpus=gpus, logs=attempt.scratch)


def language_model(attempt: Attempt) -> dict[str, Any]:
    """Bits per byte on the held-out shards, the baselines' beside it, and a few continuations."""
    from pipelines.tasks import language_modelling

    for name in ("text_train", "text_heldout", "tokens_train", "tokens_heldout"):
        attempt.inputs[name].check_units(attempt.root, f"{name.split('_')[1]}.json")
    heldout, root = attempt.inputs["tokens_heldout"].path("heldout.json"), attempt.root
    metrics = compute(
        attempt, "model.evaluate:evaluate_language_model", manifest=str(heldout), root=str(root),
        attention=attempt.config.get("attention", "across_documents"),
    )  # fmt: skip
    text = {split: attempt.inputs[f"text_{split}"].path(f"{split}.json") for split in ("train", "heldout")}
    tokens = {split: attempt.inputs[f"tokens_{split}"].path(f"{split}.json") for split in ("train", "heldout")}
    simple = language_modelling.baselines(root, text, tokens)
    metrics |= {
        f"{name}_bits_per_byte": simple[key]
        for name, key in (("unigram", "token_unigram"), ("gzip", "gzip"), ("xz", "xz"))
    }
    prompts = _prompts(language_modelling.texts(root, text["heldout"]), attempt.config["continuations"])
    texts = compute(
        attempt,
        "model.generate:generate",
        prompts=prompts,
        max_new_tokens=attempt.config["continuation_tokens"],
        seed=0,
        temperature=0.8,
        top_k=50,
    )
    durable.write_json(
        attempt.outputs / "continuations.json",
        [{"prompt": prompt, "continuation": text} for prompt, text in zip(prompts, texts, strict=True)],
    )
    return metrics


def _prompts(documents: Iterator[bytes], count: int) -> list[str]:
    """The first words of the first `count` held-out documents that have enough of them."""
    openings = (document.decode().split(maxsplit=_PROMPT_WORDS) for document in documents)
    return [
        " ".join(words[:_PROMPT_WORDS])
        for words in islice((words for words in openings if len(words) > _PROMPT_WORDS), count)
    ]
