"""finetune: examples of a task and a base model in, the task's model out.

The one idea: examples are tokenised here with the base model's own tokenizer, in the way of the task's form
(pipelines/forms), where texts longer than the window are cut and counted; the loop is the one that pre-trained the base.
"""

from __future__ import annotations

from typing import Any

from model.tuning_config import Tuning
from pipelines.engine.step import Attempt, Stage
from pipelines.forms import form
from pipelines.stages import training
from pipelines.stages.evaluate import weights

STAGE = Stage("finetune", 2, "pipelines.stages.finetune:run")


def run(attempt: Attempt) -> dict[str, Any]:
    """Train on train.jsonl; outputs export/, probe.safetensors, metrics.jsonl, and adapter/ where one is trained."""
    tokenizer = attempt.inputs["tokenizer"].path("tokenizer")
    settings = attempt.config["train"]
    shape = training.shape(attempt, tokenizer)  # first: a model that cannot learn the task is refused here
    task = form.of(attempt.config.get("form", "classification"))
    job, counts = task.training(attempt, tokenizer, settings)
    validation = None
    if settings.get("early_stopping"):
        source, validation = attempt.inputs["validation"].path("validation.jsonl"), attempt.scratch / "validation.arrow"
        task.encode(source, tokenizer, settings, validation)
    attempt.progress(0, settings["max_steps"], "steps")
    metrics = training.train(
        attempt,
        {"tokenizer": str(tokenizer)}
        | job
        | {
            "model": shape
            | job["model"]
            | dict.fromkeys(("embd_pdrop", "resid_pdrop", "head_pdrop"), settings["dropout"]),
            "data": job["data"] | training.training_pool(settings),
            "train": training.train_config(settings),
            "tuning": {name: settings[name] for name in Tuning.model_fields if name in settings},
            "validation": str(validation) if validation else None,
            "init": str(weights(attempt.inputs["base"])) if settings["init"] == "base" else None,
        },
    )
    return metrics | counts
