"""prepare_task: a task's data in, examples in the task's form (split by group) out.

The one idea: examples are text, made before any tokenizer exists, so that the corpus can be cleaned of the
held-out ones before anything is trained on it.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from model import durable
from pipelines.engine.step import Attempt, Stage
from pipelines.sources import DATASET, SourceError, known_format, source_file
from pipelines.stretches import changed
from pipelines.tasks import examples, task

STAGE = Stage("prepare_task", 1, "pipelines.stages.prepare_task:run")
_SPLIT = "labelled_"  # before the name of a split that has sources of its own
_COLUMNS = ("text_column", "label_column", "group_column", "prompt_column", "response_column", "messages_column")


def run(attempt: Attempt) -> dict[str, Any]:
    """Write train.jsonl, validation.jsonl, test.jsonl, report.json, a classification's labels.json, and benchmark.jsonl where
    the recipe has one; return the counts."""
    config = attempt.config
    drafts: dict[Path, str] = {}
    files = {group: _drafts(attempt, group, drafts) for group in sorted(attempt.sources)}
    given = {name: config[f"{name}_fraction"] for name in ("validation", "test")}
    given |= {name: config[name] for name in _COLUMNS if config.get(name)} | config.get("options", {})
    given |= {f"{group.removeprefix(_SPLIT)}_files": files[group] for group in files if group.startswith(_SPLIT)}
    try:
        prepared = task.of(config["name"]).prepare(files["labelled"], **given)
        if config["max_examples"]:
            prepared = examples.cut(prepared, config["max_examples"])
    except ValueError as error:  # the task names file and line of what it cannot read
        raise SourceError(_as_given(str(error), drafts)) from error
    examples.write(prepared, attempt.outputs)
    counts = {f"{name}_examples": len(part) for name, part in prepared.splits.items()}
    return counts | ({"benchmark_examples": len(prepared.benchmark)} if prepared.benchmark else {})


def _drafts(attempt: Attempt, group: str, drafts: dict[Path, str]) -> list[Path]:
    """The files of a group of sources, copied and then hashed: what is read is what was planned. SourceError otherwise.

    A file whose format was given gets the ending that says it; a Hugging Face dataset becomes JSON lines.
    """
    found = []
    for number, file in enumerate(attempt.sources[group]):
        draft = attempt.scratch / group / str(number) / _name(file)
        draft.parent.mkdir(parents=True, exist_ok=True)
        drafts[draft] = file["path"]
        if file["format"] == DATASET:
            from pipelines.tasks.user_datasets import write_dataset

            write_dataset(source_file(file), draft)
        else:
            shutil.copyfile(file["path"], draft)
            if durable.sha256(draft) != file["sha256"]:
                raise changed(file["path"])
        found.append(draft)
    return found


def _name(file: dict[str, Any]) -> str:
    path = Path(file["path"])
    if file["format"] == DATASET:
        return f"{path.name}.jsonl"
    return path.name if known_format(path) == file["format"] else f"{path.name}.{file['format']}"


def _as_given(message: str, drafts: dict[Path, str]) -> str:
    """A message about copies as one about the files that were given."""
    for draft, path in drafts.items():
        message = message.replace(str(draft), path)
    return message
