"""evaluate: an export over held-out data, beside the baselines that anybody would try first.

The one idea: what is measured is the directory that ships, through `transformers`, and every figure has the simple
method's figure next to it, so that nobody has to guess whether it is good.
"""

from __future__ import annotations

import json
from typing import Any

from model import durable
from pipelines.engine.step import Attempt, Stage

STAGE = Stage("evaluate", 1, "pipelines.stages.evaluate:run")


def run(attempt: Attempt) -> dict[str, Any]:
    """Write metrics.json and what was predicted or generated; return the metrics."""
    from cluster import services

    services.connect(attempt.execution["ray_address"], attempt.execution["cpus"])
    measure = {"language_model": language_model, "classification": classification}[attempt.config["kind"]]
    metrics = measure(attempt)
    durable.write_json(attempt.outputs / "metrics.json", metrics)
    return metrics


def _job(attempt: Attempt, **more: Any) -> dict[str, Any]:
    """What every evaluation task is told: the export, and how to compute."""
    threads = max(1, attempt.execution["workers"])
    attempt.numerics.update({"threads": threads, "device": attempt.execution["device"]})
    export = str(attempt.inputs["export"].path("export"))
    return {"export": export, "threads": threads, "device": attempt.execution["device"], **more}


def language_model(attempt: Attempt) -> dict[str, Any]:
    """Bits per byte on the held-out shards, the baselines' beside it, and a few continuations."""
    from cluster.ray_map import run_one
    from pipelines.tasks import language_modelling

    cpus = attempt.execution["workers"]
    heldout, root = attempt.inputs["tokens"].path("heldout.json"), attempt.root
    metrics = run_one(
        "model.evaluate:evaluate_language_model", _job(attempt, manifest=str(heldout), root=str(root)), cpus=cpus
    )
    metrics |= language_modelling.baselines(
        attempt.inputs["text"].path("heldout.json"), heldout, attempt.inputs["train"].path("train.json"), root
    )
    prompts = language_modelling.prompts(attempt.inputs["text"].path("heldout.json"), root, attempt.config["continuations"])
    job = _job(
        attempt, prompts=prompts, max_new_tokens=attempt.config["continuation_tokens"], seed=0, temperature=0.8, top_k=50
    )
    texts = run_one("model.generate:generate", job, cpus=cpus)
    durable.write_json(
        attempt.outputs / "continuations.json",
        [{"prompt": prompt, "continuation": text} for prompt, text in zip(prompts, texts, strict=True)],
    )
    return metrics


def classification(attempt: Attempt) -> dict[str, Any]:
    """Accuracy and macro-F1 on the test examples, with a confidence interval and the baselines'."""
    from cluster.ray_map import run_one
    from pipelines.tasks import metrics as scores
    from pipelines.tasks.sentiment import read_examples

    test, train = attempt.inputs["test"].path("test.jsonl"), attempt.inputs["train"].path("train.jsonl")
    predictions = attempt.outputs / "predictions.jsonl"
    job = _job(attempt, examples=str(test), output=str(predictions), max_length=attempt.config["max_length"])
    counts = run_one("model.evaluate:classify", job, cpus=attempt.execution["workers"])
    predicted = [json.loads(line)["predicted"] for line in predictions.read_text().splitlines()]
    truth = read_examples(test)
    return (
        {"examples": counts["examples"], "truncated": counts["truncated"]}
        | scores.classification([example.label for example in truth], predicted)
        | scores.baselines(read_examples(train), truth)
    )
