"""What of prompts, conversations, questions and documents counts as the same, and on which side it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from model import durable
from pipelines.tasks import responses, translation
from pipelines.tasks.answer_baselines import retrieval
from pipelines.tasks.examples import SPLITS

LANGUAGES = {"Who made C?": "Dennis Ritchie", "Who made C++?": "Bjarne Stroustrup", "Who made C#?": "Anders Hejlsberg"}


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    durable.write_bytes(path, "".join(json.dumps(row) + "\n" for row in rows).encode())
    return path


def sums(first: int, last: int) -> list[dict[str, Any]]:
    return [{"prompt": f"What is twice {n}?", "response": str(2 * n)} for n in range(first, last)]


@pytest.mark.parametrize("side", ["train", "test"])
def test_prompts_that_differ_in_signs_only_have_their_own_right_answers_on_one_side(tmp_path: Path, side: str) -> None:
    asked = [{"prompt": prompt, "response": said} for prompt, said in LANGUAGES.items()]
    files = {"train": sums(0, 40), "test": sums(40, 50)}
    files[side] += [*asked, {"prompt": "who made  C++?", "response": "B. Stroustrup"}]
    paths = {name: jsonl(tmp_path / f"{name}.jsonl", rows) for name, rows in files.items()}
    prepared = responses.prepare([paths["train"]], 0.2, 0.0, test_files=[paths["test"]])
    found = [(name, one) for name in SPLITS for one in prepared.splits[name] if one.prompt in LANGUAGES]
    sides = {name for name, _ in found}
    assert len(sides) == 1 and [one.prompt for _, one in found] == list(LANGUAGES), "each is asked, all on one side"
    assert [one.references for _, one in found] == [
        ["Dennis Ritchie"], ["B. Stroustrup", "Bjarne Stroustrup"], ["Anders Hejlsberg"]
    ]  # fmt: skip


def test_responses_that_differ_in_signs_only_are_all_right(tmp_path: Path) -> None:
    both = [{"prompt": "Which of them has classes?", "response": said} for said in ("C++", "C#", "c#", "C#")]
    test = jsonl(tmp_path / "test.jsonl", both)
    prepared = responses.prepare([jsonl(tmp_path / "train.jsonl", sums(0, 40))], 0.2, 0.0, test_files=[test])
    (one,) = prepared.splits["test"]
    assert one.references == ["C#", "C++"]
    assert prepared.report["dropped"]["repeated_within_split"] == 2
    assert prepared.report["dropped"]["merged_as_references"] == 1


def test_a_prompt_with_the_words_of_one_of_the_test_side_is_not_learned(tmp_path: Path) -> None:
    test = jsonl(tmp_path / "test.jsonl", [{"prompt": "1 + 2 = ?", "response": "3"}])
    more = [{"prompt": "1 - 2 = ?", "response": "-1"}, {"prompt": "1 + 2 =", "response": "3"}]
    train = jsonl(tmp_path / "train.jsonl", [*sums(3, 40), *more])
    prepared = responses.prepare([train], 0.2, 0.0, test_files=[test])
    assert not [one for name in ("train", "validation") for one in prepared.splits[name] if "=" in one.prompt]
    assert [(one.prompt, one.references) for one in prepared.splits["test"]] == [("1 + 2 = ?", ["3"])]
    assert prepared.report["dropped"]["prompts_across_splits"] == 2


def test_lines_that_differ_in_signs_only_are_translated_each_as_its_own(tmp_path: Path) -> None:
    compilers = {"GNU C compiler": "compilatore C GNU", "GNU C++ compiler": "compilatore C++ GNU"}
    rows = [{"source": f"p{n}", "text": f"tool number {n}", "it": f"strumento numero {n}"} for n in range(60)]
    rows += [{"source": f"q{n}", "text": text, "it": other} for text, other in compilers.items() for n in range(9)]
    rows += [{"source": "q0", "text": "gnu c  compiler", "it": "il compilatore C"}]
    prepared = translation.prepare([jsonl(tmp_path / "debian.jsonl", rows)], 0.2, 0.2)
    found = [(name, one) for name in SPLITS for one in prepared.splits[name] if "compiler" in one.prompt]
    assert len({name for name, _ in found}) == 1
    assert {one.prompt.lower(): one.references for _, one in found} == {
        "gnu c compiler": ["compilatore C GNU", "il compilatore C"], "gnu c++ compiler": ["compilatore C++ GNU"]
    }  # fmt: skip
    assert prepared.report["dropped"]["repeated_prompts"] == 9 * 2 + 1 - 2


def test_retrieval_finds_the_nearest_prompt_where_no_spaces_part_words() -> None:
    train = [("今天的天气怎么样？", "天气"), ("这家饭店的菜好吃吗？", "饭店"), ("去火车站怎么走？", "车站")]
    asked = ["请问饭店的菜怎么样，好吃吗", "我想知道火车站在哪里", "明天的天气呢"]
    assert retrieval(train, asked) == ["饭店", "车站", "天气"]
    spaced = [("how is the weather", "weather"), ("where is the station", "station")]
    assert retrieval(spaced, ["station?"]) == ["station"]
