"""Your own questions whose answers stand in a text: SQuAD's JSON, or records with `question`, `context` and `answers`.

The one idea: an answer is known by its characters in the context, so what a file says of them is held against the text:
an answer that does not stand where it should is an error that says what stands there.

Answers: a list of {"text", "answer_start"} (or "start"), as in SQuAD, or its columns {"text": [...], "answer_start": [...]},
as Hugging Face `datasets` has them. Several are all right ones; the first is learned.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipelines.contamination import WINDOW, runs
from pipelines.sources import known_format
from pipelines.tasks.examples import (
    KEEP_ORDER,
    SPLITS,
    Prepared,
    Span,
    identifier,
    normalised,
    refuse_empty,
    summary,
    without_repeats,
)
from pipelines.tasks.prompts import folded, on_one_side
from pipelines.tasks.user_data import Record, parsed, records
from pipelines.tasks.user_splits import placed

LANGUAGE = ""  # who gives the data knows
FORM = "span"
VERSION = 3  # the second took questions that differ in signs only for one, the first learned contexts of the benchmark


def prepare(
    files: Sequence[Path],
    validation: float,
    test: float,
    group_column: str = "",
    validation_files: Sequence[Path] = (),
    test_files: Sequence[Path] = (),
    benchmark_files: Sequence[Path] = (),
) -> Prepared:
    """Questions of `files`, split by the group column; without one by the article's `title`, or else by the context.

    ValueError names the file, the place in it and the field of what cannot be used.
    """

    def read(part: Sequence[Path]) -> list[Span]:
        return list(questions(part, group_column))

    own = {"train": files, "validation": validation_files, "test": test_files}
    every = placed(own, read, lambda example: str(example.group), validation, test)
    held, account = benchmark(benchmark_files)
    splits = _without_contexts_of(held, every)
    rows, left = (sum(map(len, parts.values())) for parts in (every, splits))
    merged, more = _with_all_answers(splits)
    # Repeats are found by their signs too (1 + 2 and 1 - 2); of words on two sides one side is left.
    once, report = without_repeats(merged, lambda one: f"{folded(one.question)}\n{normalised(one.context)}")
    unique = on_one_side(once, words_of)
    left_out = sum(map(len, once.values())) - sum(map(len, unique.values()))
    refuse_empty(unique, files, f"{rows - left} questions have contexts of the benchmark; " if rows - left else "")
    report["dropped"] |= {"contexts_of_the_benchmark": rows - left, "questions_across_splits": left_out}
    report |= {"merged_as_answers": more, "contexts_across_splits": _contexts_across(unique)}
    report |= {"rows": rows, "splits": {name: summary(unique[name]) for name in SPLITS}}
    return Prepared(unique, report | account, benchmark=held)


def _without_contexts_of(held: Sequence[Span], splits: Mapping[str, Sequence[Span]]) -> dict[str, list[Span]]:
    """The examples, of training and validation without those whose context a benchmark has: all its words, or a long
    stretch of them in a row. Not as few as `cloze` compares: documents of one's own share phrases."""
    whole = {normalised(one.context) for one in held}
    known = {run for context in {one.context for one in held} for run in runs(context, WINDOW)}
    theirs = {
        context
        for context in {one.context for name in ("train", "validation") for one in splits[name]}
        if held and (normalised(context) in whole or not known.isdisjoint(runs(context, WINDOW)))
    }
    return {name: [one for one in part if name == "test" or one.context not in theirs] for name, part in splits.items()}


def _with_all_answers(splits: Mapping[str, Sequence[Span]]) -> tuple[dict[str, list[Span]], int]:
    """The examples, each with the answers of every record that asks the same of the same context, behind those of the one
    that is kept; and how many answers came from another record than the first."""
    answers: dict[tuple[str, str], list[dict[str, Any]]] = {}
    more = 0
    for one in (one for name in KEEP_ORDER for one in splits[name]):
        known = answers.setdefault(_asked(one), one.answers[:])
        new = [answer for answer in one.answers if answer not in known]
        known += new
        more += len(new)
    return {name: [replace(one, answers=answers[_asked(one)]) for one in part] for name, part in splits.items()}, more


def _asked(one: Span) -> tuple[str, str]:
    return folded(one.question), one.context


def _contexts_across(splits: Mapping[str, Sequence[Span]]) -> int:
    """How many contexts stand on more than one side: of groups, or files, that share them."""
    sides = [{normalised(one.context) for one in part} for part in splits.values()]
    return len({context for side in sides for context in side if sum(context in other for other in sides) > 1})


def words_of(example: Span) -> str:
    """What decides the side of a question."""
    return f"{normalised(example.question)}\n{normalised(example.context)}"


def benchmark(files: Sequence[Path], most: int | None = None, left_out: int = 0) -> tuple[list[Span], dict[str, Any]]:
    """The questions of somebody else's test set, and the account of it: the `most` that come first by their ids, which are hashes.

    The `left_out` groups (articles) that come first by theirs are not among them: whoever changes something looks at those.
    Nothing is learned here, so an answer whose place is wrong counts by its text, and is counted.
    """
    if not files:
        return [], {}
    moved: list[str] = []
    found = list(questions(files, "", moved.append))
    groups = sorted({one.group for one in found}, key=identifier)
    kept = [one for one in found if one.group not in groups[:left_out]]
    if not kept:
        raise ValueError(f"{files[0]}: {len(groups)} groups, and {left_out} are left out; give a larger benchmark")
    chosen = sorted(kept, key=lambda one: one.id)[:most]
    account = {"questions": len(found), "left_out": groups[:left_out], "answers_moved": len(moved), **summary(chosen)}
    return chosen, {"benchmark": account}


def questions(
    files: Sequence[Path], group_column: str = "", moved: Callable[[str], None] | None = None
) -> Iterator[Span]:
    """The questions of `files`. With `moved` an answer that stands elsewhere is told to it and put there; else ValueError."""
    for path in files:
        for record in _squad(path) if known_format(path) == "json" else records([path]):
            _check_fields(record)
            question, context = record.text("question", "source"), _context(record)
            answers = [_placed(record, context, one, moved) for one in _answers(record)]
            if group_column:
                group = record.name(group_column, "group_column")
            elif _is_blank(record.fields.get("title")):
                group = identifier(normalised(context))
            else:
                group = record.name("title", "source")
            yield Span(identifier(question, context), question, context, answers, group)


def _is_blank(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _squad(path: Path) -> Iterator[Record]:
    """The questions of a file in SQuAD's form as records; their place is the way to them in the JSON."""
    try:
        content = parsed(path.read_bytes(), str(path))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from error
    for article, here in _listed(content, "data", str(path)):
        for paragraph, there in _listed(article, "paragraphs", here):
            for one, place in _listed(paragraph, "qas", there):
                shared = {"context": paragraph.get("context"), "title": article.get("title")}
                yield Record(place, {name: value for name, value in (shared | one).items() if value is not None})


def _listed(value: dict[str, Any], name: str, place: str) -> Iterator[tuple[dict[str, Any], str]]:
    """The objects of a list in a JSON object, each with the way to it."""
    found = value.get(name) if isinstance(value, dict) else None
    if not isinstance(found, list) or not found:
        raise ValueError(
            f"{place}: {name!r} has to be a list of objects that is not empty, it is {str(found)[:60]!r}; SQuAD's form is "
            "data / paragraphs / qas"
        )
    for number, one in enumerate(found):
        if not isinstance(one, dict):
            raise ValueError(f"{place}: {name}[{number}] is {str(one)[:60]!r}; it has to be an object")
        yield one, f"{place}: {name}[{number}]" if ": " not in place else f"{place}.{name}[{number}]"


def _check_fields(record: Record) -> None:
    """ValueError for a field that is not there. No setting names another one, so the advice is not that of `Record`."""
    for name in ("question", "context", "answers"):
        if name not in record.fields:
            raise ValueError(
                f"{record.place}: no field {name!r}; it has {', '.join(map(repr, record.fields)) or 'none'}. Rename the one "
                "that holds it, or add it"
            )


def _context(record: Record) -> str:
    """The context as it stands there: the answers' places count its characters, blanks at its beginning too."""
    record.text("context", "source")
    return str(record.fields["context"])


def _answers(record: Record) -> list[dict[str, Any]]:
    """The answers of a record in either form, as objects; of CSV as JSON. ValueError if there is none."""
    value = record.field("answers", "source")
    if isinstance(value, str):
        try:
            value = parsed(value, record.place)
        except json.JSONDecodeError as error:
            raise ValueError(f"{record.place}: field 'answers' is text and no JSON ({error})") from error
    if isinstance(value, dict) and all(isinstance(value.get(name), list) for name in ("text", "answer_start")):
        texts, starts = value["text"], value["answer_start"]
        if len(texts) != len(starts):
            raise ValueError(
                f"{record.place}: field 'answers' has {len(texts)} in text and {len(starts)} in answer_start; each answer "
                "needs both"
            )
        value = [{"text": text, "start": at} for text, at in zip(texts, starts, strict=True)]
    if not isinstance(value, list) or not value:
        raise ValueError(
            f"{record.place}: field 'answers' is {str(value)[:60]!r}; it has to be a list of answers, each with text and "
            "answer_start. A question without an answer cannot be learned: remove it"
        )
    return value


def _placed(record: Record, context: str, answer: Any, moved: Callable[[str], None] | None) -> dict[str, Any]:
    """An answer as {"text", "start"}, held against the context."""
    start = answer.get("start", answer.get("answer_start")) if isinstance(answer, dict) else None
    text = answer.get("text") if isinstance(answer, dict) else None
    if not isinstance(text, str) or not text.strip() or not isinstance(start, int) or isinstance(start, bool):
        raise ValueError(
            f"{record.place}: field 'answers' holds {str(answer)[:60]!r}; an answer is an object with text and answer_start"
        )
    Record(f"{record.place}: field 'answers'", answer).text(
        "text", "source"
    )  # in a benchmark no other check looks at it
    if start >= 0 and context[start : start + len(text)] == text:
        return {"text": text, "start": start}
    if moved is not None:
        moved(record.place)
        return {"text": text, "start": max(0, context.find(text))}
    raise ValueError(
        f"{record.place}: field 'answers': {text[:60]!r} does not stand at character {start} of the context, there is "
        f"{context[max(0, start) : max(0, start) + len(text)][:60]!r}; mend answer_start"
    )
