"""Your own texts with a class each: JSONL, CSV, Parquet or a Hugging Face dataset, by the names of their columns.

The one idea: the classes are those of the training data, in alphabetical order. What no training can mend (a missing
column, an empty text, one class only, a class in the test split that training never shows) is an error; what it can
(repeated texts, texts on two sides) is dropped and counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.tasks.examples import SPLITS, Labelled, Prepared, identifier, normalised, summary, without_repeats
from pipelines.tasks.user_data import Record, records
from pipelines.tasks.user_splits import placed

LANGUAGE = ""  # who gives the data knows
FORM = "classification"


def prepare(
    files: Sequence[Path],
    validation: float,
    test: float,
    text_column: str = "text",
    label_column: str = "label",
    group_column: str = "",
    validation_files: Sequence[Path] = (),
    test_files: Sequence[Path] = (),
) -> Prepared:
    """Texts and classes of `files`, split by the group column (by the text, without one).

    ValueError names file, line and field of what cannot be used.
    """

    def read(record: Record) -> tuple[Labelled, str]:
        text, label = record.text(text_column, "text_column"), record.name(label_column, "label_column")
        group = record.name(group_column, "group_column") if group_column else normalised(text)
        return Labelled(identifier(text), text, 0, group), label

    own = {"train": files, "validation": validation_files, "test": test_files}
    splits = placed(
        own,
        lambda part: [(record.place, *read(record)) for record in records(part)],
        lambda row: row[1].group,
        validation,
        test,
    )
    if not splits["train"]:
        advice = _advice("train", own, {name: [example for _, example, _ in part] for name, part in splits.items()})
        raise ValueError(f"{files[0]}: the train split has no example; {advice}")
    labels = _labels(splits["train"], files)
    for name in ("validation", "test"):
        _refuse_unknown(name, splits[name], labels, label_column)
    numbered = {
        name: [Labelled(example.id, example.text, labels.index(label), example.group) for _, example, label in part]
        for name, part in splits.items()
    }
    unique, report = without_repeats(numbered, lambda example: normalised(example.text), lambda example: example.label)
    _refuse_one_sided(unique, labels, own)
    report |= {
        "rows": sum(map(len, splits.values())),
        "splits": {name: summary(unique[name], labels) for name in SPLITS},
        "labels_not_in": {
            name: sorted({*labels} - {labels[example.label] for example in unique[name]}) for name in SPLITS
        },
    }
    return Prepared(unique, report, labels)


def _labels(train: Sequence[Any], files: Sequence[Path]) -> tuple[str, ...]:
    labels = tuple(sorted({label for _, _, label in train}))
    if len(labels) < 2:
        raise ValueError(
            f"{files[0]}: all {len(train)} training examples are of one class ({', '.join(labels) or 'none'}); a classifier "
            "needs two and more: is task.label_column the right one?"
        )
    return labels


def _refuse_unknown(split: str, rows: Sequence[Any], labels: Sequence[str], column: str) -> None:
    for place, _, label in rows:
        if label not in labels:
            shown = ", ".join(map(repr, labels[:10])) + (", ..." if len(labels) > 10 else "")
            raise ValueError(
                f"{place}: {column} is {label!r} in the {split} split, and no training example has that class (they have "
                f"{shown}); add some to the training data, merge the class, or drop the record"
            )


def _refuse_one_sided(
    splits: Mapping[str, Sequence[Labelled]], labels: Sequence[str], files: Mapping[str, Sequence[Path]]
) -> None:
    """Splits that are too small to train on or to measure with, after what was repeated is gone."""
    for name, part in splits.items():
        seen = {example.label for example in part}
        if not part or (name == "train" and len(seen) < len(labels)) or len(seen) < 2:
            missing = [label for number, label in enumerate(labels) if number not in seen]
            shown = ", ".join(map(repr, missing[:10])) + (", ..." if len(missing) > 10 else "")
            raise ValueError(
                f"{(files[name] or files['train'])[0]}: the {name} split has {len(part)} examples of {len(seen)} of the "
                f"{len(labels)} classes, repeated ones dropped, and none of {shown}; {_advice(name, files, splits)}"
            )


def _advice(split: str, files: Mapping[str, Sequence[Path]], splits: Mapping[str, Sequence[Labelled]]) -> str:
    """What helps a split that is too small: more data do not where they are all of one group."""
    divided = [name for name in SPLITS if name == "train" or not files[name]]
    groups = len({example.group for name in divided for example in splits[name]})
    if split not in divided or len(divided) == 1:
        return "add some to the files of this split"
    if groups < len(divided):
        return (
            f"{groups} {'group is' if groups == 1 else 'groups are'} there for the {len(divided)} splits {', '.join(divided)}, and none is divided: let task.group_column "
            "name what has more values, or give the splits files of their own (task.validation_source, task.test_source)"
        )
    return (
        f"{groups} groups are divided among {', '.join(divided)}, each whole; give more data, other shares "
        "(task.validation_fraction, task.test_fraction), or the splits files of their own (task.validation_source, task.test_source)"
    )
