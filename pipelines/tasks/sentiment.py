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
import io
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pipelines.tasks.examples import KEEP_ORDER, Labelled, Prepared, divided, identifier, normalised

FORM = "classification"
LABELS = ("rotten", "fresh")
_IGNORED = "plot"  # summaries of the story: they are not opinions
_COLUMNS = ("category", "text", "movie_name")
_SAME_FILM = 3  # sentences of four words and more that two names must share to be one film


def prepare(files: Sequence[Path], validation: float = 0.1, test: float = 0.15) -> Prepared:
    """Read the one csv.bz2 of `files` and split it by film; `validation` and `test` are expected shares of the films.

    ValueError for a file that is not what it should be (naming file and line), and for an empty split.
    """
    source = _only(files)
    rows, plots = read_reviews(source)
    films = _joined_names(rows)
    examples = [_example(row.text, row.label, films.get(row.group, row.group)) for row in rows]
    unique, repeated, contradicting = _without_repeats(examples)
    splits = divided(unique, validation, test)
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
    return Prepared(splits, report, LABELS)


def _only(files: Sequence[Path]) -> Path:
    if len(files) != 1:
        raise ValueError(
            f"task.source means {len(files)} files ({', '.join(path.name for path in files[:3])}, ...); give one csv.bz2"
        )
    return files[0]


def read_reviews(source: Path) -> tuple[list[Labelled], int]:
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


def _example(text: str, label: int, group: str) -> Labelled:
    return Labelled(identifier(text), text, label, group)


def _joined_names(reviews: Iterable[Labelled]) -> dict[str, str]:
    """Maps each name of a film that is listed under several names to the alphabetically first of them."""
    names_of: dict[str, set[str]] = defaultdict(set)
    for review in reviews:
        names_of[normalised(review.text)].add(review.group)
    shared: Counter[tuple[str, ...]] = Counter()
    for words, names in names_of.items():
        if len(names) > 1 and words.count(" ") >= 3:  # short praise ("nice work") is written of many films
            shared.update((first, second) for first in names for second in names if first < second)
    films: dict[str, set[str]] = {}  # each name, with all names of its film
    for (first, second), sentences in shared.items():
        if sentences >= _SAME_FILM:
            film = films.get(first, {first}) | films.get(second, {second})
            films |= dict.fromkeys(film, film)
    return {name: min(film) for name, film in films.items() if name != min(film)}


def _without_repeats(examples: Sequence[Labelled]) -> tuple[list[Labelled], int, int]:
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


def _drop_repeats_across_films(splits: dict[str, list[Labelled]]) -> list[dict[str, str]]:
    """Keep a sentence of several films once, nearest to the test side; returns what was dropped, in place."""
    kept: dict[str, str] = {}
    dropped = []
    for name in KEEP_ORDER:
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


def _refuse_empty(splits: dict[str, list[Labelled]], source: Path) -> None:
    for name, part in splits.items():
        if len({example.label for example in part}) < len(LABELS):
            raise ValueError(
                f"{source}: the {name} split has {len(part)} examples and not every label; change its share or the seed"
            )


def _summary(part: Sequence[Labelled]) -> dict[str, Any]:
    counts = Counter(LABELS[example.label] for example in part)
    return {
        "examples": len(part),
        "films": len({example.group for example in part}),
        **{name: counts[name] for name in LABELS},
    }
