"""One's own questions about texts: what is left out for the benchmark, merged, counted and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from model import durable
from pipelines.tasks import cloze, spans
from pipelines.tasks.examples import SPLITS

LONG = " ".join(f"On day {n} the crew of ship {n} saw {n + 3} whales." for n in range(12))


def context(number: int) -> str:
    return f"The bridge of town {number} was built by mason {number} in a summer without rain."


def asked(number: int, question: str = "Who built it?", **more: Any) -> dict[str, Any]:
    text = context(number)
    answer = f"mason {number}"
    answers = [{"text": answer, "answer_start": text.index(answer)}]
    return {"question": question, "context": text, "answers": answers} | more


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    durable.write_bytes(path, "".join(json.dumps(row) + "\n" for row in rows).encode())
    return path


def test_nothing_is_learned_of_a_context_that_the_benchmark_has(tmp_path: Path) -> None:
    words = LONG.split()
    whale = {"answers": [{"text": "whales", "answer_start": LONG.index("whales")}]}
    held = [asked(3), {"question": "What was seen?", "context": LONG} | whale]
    rows = [asked(number, question) for number in range(60) for question in ("Who built it?", "Who was the mason?")]
    parts = {size: "Before that: " + " ".join(words[9 : 9 + size]) for size in (31, 32)}
    rows += [
        {"question": "What?", "context": text, "answers": [{"text": "whales", "answer_start": text.index("whales")}]}
        for text in parts.values()
    ]
    for row in rows:
        row["context"] = row["context"].replace("of town 3 was", "of town 3,  WAS")
        row["answers"][0]["answer_start"] = row["context"].index(row["answers"][0]["text"])
    files = [jsonl(tmp_path / "mine.jsonl", rows)], [jsonl(tmp_path / "held.jsonl", held)]
    plain = spans.prepare(files[0], 0.2, 0.2)
    prepared = spans.prepare(files[0], 0.2, 0.2, benchmark_files=files[1])
    sides = {one.context: name for name in SPLITS for one in plain.splits[name]}
    left = {one.context for name in SPLITS for one in plain.splits[name]} - {
        one.context for name in SPLITS for one in prepared.splits[name]
    }
    theirs = {row["context"] for row in (rows[6], rows[-1])}
    assert left == {one for one in theirs if sides[one] != "test"} and left, "31 words in a row are a phrase"
    assert prepared.report["dropped"]["contexts_of_the_benchmark"] == sum(row["context"] in left for row in rows)
    assert prepared.splits["test"] == plain.splits["test"] and len(prepared.benchmark) == 2
    assert "contexts_of_the_benchmark" in plain.report["dropped"]
    with pytest.raises(ValueError, match=r"the \w+ split is empty; 2 questions have contexts of the benchmark; the "):
        spans.prepare([jsonl(tmp_path / "same.jsonl", held)], 0.0, 0.0, benchmark_files=files[1])


def test_a_context_that_only_the_test_side_shares_with_the_benchmark_is_measured(tmp_path: Path) -> None:
    paths = {
        name: jsonl(tmp_path / f"{name}.jsonl", [asked(number) for number in numbers])
        for name, numbers in {"train": range(20), "test": range(20, 30), "held": range(18, 25)}.items()
    }
    prepared = spans.prepare([paths["train"]], 0.2, 0.0, test_files=[paths["test"]], benchmark_files=[paths["held"]])
    assert prepared.report["dropped"]["contexts_of_the_benchmark"] == 2
    assert len(prepared.splits["test"]) == 10 and len(prepared.benchmark) == 7


def test_all_answers_of_a_question_count_that_stands_there_twice(tmp_path: Path) -> None:
    text = context(50)
    other = {"answers": [{"text": "mason", "answer_start": text.index("mason")}]}
    again = [
        asked(50),
        asked(50, "who  built it?") | other,
        asked(50),
        asked(50, "Who built C?"),
        asked(50, "Who built C++?"),
    ]
    train = jsonl(tmp_path / "train.jsonl", [asked(number) for number in range(20)])
    prepared = spans.prepare([train], 0.2, 0.0, test_files=[jsonl(tmp_path / "test.jsonl", again)])
    first = prepared.splits["test"][0]
    assert [answer["text"] for answer in first.answers] == ["mason 50", "mason"]
    assert [one.question for one in prepared.splits["test"]] == ["Who built it?", "Who built C?", "Who built C++?"]
    assert [len(one.answers) for one in prepared.splits["test"]] == [2, 1, 1], "with other signs it is another question"
    assert prepared.report["merged_as_answers"] == 1
    assert prepared.report["dropped"]["repeated_within_split"] == 2


def test_a_question_with_the_words_of_one_of_the_test_side_is_not_learned(tmp_path: Path) -> None:
    train = jsonl(tmp_path / "train.jsonl", [*(asked(number) for number in range(20)), asked(50, "Who built C?")])
    prepared = spans.prepare(
        [train], 0.2, 0.0, test_files=[jsonl(tmp_path / "test.jsonl", [asked(50, "Who built C++?")])]
    )
    assert context(50) not in {one.context for name in ("train", "validation") for one in prepared.splits[name]}
    assert [one.question for one in prepared.splits["test"]] == ["Who built C++?"]
    assert prepared.report["dropped"]["questions_across_splits"] == 1


def test_a_context_that_stands_under_several_titles_on_two_sides_is_counted(tmp_path: Path) -> None:
    rows = [asked(number % 60, f"Who built it, asks {number // 60}?", title=f"T{number}") for number in range(120)]
    report = spans.prepare([jsonl(tmp_path / "mine.jsonl", rows)], 0.3, 0.3).report
    sides: dict[str, set[str]] = {}
    prepared = spans.prepare([jsonl(tmp_path / "mine.jsonl", rows)], 0.3, 0.3)
    for name in SPLITS:
        for one in prepared.splits[name]:
            sides.setdefault(one.context, set()).add(name)
    assert report["contexts_across_splits"] == sum(len(found) > 1 for found in sides.values()) > 10
    alone = [asked(number % 60, f"Who built it, asks {number // 60}?") for number in range(120)]
    assert spans.prepare([jsonl(tmp_path / "alone.jsonl", alone)], 0.3, 0.3).report["contexts_across_splits"] == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"answers": {"text": ["a", "b"], "answer_start": [1]}},
            "field 'answers' has 2 in text and 1 in answer_start; each",
        ),
        ({"title": "\ud800"}, "field 'title' holds half of a surrogate pair, which is no text; mend it"),
        (
            {"answers": [{"text": "\udc00", "answer_start": 0}]},
            "field 'answers': field 'text' holds half of a surrogate pair, which is no text; mend it",
        ),
    ],
)
def test_what_would_be_lost_or_could_not_be_written_is_refused_where_it_stands(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    bad = jsonl(tmp_path / "bad.jsonl", [asked(1) | change])
    with pytest.raises(ValueError, match=f"bad.jsonl:1: {said}"):
        spans.prepare([bad], 0.2, 0.2)
    with pytest.raises(ValueError, match=f"bad.jsonl:1: {said}"):
        spans.benchmark([bad])


@pytest.mark.parametrize("missing", ["question", "context", "answers"])
def test_a_missing_field_is_to_be_renamed_for_no_setting_names_another_one(tmp_path: Path, missing: str) -> None:
    row = {("body" if name == missing else name): value for name, value in asked(1).items()}
    with pytest.raises(
        ValueError, match=rf"bad.jsonl:1: no field '{missing}'; it has .*'body'.*\. Rename the one that"
    ):
        spans.prepare([jsonl(tmp_path / "bad.jsonl", [row])], 0.2, 0.2)


def test_cloze_compares_eight_words_in_a_row_as_ever(tmp_path: Path) -> None:
    question = "Was it true that on day 3 the crew of ship 3 slept?"
    held = {"question": question, "context": "No.", "answers": [{"text": "No", "answer_start": 0}]}
    known = cloze._known([jsonl(tmp_path / "held.jsonl", [held])])
    assert len(known) == len(question.split()) - 7 and known & cloze.runs(LONG, 8)
    assert not known & cloze.runs(LONG.replace("ship 3", "boat 3"), 8)
