"""pretrain: token shards in, a base model out, as a Hugging Face directory that reproduces the live model.

The one idea: all that is learned here comes from the token shards' digests and the recipe; see `model/train.py`.
"""

from __future__ import annotations

from typing import Any

from pipelines.engine.step import Attempt, Stage
from pipelines.stages import training

STAGE = Stage("pretrain", 1, "pipelines.stages.pretrain:run")


def run(attempt: Attempt) -> dict[str, Any]:
    """Train on the training shards, from the weights of `base` if that is an input; outputs export/, probe.safetensors, metrics.jsonl."""
    base = attempt.inputs.get("base")
    tokenizer = attempt.inputs["tokenizer"].path("tokenizer")
    settings = attempt.config["train"]
    objective = settings["objective"]
    return training.train(
        attempt,
        {
            "model": training.shape(attempt, tokenizer) | _head(objective),
            "objective": objective,
            "objective_options": training.objective_options(settings),
            "train": training.train_config(settings),
            "data": {"manifest": str(attempt.inputs["tokens"].path("train.json")), "root": str(attempt.root)},
            "tokenizer": str(tokenizer),
            "init": str(base.path("export")) if base else None,
        },
    )


def _head(objective: str) -> dict[str, str]:
    """What stands on a bidirectional model for its objective; a causal one has but one head to choose."""
    heads = {"masked_lm": "masked_lm", "next_sentence": "pretraining", "masked_lm_next_sentence": "pretraining"}
    return {"head": heads[objective]} if objective in heads else {}
