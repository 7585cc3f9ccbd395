"""finetune: labelled examples and a base model in, a task's model out.

The one idea: examples are tokenised here with the base model's own tokenizer, where texts longer than the window
are cut and counted; the loop is the one that pre-trained the base.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from model import durable
from pipelines.engine.step import Attempt, Stage
from pipelines.stages import training

STAGE = Stage("finetune", 1, "pipelines.stages.finetune:run")


def run(attempt: Attempt) -> dict[str, Any]:
    """Train on train.jsonl; outputs export/, probe.safetensors, metrics.jsonl."""
    tokenizer = attempt.inputs["tokenizer"].path("tokenizer")
    train = dict(attempt.config["train"])
    init, dropout = train.pop("init"), train.pop("dropout")
    labels = durable.read_json(attempt.inputs["labels"].path("labels.json"))
    examples = attempt.scratch / "examples.arrow"
    counts = encode(attempt.inputs["examples"].path("train.jsonl"), tokenizer, train["sequence_length"], examples)
    attempt.progress(0, train["max_steps"], "steps")
    metrics = training.train(
        attempt,
        {
            "model": attempt.config["model"]
            | training.vocabulary(tokenizer)
            | {"num_labels": len(labels), "labels": labels}
            | dict.fromkeys(("embd_pdrop", "resid_pdrop", "head_pdrop"), dropout),
            "objective": "classification",
            "train": train,
            "data": {"examples": str(examples)},
            "tokenizer": str(tokenizer),
            "init": str(attempt.inputs["base"].path("export")) if init == "base" else None,
        },
    )
    return metrics | counts


def encode(source: Path, tokenizer: Path, window: int, target: Path) -> dict[str, int]:
    """Tokenise the examples of `source` (JSONL) into `target`; returns how many there are and how many were cut.

    Reserved tokens that stand in a text stay text: a stranger's sentence cannot end itself.
    """
    from tokenizers import Tokenizer

    from model.examples import write_examples
    from pipelines.tasks.sentiment import read_examples

    examples = read_examples(source)
    encoder = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    encoder.encode_special_tokens = True
    facts = training.vocabulary(tokenizer)
    rows = [
        encoding.ids
        for encoding in encoder.encode_batch([example.text for example in examples], add_special_tokens=False)
    ]
    write_examples(
        target,
        [row[:window] for row in rows],
        [example.id for example in examples],
        tokenizer=durable.sha256(tokenizer / "tokenizer.json"),
        vocab_size=facts["vocab_size"],
        eot=facts["eot_token_id"],
        labels=[example.label for example in examples],
    )
    return {"examples": len(rows), "examples_cut": sum(len(row) > window for row in rows)}
