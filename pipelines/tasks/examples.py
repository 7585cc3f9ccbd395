"""Examples of the forms that a task can have: their types, their files, and how they are split without leaks.

The one idea: what a split never divides is the *group* (a film, a source package, or the text itself), and a group's
side is a hash of its name. So a new example changes the side of no other, and equal data give equal splits anywhere.
Equal examples are found by their words; one on two sides would be a leak, so it is kept once, on the side that is
furthest from training. Nothing is dropped silently: the report counts all of it.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from model import durable
from pipelines.words import word

SPLITS = ("train", "validation", "test")
BENCHMARK = "benchmark"
KEEP_ORDER = ("test", "validation", "train")  # of equal examples, the one furthest from training is kept
_SHOWN = 20  # dropped examples that a report shows, of which it counts all


@dataclass(frozen=True)
class Labelled:
    """A text and its class, an index into the task's labels."""

    id: str
    text: str
    label: int
    group: str


@dataclass(frozen=True)
class Response:
    """A prompt, the response that is learned, and all responses that count as right."""

    id: str
    prompt: str
    response: str
    references: list[str]
    group: str


@dataclass(frozen=True)
class Dialogue:
    """Turns of a conversation, each {"role", "content"}."""

    id: str
    messages: list[dict[str, str]]
    group: str


@dataclass(frozen=True)
class Text:
    """A document, all of which is learned."""

    id: str
    text: str
    group: str


@dataclass(frozen=True)
class Span:
    """A question whose answers, each {"text", "start"}, stand in the context; `start` counts characters."""

    id: str
    question: str
    context: str
    answers: list[dict[str, Any]]
    group: str


Example = Labelled | Response | Dialogue | Text | Span
TYPES: dict[str, type[Any]] = {
    "classification": Labelled, "response": Response, "dialogue": Dialogue, "text": Text, "span": Span,
}  # fmt: skip
_KINDS = {"str": str, "int": int, "list": list}


@dataclass(frozen=True)
class Prepared:
    """The examples by split, the account of what was dropped on the way, and the names of the classes, if there are any."""

    splits: dict[str, list[Any]]
    report: dict[str, Any]
    labels: tuple[str, ...] = ()
    benchmark: list[Any] = field(default_factory=list)  # somebody else's test set, of which nothing is ever trained on


def write(prepared: Prepared, outputs: Path) -> None:
    """Write train.jsonl, validation.jsonl, test.jsonl, report.json into `outputs`, and where there are any labels.json
    (of a classification) and benchmark.jsonl."""
    parts = {name: prepared.splits[name] for name in SPLITS}
    parts |= {BENCHMARK: prepared.benchmark} if prepared.benchmark else {}
    for name, part in parts.items():
        lines = [json.dumps(asdict(example), sort_keys=True, ensure_ascii=False) for example in part]
        durable.write_bytes(outputs / f"{name}.jsonl", "".join(line + "\n" for line in lines).encode())
    if prepared.labels:
        durable.write_json(outputs / "labels.json", list(prepared.labels))
    durable.write_json(outputs / "report.json", prepared.report)


def read(path: Path, form: str) -> list[Any]:
    """The examples of a file that `write` wrote. ValueError names file and line of what is not one."""
    kind, examples = TYPES[form], []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            example = kind(**json.loads(line))
            wrong = [field.name for field in fields(kind) if not isinstance(getattr(example, field.name), _type(field))]
            if wrong:
                raise TypeError(f"{wrong[0]} is a {type(getattr(example, wrong[0])).__name__}")
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{path}:{number}: not an example ({error}); rerun prepare_task to write it anew"
            ) from error
        examples.append(example)
    return examples


def _type(field: Any) -> type:
    return _KINDS[str(field.type).partition("[")[0]]


def identifier(*parts: str) -> str:
    """The id of an example: a hash of its content. That of a text alone is the id of a document with the same text."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def normalised(text: str) -> str:
    """What two texts must share to be the same one: their words, without case, spacing and punctuation.

    A text without any word (only emoji or punctuation) is itself.
    """
    return " ".join(word().findall(text.lower())) or text.strip()


def split_of(group: str, validation: float, test: float, seed: int = 0) -> str:
    """The split a group belongs to: a hash of its name as a number in [0, 1), cut at the two shares."""
    if not (validation >= 0 and test >= 0 and validation + test < 1):
        raise ValueError(f"validation={validation} and test={test} are shares that leave no room for training below 1")
    place = int.from_bytes(hashlib.sha256(f"{seed}:{group}".encode()).digest()[:8], "big") / 2**64
    if place < test:
        return "test"
    return "validation" if place < test + validation else "train"


def divided(examples: Iterable[Any], validation: float, test: float, seed: int = 0) -> dict[str, list[Any]]:
    """The examples by split, in their order, split by the hash of their groups."""
    splits: dict[str, list[Any]] = {name: [] for name in SPLITS}
    for example in examples:
        splits[split_of(example.group, validation, test, seed)].append(example)
    return splits


def without_repeats(
    splits: Mapping[str, Sequence[Any]], words: Callable[[Any], str], answer: Callable[[Any], Any] | None = None
) -> tuple[dict[str, list[Any]], dict[str, Any]]:
    """Each example once, by its `words`, nearest to the test side; and the report of what was dropped.

    With `answer`, examples with equal words and different answers contradict each other and go altogether.
    """
    answers: dict[str, set[Any]] = defaultdict(set)
    for part in splits.values():
        for example in part:
            answers[words(example)].add(answer(example) if answer else None)
    kept: dict[str, str] = {}
    counts: Counter[str] = Counter()
    unique: dict[str, list[Any]] = {name: [] for name in SPLITS}
    across = []
    for name in KEEP_ORDER:
        for example in splits[name]:
            key = words(example)
            if len(answers[key]) > 1:
                counts["contradicting_labels"] += 1
            elif key not in kept:
                kept[key] = name
                unique[name].append(example)
            elif kept[key] == name:
                counts["repeated_within_split"] += 1
            else:
                across.append({"split": name, "kept_in": kept[key], "id": example.id, "words": key[:200]})
    dropped = {name: counts[name] for name in ("contradicting_labels", "repeated_within_split")}
    sides = Counter(group for part in unique.values() for group in {example.group for example in part})
    return unique, {
        "dropped": dropped | {"repeated_across_splits": len(across)},
        "across_splits": across[:_SHOWN],
        "groups_on_several_sides": sum(count > 1 for count in sides.values()),  # where splits were given as files
    }


def refuse_empty(splits: Mapping[str, Sequence[Any]], files: Sequence[Path], why: str = "") -> None:
    """ValueError if a split has no example; `why` is what else there is to say of it."""
    for name, part in splits.items():
        if not part:
            every = [example for several in splits.values() for example in several]
            raise ValueError(
                f"{files[0]}: the {name} split is empty; {why}the {len(every)} examples there are of {len({one.group for one in every})} "
                "groups, of which none is divided. Give more data, or other shares (task.validation_fraction, task.test_fraction)"
            )


def first(splits: Mapping[str, Sequence[Any]], count: int) -> dict[str, list[Any]]:
    """The `count` examples of each split that come first by id, which is a hash of the content: an even sample."""
    return {name: sorted(part, key=lambda example: example.id)[:count] for name, part in splits.items()}


def cut(prepared: Prepared, count: int) -> Prepared:
    """The `count` examples of each split that come `first`, and the report with what it counts of them, and how many were cut.

    ValueError if a held-out split has a class that training lost by it: nobody could get that one right; or if a split that
    had several classes has one left: nothing is to be learned or measured there.
    """
    kept = first(prepared.splits | {BENCHMARK: prepared.benchmark}, count)
    benchmark, labels, report = kept.pop(BENCHMARK), prepared.labels, dict(prepared.report)
    if labels:
        seen = {name: {example.label for example in part} for name, part in kept.items()}
        for name in SPLITS:
            if len(seen[name]) < 2 <= len({example.label for example in prepared.splits[name]}):
                raise ValueError(
                    f"task.max_examples={count} leaves examples of one class in the {name} split "
                    f"({', '.join(repr(labels[label]) for label in seen[name])}); give a larger task.max_examples, or leave it out"
                )
        gone = {example.label for example in prepared.splits["train"]} - seen["train"]
        for name in ("test", "validation"):
            if lost := [labels[label] for label in sorted(gone & seen[name])]:
                raise ValueError(
                    f"task.max_examples={count} leaves no training example of {', '.join(map(repr, lost[:10]))}"
                    f"{', ...' if len(lost) > 10 else ''} ({len(lost)} of {len(labels)} classes), and the {name} split has some; "
                    "give a larger task.max_examples, or leave it out"
                )
        if "labels_not_in" in report:
            report["labels_not_in"] = {
                name: sorted(label for number, label in enumerate(labels) if number not in seen[name]) for name in kept
            }
    report["splits"] = {name: summary(part, labels) for name, part in kept.items()}
    report["over_max_examples"] = {name: len(prepared.splits[name]) - len(part) for name, part in kept.items()}
    if prepared.benchmark:
        report[BENCHMARK] = report.get(BENCHMARK, {}) | summary(benchmark)
        report["over_max_examples"][BENCHMARK] = len(prepared.benchmark) - len(benchmark)
    return replace(prepared, splits=kept, report=report, benchmark=benchmark)


def spread(groups: Sequence[str], keys: Sequence[str], most: int) -> list[int]:
    """The places of at most `most` examples: one of each group in turn, of a group in the order of their `keys`, which are
    hashes. In ascending order."""
    hashed = sorted(range(len(groups)), key=keys.__getitem__)
    turn, taken = dict[int, int](), Counter[str]()
    for place in hashed:
        turn[place] = taken[groups[place]]
        taken[groups[place]] += 1
    return sorted(sorted(hashed, key=turn.__getitem__)[:most])


def summary(part: Sequence[Any], labels: Sequence[str] = ()) -> dict[str, Any]:
    """How many examples and groups a split has, and how many of each class."""
    counts = Counter(example.label for example in part) if labels else Counter[int]()
    return {
        "examples": len(part),
        "groups": len({example.group for example in part}),
        **({"labels": {name: counts[label] for label, name in enumerate(labels)}} if labels else {}),
    }
