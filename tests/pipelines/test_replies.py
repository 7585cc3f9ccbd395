"""The baselines of replies and what is asked of whom, without a model: its probabilities are invented."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model import durable
from model.examples import Examples
from pipelines import flow, recipes
from pipelines.chat import Chat
from pipelines.engine.step import Attempt
from pipelines.forms import dialogue, replies, reply_ngrams, text
from pipelines.forms.replies import Conversation
from pipelines.tasks.examples import Text
from pipelines.tasks.ngram import NGrams
from tests.model import tiny
from tests.pipelines import data_attempts
from tests.pipelines.test_chat import turns

TRAIN = [
    turns("the quick fox", "jumps over the dog.", "a tale", "of two cities", "and?", "it was the best of times."),
    turns("of one film", "it was the lazy dog.", "and the fox", "jumps over two cities"),
]
TEST = [Conversation("t", turns("the fox", "jumps over the dog.", "a tale of", "two cities"), "t")]
Measure = Callable[..., replies.Likelihood]


def of(messages: list[list[dict[str, str]]], group: str | None = None) -> list[Conversation]:
    """Conversations, each in a group of its own if none is given."""
    return [Conversation(str(place), one, group or str(place)) for place, one in enumerate(messages)]


def export(folder: Path, positions: int) -> Path:
    """A folder that holds `export`: a tokenizer and how many positions there are, but no weights."""
    if not folder.exists():
        folder.mkdir()
        tiny.write_tokenizer(folder / "export")
    durable.write_json(folder / "export" / "config.json", {"n_positions": positions})
    return folder


def invented(attempt: Attempt, function: str, export: Path | None = None, **job: Any) -> Any:
    """In place of `compute`: a nat for each learned token."""
    asked = Examples(Path(job["examples"]))
    counts = [int(asked.loss_mask(place)[1:].sum()) for place in range(len(asked))]
    return [(float(count), count) for count in counts]


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Measure:
    """`replies.likelihood` of a model with so many positions."""
    monkeypatch.setattr(replies, "compute", invented)

    def found(train: list[Conversation], test: list[Conversation] = TEST, positions: int = 200) -> replies.Likelihood:
        attempt = data_attempts.attempt(tmp_path, {}, {}, {"export": export(tmp_path / str(positions), positions)})
        return replies.likelihood(attempt, train, test)

    return found


@pytest.mark.parametrize("name", ["unigram", "trigram"])
def test_what_stands_in_the_training_examples_twice_counts_once_in_the_n_grams(measured: Measure, name: str) -> None:
    """As it stands, from a later turn on (a view, a window) or up to an earlier one (a record for each reply)."""
    once = of(TRAIN)
    again = [
        *once,
        *(Conversation("again", one.messages, one.group) for one in once),
        *(Conversation("later", one.messages[2:], one.group) for one in once),
        *(Conversation("earlier", one.messages[:2], one.group) for one in once),
    ]
    assert measured(again).reports[name] == measured(once).reports[name]


def test_a_window_that_shows_turns_again_counts_them_once(tmp_path: Path) -> None:
    """A model reads a long conversation in pieces, which begin with turns of the piece before; n-grams read it once."""
    said = Chat(export(tmp_path / "model", 32) / "export")
    pieces = [row for several in replies.rows(of(TRAIN), said, 32) for row in several]
    whole, masks = reply_ngrams.learned(of(TRAIN), said)
    assert len(pieces) > len(whole) and sum(len(row.tokens) for row in pieces) > sum(map(len, whole))
    assert sum(map(sum, masks)) == sum(sum(row.mask) for row in pieces)


def test_what_is_said_again_in_one_conversation_or_in_another_one_counts_each_time(tmp_path: Path) -> None:
    said = Chat(export(tmp_path / "model", 32) / "export")
    twice = turns("and?", "a tale", "and?", "a tale")
    for conversations in (of([twice]), of([twice[:2], twice[:2]])):
        _, masks = reply_ngrams.learned(conversations, said)
        assert sum(map(sum, masks)) == 2 * len(said.exchanges(twice)[0].reply)


def test_n_grams_of_replies_learn_no_prompt_and_see_it_before_them(measured: Measure) -> None:
    """Single tokens are as good as those of the replies alone; that a reply follows a prompt is what trigrams know."""
    prompts = [turns(f"{asked} {'times ' * 30}", reply) for asked, reply in (("fox", "the dog"), ("tale", "of cities"))]
    asked = [Conversation("t", turns("a tale", "of cities"), "t"), Conversation("u", turns("a fox", "the dog"), "u")]
    short = [turns(messages[0]["content"].split()[0], messages[1]["content"]) for messages in prompts]
    assert measured(of(prompts), asked).reports["unigram"] == measured(of(short), asked).reports["unigram"]
    by_prompt = measured(of([turns("tale", "of cities"), turns("fox", "the dog")] * 5), asked).reports["trigram"]
    without = measured(of([turns("and", "of cities"), turns("and", "the dog")] * 5), asked).reports["trigram"]
    assert by_prompt["perplexity"] < without["perplexity"]


def test_n_grams_count_the_tokens_of_their_mask_after_whatever_stands_before() -> None:
    table = NGrams([[3, 1, 2]], 4, 0, 2, [[False, True, True]])
    one = (1 + 2 / 4) / (2 + 2)  # p(1): one of two, two different tokens, uniform over four below
    assert NGrams([[3, 1, 2]], 4, 0, 1, [[False, True, True]]).distribution([])[1] == pytest.approx(one)
    assert math.exp(-table.nats([3, 1])[1]) == pytest.approx((1 + one) / (1 + 1))
    assert table.distribution([0])[3] == pytest.approx(NGrams([[1, 2]], 4, 0, 1).distribution([])[3])


LONG = [Conversation("t", turns("a tale of the fox", "it was the best of times. " * 12), "t")]


def test_what_the_window_cut_is_counted_and_its_bytes_do_not_count(measured: Measure) -> None:
    whole, cut = measured(of(TRAIN), LONG), measured(of(TRAIN), LONG, 24)
    assert whole.counts == {"prompts_cut": 0, "replies_cut": 0, "replies_empty": 0}
    assert cut.counts == {"prompts_cut": 1, "replies_cut": 1, "replies_empty": 0}
    assert 24 < cut.bytes[0] < whole.bytes[0] / 3
    for name in ("", "unigram", "trigram"):  # a byte of the same words costs about as much
        bits = [one.reports[name]["bits_per_byte"] for one in (whole, cut)]
        assert bits[0] == pytest.approx(bits[1], rel=0.2)


def test_a_champion_of_fewer_positions_does_not_win_by_what_it_was_not_asked(measured: Measure, tmp_path: Path) -> None:
    ours = measured(of(TRAIN), LONG)
    lines = [{"id": "t", "bits": bits, "bytes": size} for bits, size in zip(ours.bits, ours.bytes, strict=True)]
    (tmp_path / "predicted").mkdir()
    replies.write_lines(tmp_path / "predicted" / "predictions.jsonl", lines)
    attempt = data_attempts.attempt(tmp_path, {}, {}, {"predictions": tmp_path / "predicted"})
    found = replies.compared(attempt, export(tmp_path / "champion", 24) / "export", LONG)
    assert found["champion"] == pytest.approx(found["challenger"], rel=0.2)
    assert found["gain"] == pytest.approx(found["champion"] - found["challenger"], abs=2e-6)


def test_the_prompts_that_lost_their_beginning_when_they_were_answered_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answered(attempt: Attempt, function: str, export: Path | None = None, **job: Any) -> Any:
        asked = Examples(Path(job["prompts"]))
        replies.write_lines(Path(job["output"]), [{"text": "the dog"} for _ in range(len(asked))])
        return {"prompts": len(asked), "cut": 1}

    monkeypatch.setattr(replies, "compute", answered)
    attempt = data_attempts.attempt(tmp_path, {}, {}, {"export": export(tmp_path / "model", 24)})
    asked = [replies.Asked(turns("the fox " * times), ["the dog"], "t") for times in (1, 20)]
    counts = replies.answered(attempt, of(TRAIN), asked, ("frequent",)).counts
    assert (counts["asked"], counts["asked_prompts_cut"]) == (2, 1)
    told = list(replies.cut_told(counts | {"prompts_cut": 0, "replies_cut": 0}))
    assert told == ["cut to the window: 0 prompts and 0 replies; of 2 prompts that were answered 1"]
    nothing = counts | {"prompts_cut": 0, "replies_cut": 0, "asked_prompts_cut": 0}
    assert not list(replies.cut_told(nothing)) and list(replies.cut_told(nothing | {"replies_cut": 1}))


def test_the_replies_that_a_dialogue_model_is_asked_for_come_from_all_conversations(tmp_path: Path) -> None:
    """A long conversation first, and two views of each: what is asked for is as much of each as there can be."""
    held = [
        Conversation(f"{group}{view}", turns(*(f"{group} {view} {turn}" for turn in range(length))), group)
        for group, length in (("a", 60), ("b", 10), ("c", 4), ("d", 20))
        for view in (0, 1)
    ]
    every = list(dialogue._asked(held))
    chosen = dialogue.spread(every, 24)
    counts = Counter(one.group for one in chosen)
    assert counts["c"] == 4 and sorted(counts.values()) == [4, 6, 7, 7], "c has no more"
    assert chosen == dialogue.spread(every, 24) == [one for one in every if one in chosen]
    assert max(len(one.messages) for one in chosen if one.group == "a") > 14, "not the first ones"
    assert dialogue.spread(every, 999) == every


def test_the_beginnings_that_are_continued_come_from_all_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a play's twenty documents and two others', three are continued: one of each."""

    def answered(attempt: Attempt, function: str, prompts: str, output: str, **_: Any) -> None:
        lines = [json.dumps({"text": "and so on"}) + "\n"] * len(Examples(Path(prompts)))
        durable.write_bytes(Path(output), "".join(lines).encode())

    monkeypatch.setattr(text, "compute", answered)
    monkeypatch.setattr(text, "_CONTINUED", 3)
    folder = export(tmp_path / "model", 16)
    held = [
        Text(f"{group}{number}", f"{group} {number} {tiny.TEXT}", group)
        for group, several in (("a", 20), ("b", 1), ("c", 1))
        for number in range(several)
    ]
    rows = text.documents(held, folder / "export")
    table = NGrams([row[1:] for row in rows], 500, rows[0][0], 3)
    attempt = data_attempts.attempt(tmp_path, {}, {}, {"export": folder})
    text._continuations(attempt, held, rows, table, {})
    samples = durable.read_json(attempt.outputs / "samples.json")
    assert [one["prompt"][0] for one in samples] == ["a", "b", "c"]


def test_a_reply_of_reserved_tokens_alone_is_refused_where_it_would_be_learned_and_counted_where_it_is_held_out(
    measured: Measure, tmp_path: Path
) -> None:
    empty = Conversation("e1", turns("and?", "a tale", "and?", "<|endoftext|> <|endoftext|>"), "e1")
    tiny.write_tokenizer(tmp_path / "tokenizer")
    (tmp_path / "scratch").mkdir()
    with pytest.raises(ValueError, match=r"example e1: reply 2 is '<\|endoftext\|> <\|endoftext\|>', reserved tokens"):
        replies.job([empty], tmp_path / "tokenizer", 64, tmp_path / "scratch", several_turns=True)
    stopped_by = replies.encode([empty], tmp_path / "tokenizer", 64, tmp_path / "validation.arrow")
    assert stopped_by["examples"] == 1, "early stopping reads what is held out"
    counts = measured(of(TRAIN), [empty]).counts
    assert counts["replies_empty"] == 1, "held out it costs its end, and no run after its training"
    assert list(replies.cut_told(counts | {"asked": 2, "asked_prompts_cut": 0})) == [
        "1 held-out replies are reserved tokens of the tokenizer and nothing else"
    ]


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("default", {"kind": "classification", "version": 2}),
        ("cloze", {"kind": "span", "window": 192, "stride": 96, "plain": True}),
        ("translation", {"kind": "response", "version": 4}),
        ("dialogue", {"kind": "dialogue", "version": 4}),
        ("generation", {"kind": "text", "version": 4}),
    ],
)
def test_what_a_form_measures_has_a_version_of_its_own_which_no_other_step_knows(
    name: str, config: dict[str, Any]
) -> None:
    made = {step.name: step.config for step in flow.build(recipes.load(name), lambda source: [])}
    assert made["evaluate-task"] == config
    others = made.keys() - {"evaluate-task", "prepare_task"}  # the latter has the version of its task's own code
    assert others and all("version" not in made[other] for other in others)


def test_a_model_is_let_say_as_much_as_nearly_all_training_replies_and_half_its_positions(tmp_path: Path) -> None:
    folder = export(tmp_path / "model", 200) / "export"
    said = Chat(folder)
    sizes = [len(said.exchanges(turns("and?", "the dog " * times))[0].reply) for times in range(1, 101)]
    known = of([turns("and?", "the dog " * times) for times in (*[1] * 50, *range(2, 12))])
    assert replies.longest_reply(known, folder) == sizes[9], "all but the longest"
    assert replies.longest_reply(of([turns("and?", "the dog " * 100)]), folder) == 100 < sizes[99]
