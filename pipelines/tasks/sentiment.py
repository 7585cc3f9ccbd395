"""Sentiment of film reviews: Rotten Tomatoes sentences in, labelled examples out, no film on both sides.

The one idea: what is held out is the *film*, not the sentence. Reviews of one film name the same actors and the
same plot, so a split by row would let a model recognise the film instead of reading the sentence. A film's side
is a hash of its name, therefore a new film changes the side of no other.

Two leaks that a split by name leaves open are closed and reported: a film listed under two names (its sentences
are the same, so the names are joined), and a sentence written of two films (kept on one side only).
"""

from __future__ import annotations

import bz2
import csv
import hashlib
import io
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from model import durable

LABELS = ("rotten", "fresh")
SPLITS = ("train", "validation", "test")
_IGNORED = "plot"  # summaries of the story: they are not opinions
_COLUMNS = ("category", "text", "movie_name")
_SAME_FILM = 3  # sentences of four words and more that two names must share to be one film
_KEEP_ORDER = ("test", "validation", "train")  # of equal sentences, the one furthest from training is kept


@dataclass(frozen=True)
class Example:
    """One labelled text. `label` indexes LABELS; `group` is the film, which is what a split never divides."""

    id: str
    text: str
    label: int
    group: str


@dataclass(frozen=True)
class Prepared:
    """The examples by split, and the account of what was dropped on the way."""

    splits: dict[str, list[Example]]
    report: dict[str, Any]


def prepare(source: Path, validation: float = 0.1, test: float = 0.15, seed: int = 0) -> Prepared:
    """Read `source` (csv.bz2) and split it by film; `validation` and `test` are expected shares of the films.

    ValueError for a file that is not what it should be (naming file and line), and for an empty split.
    """
    rows, plots = read_reviews(source)
    films = _joined_names(rows)
    examples = [_example(row.text, row.label, films.get(row.group, row.group)) for row in rows]
    unique, repeated, contradicting = _without_repeats(examples)
    splits: dict[str, list[Example]] = {name: [] for name in SPLITS}
    for example in unique:
        splits[split_of(example.group, validation, test, seed)].append(example)
    across = _drop_repeats_across_films(splits)
    _refuse_empty(splits, source)
    report = {
        "rows": len(rows),
        "dropped": {
            "plot": plots,
            "repeated_within_film": repeated,
            "contradicting_labels": contradicting,
            "repeated_across_films": len(across),
            "repeated_across_splits": sum(drop["split"] != drop["kept_in"] for drop in across),
        },
        "repeated_across_films": across,
        "names_of_one_film": {name: film for name, film in sorted(films.items()) if name != film},
        "splits": {name: _summary(part) for name, part in splits.items()},
    }
    return Prepared(splits, report)


def write(prepared: Prepared, outputs: Path) -> None:
    """Write train.jsonl, validation.jsonl, test.jsonl, labels.json and report.json into the folder `outputs`."""
    for name in SPLITS:
        lines = [json.dumps(asdict(example), sort_keys=True, ensure_ascii=False) for example in prepared.splits[name]]
        durable.write_bytes(outputs / f"{name}.jsonl", "".join(line + "\n" for line in lines).encode())
    durable.write_json(outputs / "labels.json", list(LABELS))
    durable.write_json(outputs / "report.json", prepared.report)


def read_examples(path: Path) -> list[Example]:
    """Read a JSONL file of examples. ValueError names file and line of what is not one."""
    examples = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            examples.append(Example(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{path}:{number}: not an example ({error}); rerun prepare_task to write it anew"
            ) from error
    return examples


def split_of(group: str, validation: float, test: float, seed: int) -> str:
    """The split a film belongs to: a hash of its name as a number in [0, 1), cut at the two shares."""
    if not (validation > 0 and test > 0 and validation + test < 1):
        raise ValueError(f"validation={validation} and test={test} must be above 0 and leave room for training below 1")
    place = int.from_bytes(hashlib.sha256(f"{seed}:{group}".encode()).digest()[:8], "big") / 2**64
    if place < test:
        return "test"
    return "validation" if place < test + validation else "train"


def read_reviews(source: Path) -> tuple[list[Example], int]:
    """The labelled sentences of `source` in its own order, and how many plot summaries were passed over."""
    reviews, plots = [], 0
    for line, row in _rows(source):
        if row["category"] == _IGNORED:
            plots += 1
        elif row["category"] not in LABELS:
            raise ValueError(f"{source}:{line}: category is {row['category']!r}; expected one of {(*LABELS, _IGNORED)}")
        else:
            text = " ".join(row["text"].split())  # the file wraps some sentences over lines
            reviews.append(_example(text, LABELS.index(row["category"]), row["movie_name"]))
    return reviews, plots


def _rows(source: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and columns of each row. The file is 2.5 MB unpacked, so it is read whole."""
    try:
        text = bz2.decompress(source.read_bytes()).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{source}: not UTF-8 at byte {error.start} of the unpacked file") from error
    except (OSError, ValueError) as error:
        raise ValueError(f"{source}: not a whole bz2 file ({error}); delete it to fetch it again") from error
    reader = csv.DictReader(io.StringIO(text, newline=""))
    missing = [name for name in _COLUMNS if name not in (reader.fieldnames or [])]
    if missing:
        raise ValueError(f"{source}:1: no column {missing[0]!r}; it has {reader.fieldnames}")
    for row in reader:
        # a summary may be empty (four are): it is dropped anyway
        if not all(row[name] for name in _COLUMNS if name != "text" or row["category"] != _IGNORED):
            raise ValueError(f"{source}:{reader.line_num}: an empty column among {_COLUMNS}: {row}")
        yield reader.line_num, {name: row[name] for name in _COLUMNS}


def _example(text: str, label: int, group: str) -> Example:
    """The id is that of a document with the same text, so that a leak can be found by id as well."""
    return Example(hashlib.sha256(text.encode()).hexdigest()[:32], text, label, group)


def normalised(text: str) -> str:
    """What two sentences must share to be the same one: their words, without case, spacing and punctuation."""
    return " ".join(re.findall(r"\w+", text.lower()))


def _joined_names(reviews: Iterable[Example]) -> dict[str, str]:
    """Maps each name of a film that is listed under several names to the alphabetically first of them."""
    names_of: dict[str, set[str]] = defaultdict(set)
    for review in reviews:
        names_of[normalised(review.text)].add(review.group)
    shared: Counter[tuple[str, ...]] = Counter()
    for words, names in names_of.items():
        if len(names) > 1 and words.count(" ") >= 3:  # short praise ("nice work") is written of many films
            shared.update((first, second) for first in names for second in names if first < second)
    joined: dict[str, str] = {}
    for (first, second), sentences in sorted(shared.items()):
        if sentences >= _SAME_FILM:
            joined[second] = joined.get(first, first)
    return joined


def _without_repeats(examples: Sequence[Example]) -> tuple[list[Example], int, int]:
    """First of each sentence within a film; sentences that bear both labels go altogether. Counts of both."""
    labels: dict[str, set[int]] = defaultdict(set)
    for example in examples:
        labels[normalised(example.text)].add(example.label)
    seen: set[tuple[str, str]] = set()
    unique, repeated, contradicting = [], 0, 0
    for example in examples:
        words = normalised(example.text)
        if len(labels[words]) > 1:
            contradicting += 1
        elif (example.group, words) in seen:
            repeated += 1
        else:
            seen.add((example.group, words))
            unique.append(example)
    return unique, repeated, contradicting


def _drop_repeats_across_films(splits: dict[str, list[Example]]) -> list[dict[str, str]]:
    """Keep a sentence of several films once, nearest to the test side; returns what was dropped, in place."""
    kept: dict[str, str] = {}
    dropped = []
    for name in _KEEP_ORDER:
        fresh = []
        for example in splits[name]:
            words = normalised(example.text)
            if words in kept:
                dropped.append({"split": name, "kept_in": kept[words], "group": example.group, "text": example.text})
            else:
                kept[words] = name
                fresh.append(example)
        splits[name] = fresh
    return dropped


def _refuse_empty(splits: dict[str, list[Example]], source: Path) -> None:
    for name, part in splits.items():
        if len({example.label for example in part}) < len(LABELS):
            raise ValueError(
                f"{source}: the {name} split has {len(part)} examples and not every label; change its share or the seed"
            )


def _summary(part: Sequence[Example]) -> dict[str, Any]:
    counts = Counter(LABELS[example.label] for example in part)
    return {
        "examples": len(part),
        "films": len({example.group for example in part}),
        **{name: counts[name] for name in LABELS},
    }
