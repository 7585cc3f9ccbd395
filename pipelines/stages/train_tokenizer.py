"""train_tokenizer: the tokenizer's own sources in, a tokenizer directory out; or a pinned directory, verified.

The one idea: a tokenizer depends on what is declared for it and on nothing else, so that new documents in the
corpus never change it. It is a byte-level BPE in GPT-2's form, which `transformers` opens as a GPT2Tokenizer; for
bidirectional models it has [PAD], [CLS], [SEP] and [MASK], and a template that puts [CLS] A [SEP] B [SEP] around texts.

A tokenizer's digest, wherever one is named, is the SHA-256 of its `tokenizer.json`. Which token ends documents may be said
beside it: of a pinned directory that is looked at again each time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from model import durable
from pipelines.engine.record import Record
from pipelines.engine.step import Attempt, Stage
from pipelines.pieces import unique_files
from pipelines.sources import source_file
from pipelines.stages.fan_out import fan_out
from pipelines.stretches import Stretch, whole
from pipelines.tokenizer_files import ending

STAGE = Stage(
    "train_tokenizer", 2, "pipelines.stages.train_tokenizer:run", check="pipelines.stages.train_tokenizer:check"
)
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


def check(record: Record, execution: Mapping[str, Any]) -> str | None:
    """Why the copy of a pinned directory no longer holds: the same tokenizer ends documents with another token now.

    A copy whose directory is gone or holds another tokenizer by now stays: nothing better could be made.
    """
    for pinned in record.sources.get("pinned", ()):
        source = Path(pinned["path"])
        try:
            (written,) = (file.path for file in record.outputs if file.path.endswith(f"/{FOLDER}/tokenizer.json"))
            copy = Path(execution["work"], written).parent
            now, then = (ending(folder, True) for folder in (source, copy))
            if now != then and durable.sha256(source / "tokenizer.json") == pinned["sha256"]:
                return f"{source} ends documents with {now} now, with {then} when it was copied"
        except (OSError, ValueError):
            continue
    return None


def _stretches(attempt: Attempt) -> list[Stretch]:
    """The sources whole, in order of their content; what gives the same texts once."""
    return [whole(file) for file in unique_files(map(source_file, attempt.sources["text"]))]
