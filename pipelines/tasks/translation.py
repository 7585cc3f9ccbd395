"""Translation: English lines in, the same in another language out, from descriptions of Debian packages.

The one idea: what is held out is the *source package*. Its binary packages are described with the same sentences, so a
split by line would let a model remember a translation instead of making one. A line that stands in several packages is
kept once, nearest to the test side; its other translations count as right (prompts.py says when two lines are the same).

Data: JSON lines of a `debian_*` sample, {"source", "text", <language>}: descriptions, whose lines (the first one, paragraphs,
items of lists) are aligned where both have as many.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipelines.tasks.examples import (
    SPLITS,
    Prepared,
    Response,
    divided,
    identifier,
    refuse_empty,
    summary,
)
from pipelines.tasks.prompts import on_one_side, once, prompt_words, with_references
from pipelines.tasks.user_data import records

FORM = "response"
LANGUAGE = "it"  # unless `language` is another
VERSION = 2  # the first took lines that differ in signs only (GNU C compiler, GNU C++ compiler) for one
METRICS = {"bleu": ("copy", "dictionary", "retrieval"), "chrf": ("copy", "dictionary", "retrieval")}


def prepare(
    files: Sequence[Path],
    validation: float,
    test: float,
    language: str = "it",
    longest_words: int = 12,
) -> Prepared:
    """Pairs of lines of at most `longest_words` words a side, split by source package. A line that its translation leaves
    as it is (a name, a number) teaches nothing and is dropped.

    ValueError names file, line and field of what cannot be used.
    """
    found = list[Response]()
    counts = {"untranslated": 0, "not_aligned": 0, "empty": 0, "longer": 0, "not_changed": 0}
    for record in records(files):
        if language not in record.fields:
            counts["untranslated"] += 1
            continue
        group = record.text("source", "source")
        ours, theirs = (record.text(name, "options.language").split("\n") for name in ("text", language))
        if len(ours) != len(theirs):
            counts["not_aligned"] += 1
            continue
        for pair in zip(ours, theirs, strict=True):
            english, other = (line.strip() for line in pair)
            if not english or not other:
                counts["empty"] += 1
            elif max(len(english.split()), len(other.split())) > longest_words:
                counts["longer"] += 1
            elif english == other:
                counts["not_changed"] += 1
            else:
                found.append(_pair(english, other, group))
    if not found:
        raise ValueError(f"{files[0]}: no record has a description in {language!r}; choose task.options.language")
    # References first: another side's translation of a line is right too.
    sides = on_one_side(with_references(divided(found, validation, test)), prompt_words)
    splits = {name: once(part) for name, part in sides.items()}
    refuse_empty(splits, files)
    report = {
        "rows": len(found),
        "dropped": counts | {"repeated_prompts": len(found) - sum(map(len, splits.values()))},
        "splits": {name: summary(splits[name]) for name in SPLITS},
    }
    return Prepared(splits, report)


def _pair(english: str, other: str, group: str) -> Response:
    return Response(identifier(english, other), english, other, [other], group)
