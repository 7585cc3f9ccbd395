"""Topics of newsgroup posts: the 20 Newsgroups in their official split by date, so that figures can be compared.

The one idea: the test split is the published one, whole but for posts that stand in it twice or under two topics; what stands
on both sides is dropped from training.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from pipelines.task_config import USUAL_FRACTION
from pipelines.tasks.examples import (
    SPLITS,
    Labelled,
    Prepared,
    identifier,
    normalised,
    split_of,
    summary,
    without_repeats,
)  # fmt: skip

FORM = "classification"
_HEADER = ("Category\tText", "d\tstring", "class\t")  # an Orange .tab file opens with three rows


def prepare(files: Sequence[Path], validation: float = 0.1, test: float = USUAL_FRACTION) -> Prepared:
    """The posts of 20newsgroups-train.tab and 20newsgroups-test.tab; the test split is the official one, whatever its share.

    ValueError names file and line of what is no post, or asks not to give `test`.
    """
    if test != USUAL_FRACTION:
        raise ValueError(
            f"task.test_fraction={test} splits nothing off: the test split of topics is the official one; leave it out"
        )
    named = {path.stem.rpartition("-")[2]: path for path in files}
    if sorted(named) != ["test", "train"]:
        raise ValueError(
            f"task topics reads two .tab files that end in -train and -test, not {', '.join(path.name for path in files)}; "
            "give source.sample='newsgroups', or the task `labelled` for data of your own"
        )
    rows = {name: list(_read(path)) for name, path in named.items()}
    labels = tuple(sorted({label for _, label in rows["train"]}))
    unknown = sorted({label for _, label in rows["test"]} - set(labels))
    if unknown:
        raise ValueError(f"{named['test']}: the class {unknown[0]!r} is in no training post")
    splits: dict[str, list[Labelled]] = {name: [] for name in SPLITS}
    for name, part in rows.items():
        for text, label in part:
            example = Labelled(identifier(text), text, labels.index(label), normalised(text))
            splits[name if name == "test" else split_of(example.group, validation, 0)].append(example)
    unique, report = without_repeats(splits, lambda example: example.group, lambda example: example.label)
    report |= {"rows": sum(map(len, rows.values())), "splits": {name: summary(unique[name], labels) for name in SPLITS}}
    return Prepared(unique, report, labels)


def _read(path: Path) -> Iterator[tuple[str, str]]:
    """Text and class of each post."""
    lines = path.read_text("utf-8").split("\n")
    if tuple(lines[:3]) != _HEADER:
        raise ValueError(f"{path}:1: the three header rows are {lines[:3]}, expected {list(_HEADER)}")
    for number, line in enumerate(lines[3:], start=4):
        label, _, text = line.partition("\t")
        if line and not (label and text.strip()):
            raise ValueError(f"{path}:{number}: no class and text, with a tab between, in {line[:60]!r}")
        if line:
            yield text.strip(), label
