"""What of prompts, conversations, questions and documents counts as the same, and on which side it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from model import durable
from pipelines.tasks import generation, messages, questions, responses, translation
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


def test_what_another_side_says_to_a_prompt_is_right_too_and_not_learned(tmp_path: Path) -> None:
    train = [*sums(0, 40), {"prompt": "Capital of France?", "response": "Paris"}]
    test = jsonl(tmp_path / "test.jsonl", [{"prompt": "capital of  France?", "response": "It is Paris"}])
    prepared = responses.prepare([jsonl(tmp_path / "train.jsonl", train)], 0.2, 0.0, test_files=[test])
    (one,) = prepared.splits["test"]
    assert one.references == ["It is Paris", "Paris"]
    assert not [one for name in ("train", "validation") for one in prepared.splits[name] if "France" in one.prompt]


def test_questions_that_differ_in_signs_are_two_and_a_repeat_gives_its_answers(tmp_path: Path) -> None:
    rows = [{"question": f"what is twice {n}?", "answers": [str(2 * n)]} for n in range(60)]
    rows += [
        {"question": "who made c?", "answers": ["Ritchie"]},
        {"question": "who made c++?", "answers": ["Stroustrup"]},
    ]
    rows += [{"question": "Who made C?", "answers": ["Dennis Ritchie", "Ritchie"]}]
    prepared = questions.prepare([jsonl(tmp_path / "asked.jsonl", rows)], 0.2, 0.2)
    found = [(name, one) for name in SPLITS for one in prepared.splits[name] if "made" in one.prompt]
    assert len({name for name, _ in found}) == 1
    assert [(one.prompt, one.response, one.references) for _, one in found] == [
        ("who made c?", "Ritchie", ["Dennis Ritchie", "Ritchie"]), ("who made c++?", "Stroustrup", ["Stroustrup"])
    ]  # fmt: skip
    assert prepared.report["dropped"]["repeated_within_split"] == 1


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


def talk(*contents: str, first: str = "user") -> dict[str, Any]:
    """A record of a conversation in which both speak in turn."""
    roles = ("user", "assistant") if first == "user" else ("assistant", "user")
    return {"messages": [{"role": roles[place % 2], "content": content} for place, content in enumerate(contents)]}


def snapshots(number: int) -> list[dict[str, Any]]:
    """A conversation as it is stored after each of three exchanges, and once with a word of thanks."""
    said = [
        f"{word} {number}" for word in ("May I?", "You may,", "And now?", "Now too,", "Then?", "Always,", "Thanks!")
    ]
    return [talk(*said[:2]), talk(*said[:4]), talk(*said[:6]), talk(*said)]


def test_a_conversation_that_is_stored_as_it_grows_is_on_one_side(tmp_path: Path) -> None:
    rows = [row for number in range(60) for row in snapshots(number)]
    prepared = messages.prepare([jsonl(tmp_path / "chats.jsonl", rows)], 0.3, 0.3)
    begun = {name: {one.messages[1]["content"] for one in prepared.splits[name]} for name in SPLITS}
    assert sum(map(len, begun.values())) == 60 == len(set.union(*begun.values())) and min(map(len, begun.values())) > 5
    assert prepared.report["dropped"]["repeated_within_split"] == 60, "thanks teach nothing"
    assert prepared.report["replies_across_splits"] == 0
    assert sum(one["groups"] for one in prepared.report["splits"].values()) == 60


def test_replies_that_stand_after_the_same_turns_in_files_of_two_sides_are_counted(tmp_path: Path) -> None:
    shorter, longer, longest, thanked = snapshots(1)
    rest = [row for number in range(2, 30) for row in snapshots(number)]
    train = jsonl(tmp_path / "train.jsonl", [shorter, longest, *rest])
    test = jsonl(tmp_path / "test.jsonl", [longer, thanked, talk("May I? 1", "No.")])
    report = messages.prepare([train], 0.2, 0.0, test_files=[test]).report
    assert report["dropped"]["repeated_across_splits"] == 1, "the longest: it is the one with thanks"
    assert report["replies_across_splits"] == 2, "the first reply of both, which the shorter one has too"
    assert report["groups_on_several_sides"] == 1


def test_an_empty_split_of_conversations_says_how_many_groups_there_are(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "chats.jsonl", [*snapshots(1), *snapshots(2)])
    with pytest.raises(
        ValueError,
        match=r"chats.jsonl: the \w+ split is empty; the 6 examples there are of 2 groups, of which none is divided",
    ):
        messages.prepare([path], 0.2, 0.2)


@pytest.mark.parametrize("side", ["train", "test"])
def test_conversations_in_which_nobody_is_answered_are_refused_before_anything_is_trained(
    tmp_path: Path, side: str
) -> None:
    files = {"train": [row for number in range(30) for row in snapshots(number)], "test": snapshots(40)}
    files[side] = [talk(f"Welcome, {number}.", "Hello.", first="assistant") for number in range(30)]
    paths = {name: jsonl(tmp_path / f"{name}.jsonl", rows) for name, rows in files.items()}
    with pytest.raises(ValueError, match=f"no reply of the {side} split has a turn before it"):
        messages.prepare([paths["train"]], 0.2, 0.0, test_files=[paths["test"]])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("\ud800", r"turn 2: field 'content' holds half of a surrogate pair, which is no text; mend it"),
        ([{"type": "text", "text": "Hi."}], r"turn 2: field 'content' is \[\{'type'.*\}\], a list; it has to be text"),
        (None, r"turn 2: field 'content' is null; it has to be text"),
        (" ", r"turn 2: field 'content' is empty"),
    ],
)
def test_content_that_is_no_text_is_named_by_its_turn(tmp_path: Path, content: Any, said: str) -> None:
    record = {"messages": [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": content}]}
    with pytest.raises(ValueError, match=rf"chats.jsonl:1: field 'messages', {said}"):
        messages.prepare([jsonl(tmp_path / "chats.jsonl", [record])], 0.2, 0.2)


def test_another_file_changes_the_side_of_no_document(tmp_path: Path) -> None:
    def novel(name: str, chapters: int) -> Path:
        text = "\n\n".join(f"Chapter {n} of {name}. " + "It rained. " * 9 for n in range(chapters))
        durable.write_bytes(tmp_path / f"{name}.txt", text.encode())
        return tmp_path / f"{name}.txt"

    def sides(files: list[Path]) -> dict[str, tuple[str, str]]:
        splits = generation.prepare(files, 0.3, 0.3, document_bytes=150).splits
        return {one.text: (name, one.group) for name in SPLITS for one in splits[name]}

    alone = sides([novel("b", 60)])
    beside = sides([novel("a", 30), novel("b", 60), novel("c", 8)])
    assert {text: beside[text] for text in alone} == alone and len(beside) == 98 and len(alone) == 60
    longer = sides([novel("b", 75)])
    whole = alone.keys() & longer.keys()
    assert {text: longer[text] for text in whole} == {text: alone[text] for text in whole} and len(whole) >= 59


def test_the_card_of_ones_own_text_does_not_say_english() -> None:
    assert generation.LANGUAGE == ""
