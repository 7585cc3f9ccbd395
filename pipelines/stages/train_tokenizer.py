"""train_tokenizer: the tokenizer's own sources in, a tokenizer directory out; or a pinned directory, verified.

The one idea: a tokenizer depends on what is declared for it and on nothing else, so that new documents in the
corpus never change it. It is a byte-level BPE in GPT-2's form, which `transformers` opens as a GPT2Tokenizer; for
bidirectional models it has [PAD], [CLS], [SEP] and [MASK], and a template that puts [CLS] A [SEP] B [SEP] around texts.

A tokenizer's digest, wherever one is named, is the SHA-256 of its `tokenizer.json`.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from model import durable
from pipelines.engine.step import Attempt, Stage
from pipelines.pieces import unique_files
from pipelines.sources import source_file
from pipelines.stages.fan_out import fan_out
from pipelines.stretches import Stretch, whole

STAGE = Stage("train_tokenizer", 2, "pipelines.stages.train_tokenizer:run")
FOLDER = "tokenizer"


def run(attempt: Attempt) -> dict[str, Any]:
    """Write the directory `tokenizer/`; return its digest and figures."""
    folder = attempt.outputs / FOLDER
    folder.mkdir()
    item: dict[str, Any] = {"folder": str(folder), "config": dict(attempt.config)}
    if "pinned" in attempt.sources:
        task = "pipelines.stages.train_tokenizer_work:copy_pinned"
        item["pinned"] = attempt.sources["pinned"][0]["path"]
    else:
        task = "pipelines.stages.train_tokenizer_work:train"
        item["stretches"] = [asdict(stretch) for stretch in _stretches(attempt)]
    (_, metrics), *_ = fan_out(attempt, task, [item])
    durable.fsync_tree(folder)
    return metrics


def _stretches(attempt: Attempt) -> list[Stretch]:
    """The sources whole, in order of their content; what gives the same texts once."""
    return [whole(file) for file in unique_files(map(source_file, attempt.sources["text"]))]
