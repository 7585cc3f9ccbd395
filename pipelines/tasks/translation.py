"""Translation: English lines in, the same in another language out, from descriptions of Debian packages.

The one idea: what is held out is the *source package*. Its binary packages are described with the same sentences, so a
split by line would let a model remember a translation instead of making one. A line that stands in several packages is
kept once, nearest to the test side; its other translations count as right.

Data: JSON lines of a `debian_*` sample, {"source", "en", <language>}: first lines and paragraphs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from pipelines.tasks.examples import (
    KEEP_ORDER,
    SPLITS,
    Prepared,
    Response,
    divided,
    identifier,
    normalised,
    summary,
)
from pipelines.tasks.user_data import records

FORM = "response"


def prepare(
    files: Sequence[Path],
    validation: float,
    test: float,
    language: str = "it",
    longest_words: int = 12,
) -> Prepared:
    """Pairs of lines of at most `longest_words` words a side, split by source package.

    ValueError names file, line and field of what cannot be used.
    """
    found, long = [], 0
    for record in records(files):
        english, other = record.text("en", "source"), record.text(language, "options.language")
        if max(len(english.split()), len(other.split())) > longest_words or english == other:
            long += 1
        else:
            group = record.text("source", "source")
            found.append(Response(identifier(english, other), english, other, [other], group))
    splits, repeated = _prompts_once(divided(found, validation, test))
    for name, part in splits.items():
        if not part:
            raise ValueError(f"{files[0]}: the {name} split is empty; give more data or another task.{name}_fraction")
    report = {
        "rows": len(found) + long,
        "dropped": {"longer_or_untranslated": long, "repeated_prompts": repeated},
        "splits": {name: summary(splits[name]) for name in SPLITS},
    }
    return Prepared(splits, report)


def _prompts_once(splits: dict[str, list[Response]]) -> tuple[dict[str, list[Response]], int]:
    """Each prompt once, nearest to the test side, with all its responses as references; and how many were dropped."""
    references: dict[str, set[str]] = defaultdict(set)
    for part in splits.values():
        for one in part:
            references[normalised(one.prompt)].add(one.response)
    kept: dict[str, Response] = {}
    unique: dict[str, list[Response]] = {name: [] for name in SPLITS}
    for name in KEEP_ORDER:
        for one in splits[name]:
            key = normalised(one.prompt)
            if key not in kept:
                kept[key] = Response(one.id, one.prompt, one.response, sorted(references[key]), one.group)
                unique[name].append(kept[key])
    return unique, sum(map(len, splits.values())) - len(kept)
