"""Sentiment of Chinese reviews (books, hotels, computers): two files of lines, one a class.

The one idea: a review is known by its words alone, for the data do not say of what it is written; so equal reviews are
found and dropped, and a review's side is a hash of it.
"""

from __future__ import annotations

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

FORM = "classification"
LANGUAGE = "zh"
LABELS = ("negative", "positive")
_FILES = {"neg.txt": 0, "pos.txt": 1}


def prepare(files: Sequence[Path], validation: float = 0.1, test: float = 0.1) -> Prepared:
    """The reviews of neg.txt and pos.txt. ValueError if `files` are others, or hold bytes that are no UTF-8."""
    if sorted(path.name for path in files) != sorted(_FILES):
        raise ValueError(
            f"task sentiment_chinese reads {' and '.join(_FILES)}, not {', '.join(sorted(path.name for path in files))}; "
            "give source.sample='chinese_reviews', or the task `labelled` for data of your own"
        )
    reviews = [example for path in sorted(files) for example in _read(path)]
    splits, report = without_repeats(
        divided(reviews, validation, test), lambda example: normalised(example.text), lambda example: example.label
    )
    report |= {"rows": len(reviews), "splits": {name: summary(splits[name], LABELS) for name in SPLITS}}
    return Prepared(splits, report, LABELS)


def _read(path: Path) -> list[Labelled]:
    found = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        try:
            text = line.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}:{number}: byte {error.start + 1} of the line is not valid UTF-8") from error
        if text:
            found.append(Labelled(identifier(text), text, _FILES[path.name], normalised(text)))
    return found
