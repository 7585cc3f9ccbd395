"""Your own prompts with a response each: JSONL, CSV, Parquet or a Hugging Face dataset, by the names of their columns.

The one idea: records with the same prompt are one example each for training, and all their responses count as right
answers; a prompt is never on two sides (prompts.py says when two prompts are the same one).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipelines.tasks.examples import (
    SPLITS,
    Prepared,
    Response,
    identifier,
    normalised,
    refuse_empty,
    summary,
    without_repeats,
)
from pipelines.tasks.prompts import folded, on_one_side, once, prompt_words, with_references
from pipelines.tasks.user_data import records
from pipelines.tasks.user_splits import placed

LANGUAGE = ""  # who gives the data knows
FORM = "response"
VERSION = 3  # the second took what another side says to a prompt for wrong, the first C, C++ and C# for one prompt


def prepare(
    files: Sequence[Path],
    validation: float,
    test: float,
    prompt_column: str = "prompt",
    response_column: str = "response",
    group_column: str = "",
    validation_files: Sequence[Path] = (),
    test_files: Sequence[Path] = (),
) -> Prepared:
    """Prompts and responses of `files`, split by the group column (by the prompt, without one).

    ValueError names file, line and field of what cannot be used.
    """

    def read(part: Sequence[Path]) -> list[Response]:
        found = []
        for record in records(part):
            prompt = record.text(prompt_column, "prompt_column")
            response = record.text(response_column, "response_column")
            group = record.name(group_column, "group_column") if group_column else normalised(prompt)
            found.append(Response(identifier(prompt, response), prompt, response, [response], group))
        return found

    own = {"train": files, "validation": validation_files, "test": test_files}
    splits = placed(own, read, lambda example: str(example.group), validation, test)
    # Repeats are found by their signs too; of words on two sides `on_one_side` leaves one.
    every, report = without_repeats(splits, lambda example: f"{folded(example.prompt)}\n{folded(example.response)}")
    # References first: what another file or group says to a prompt is right too.
    sides = on_one_side(with_references(every), prompt_words)
    unique = sides | {name: once(sides[name]) for name in ("validation", "test")}  # held out, a prompt is asked once
    refuse_empty(unique, files)
    several, one_side, left = (sum(map(len, parts.values())) for parts in (every, sides, unique))
    report["dropped"] |= {"prompts_across_splits": several - one_side, "merged_as_references": one_side - left}
    report |= {"rows": sum(map(len, splits.values())), "splits": {name: summary(unique[name]) for name in SPLITS}}
    return Prepared(unique, report)
