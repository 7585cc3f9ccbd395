"""Your own prompts with a response each: JSONL, CSV, Parquet or a Hugging Face dataset, by the names of their columns.

The one idea: records with the same prompt are one example each for training, and all their responses count as right
answers; a prompt is never on two sides.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from pipelines.tasks.examples import SPLITS, Prepared, Response, identifier, normalised, summary, without_repeats
from pipelines.tasks.user_data import records
from pipelines.tasks.user_splits import placed

LANGUAGE = ""  # who gives the data knows
FORM = "response"


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
    unique, report = without_repeats(
        splits, lambda example: f"{normalised(example.prompt)}\n{normalised(example.response)}"
    )
    unique, lost, merged = _prompts_on_one_side(unique)
    for name, part in unique.items():
        if not part:
            raise ValueError(
                f"{files[0]}: the {name} split is empty; give more data or other shares (task.validation_fraction, task.test_fraction)"
            )
    report["dropped"] |= {"prompts_across_splits": lost, "merged_as_references": merged}
    report |= {"rows": sum(map(len, splits.values())), "splits": {name: summary(unique[name]) for name in SPLITS}}
    return Prepared(unique, report)


def _prompts_on_one_side(splits: dict[str, list[Response]]) -> tuple[dict[str, list[Response]], int, int]:
    """Each prompt on one side only, nearest to the test side, with all responses of that side as its references.

    And how many examples were lost to another side, and how many are references only, of a prompt that is asked once.
    """
    references: dict[str, list[str]] = defaultdict(list)
    side: dict[str, str] = {}
    for name in ("test", "validation", "train"):
        for example in splits[name]:
            key = normalised(example.prompt)
            if side.setdefault(key, name) == name:
                references[key].append(example.response)
    kept = {
        name: [
            Response(example.id, example.prompt, example.response, sorted({*references[key]}), example.group)
            for example in splits[name]
            if side[key := normalised(example.prompt)] == name
        ]
        for name in SPLITS
    }
    on_one_side = sum(map(len, kept.values()))
    # Held out, a prompt is asked once.
    for name in ("validation", "test"):
        kept[name] = list({normalised(example.prompt): example for example in reversed(kept[name])}.values())[::-1]
    return kept, sum(map(len, splits.values())) - on_one_side, on_one_side - sum(map(len, kept.values()))
