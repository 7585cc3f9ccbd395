"""The archive section of a Debian package by its description: natural text, 58 classes of very different sizes.

The one idea: what is held out is the *source package*: its binary packages (foo, foo-dev, foo-doc) share most of their
descriptions, so a split by row would let a model recognise the software instead of reading what it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pipelines.tasks.examples import (
    SPLITS,
    Labelled,
    Prepared,
    divided,
    identifier,
    normalised,
    summary,
    without_repeats,
)  # fmt: skip
from pipelines.tasks.user_data import records

FORM = "classification"


def prepare(files: Sequence[Path], validation: float = 0.1, test: float = 0.1, minimum: int = 10) -> Prepared:
    """The descriptions of `files` (JSON lines with text, section and source). ValueError names the line of a bad one.

    Sections with fewer than `minimum` training examples are left out and counted: nothing can be learned of them.
    """
    rows = []
    for record in records(files):
        text = record.text("text", "text_column")
        rows.append((text, record.text("section", "label_column"), record.text("source", "group_column")))
    names = sorted({section for _, section, _ in rows})
    examples = [Labelled(identifier(text), text, names.index(section), source) for text, section, source in rows]
    splits, report = without_repeats(divided(examples, validation, test), lambda example: normalised(example.text), lambda example: example.label)  # fmt: skip
    counts = Counter(names[example.label] for example in splits["train"])
    labels = tuple(name for name in names if counts[name] >= minimum)
    if len(labels) < 2:
        raise ValueError(f"{files[0]}: {len(labels)} sections have {minimum} training examples; give more data")
    kept = {
        name: [
            Labelled(example.id, example.text, labels.index(names[example.label]), example.group)
            for example in part
            if names[example.label] in labels
        ]
        for name, part in splits.items()
    }
    report["dropped"]["of_small_sections"] = sum(map(len, splits.values())) - sum(map(len, kept.values()))
    report |= {"rows": len(rows), "small_sections": sorted({*names} - {*labels})}
    report |= {"splits": {name: summary(kept[name], labels) for name in SPLITS}}
    return Prepared(kept, report, labels)
