"""Figures of generated texts: sacrebleu's own, SQuAD's official ones, and intervals over groups; n-grams that sum to one."""

from __future__ import annotations

import math
import random
from functools import cache
from typing import Any

import numpy as np
import pytest

from pipelines.tasks import answer_baselines, generation_metrics, intervals
from pipelines.tasks.ngram import NGrams

WORDS = [
    "a",
    "tool",
    "to",
    "edit",
    "the",
    "fast",
    "file",
    "system",
    "for",
    "python",
    "and",
    "its",
    "library",
    "with",
    "documentation",
]


def corpus(size: int = 60) -> tuple[list[str], list[list[str]], list[str]]:
    """Texts, one or two references each, and their groups."""
    chance = random.Random(0)
    references = [
        [" ".join(chance.choices(WORDS, k=chance.randint(3, 9))) for _ in range(chance.randint(1, 2))]
        for _ in range(size)
    ]
    texts = [
        " ".join(word for word in chance.choice(several).split() if chance.random() < 0.8) for several in references
    ]
    return texts, references, [str(place // 4) for place in range(size)]


def columns(references: list[list[str]]) -> Any:
    """The first reference of each text, then the second: as sacrebleu takes them."""
    return [[row[place] if place < len(row) else None for row in references] for place in range(2)]


def test_bleu_and_chrf_are_sacrebleus_with_its_signature() -> None:
    import sacrebleu

    texts, references, groups = corpus()
    found = generation_metrics.report(texts, references, groups)
    right = columns(references)
    bleu, chrf = sacrebleu.corpus_bleu(texts, right), sacrebleu.corpus_chrf(texts, right)
    assert found["bleu"] == pytest.approx(bleu.score, abs=1e-6)
    assert found["chrf"] == pytest.approx(chrf.score, abs=1e-6)
    assert "tok:13a" in found["bleu_signature"] and "version:2.6" in found["bleu_signature"]
    assert "nc:6" in found["chrf_signature"]


def test_intervals_of_bleu_and_chrf_are_those_of_sacrebleu_on_the_drawn_groups_texts() -> None:
    """The same draws, made of texts here and not of sums: each group's texts as often as it is drawn, scored as a corpus."""
    import sacrebleu

    texts, references, groups = corpus(20)
    names = sorted(set(groups))
    drawn = np.random.default_rng(0).multinomial(len(names), [1 / len(names)] * len(names), size=1000).tolist()

    @cache
    def scores(times: tuple[int, ...]) -> tuple[float, float]:
        chosen = [i for i, group in enumerate(groups) for _ in range(times[names.index(group)])]
        said, right = [texts[i] for i in chosen], columns([references[i] for i in chosen])
        return sacrebleu.corpus_bleu(said, right).score, sacrebleu.corpus_chrf(said, right).score

    expected = np.quantile([scores(tuple(times)) for times in drawn], [0.025, 0.975], axis=0)  # (2, 2)
    found = generation_metrics.report(texts, references, groups)
    for place, name in enumerate(("bleu", "chrf")):
        assert found[f"{name}_interval_by_group"] == pytest.approx(expected[:, place].tolist(), abs=1e-5)


def test_intervals_hold_the_figure_and_repeat_exactly() -> None:
    texts, references, groups = corpus()
    found = generation_metrics.report(texts, references, groups)
    assert found == generation_metrics.report(texts, references, groups)
    for name in ("bleu", "chrf", "exact_match", "f1"):
        low, high = found[f"{name}_interval_by_group"]
        assert low <= found[name] <= high
        assert high > low
    one_each = generation_metrics.report(texts, references, [str(place) for place in range(len(texts))])
    assert one_each["bleu"] == found["bleu"]


def test_differences_are_paired_by_the_groups_that_are_drawn() -> None:
    """The same as when each text's figure is computed of the drawn groups, and narrower than two intervals side by side."""
    import sacrebleu

    texts, references, groups = corpus()
    worse = [text.rsplit(" ", 1)[0] for text in texts]
    drawn: dict[str, generation_metrics.Drawn] = {"": {}, "worse": {}}
    reports = {
        name: generation_metrics.report(said, references, groups, drawn[name])
        for name, said in (("", texts), ("worse", worse))
    }
    found = generation_metrics.against(reports, drawn)["worse"]
    assert found.keys() == {"bleu", "chrf", "exact_match", "f1", "repetition"}
    for metric in ("bleu", "chrf", "f1"):
        one = found[metric]
        assert one["low"] < one["difference"] < one["high"] and one["low"] > 0, "each is worse by its last word"
        assert one["difference"] == pytest.approx(reports[""][metric] - reports["worse"][metric], abs=1e-5)
        low, high = reports[""][f"{metric}_interval_by_group"]
        assert one["high"] - one["low"] < high - low
    first = intervals.drawn_sums(np.eye(len(set(groups))))[0]  # how often each group is drawn
    places = [place for place, group in enumerate(groups) for _ in range(int(first[sorted(set(groups)).index(group)]))]
    columns: Any = [
        [row[i] if i < len(row) else None for row in (references[place] for place in places)] for i in range(2)
    ]
    scores = [sacrebleu.corpus_chrf([said[place] for place in places], columns).score for said in (texts, worse)]
    ours, theirs = (drawn[name]["chrf"][0] for name in drawn)
    assert ours - theirs == pytest.approx(scores[0] - scores[1], abs=1e-9)
    assert generation_metrics.report(texts, references, groups) == reports[""], "what is drawn changes no report"


@pytest.mark.parametrize(
    ("text", "references", "exact", "f1"),
    [  # what SQuAD's evaluate-v1.1.py gives
        ("The Eiffel Tower!", ["eiffel tower"], 1, 1.0),
        ("in Paris, France", ["Paris"], 0, 0.5),
        ("an apple a day", ["the apple day", "night"], 1, 1.0),
        ("", ["Paris"], 0, 0.0),
        ("the cat cat sat", ["cat sat down"], 0, 4 / 6),
        ("U.S.", ["US", "America"], 1, 1.0),
    ],
)
def test_exact_match_and_f1_are_those_of_the_official_script(
    text: str, references: list[str], exact: int, f1: float
) -> None:
    assert generation_metrics.exact_match(text, references) == exact
    assert generation_metrics.token_f1(text, references) == pytest.approx(f1)


def test_distinct_counts_different_n_grams_and_repetition_those_that_come_again() -> None:
    assert generation_metrics.distinct([["a", "b", "a"], ["b"]], 1) == 2 / 4
    assert generation_metrics.distinct([["a", "b", "a", "b"]], 2) == 2 / 3
    assert generation_metrics.distinct([["a"]], 2) == 0
    assert generation_metrics.repeated(["a", "b", "c", "d", "a", "b", "c", "d", "a"]) == (2, 6)
    assert generation_metrics.repeated(["a", "b"]) == (0, 0)


def test_who_says_less_is_not_more_varied_for_it() -> None:
    long = ["a b c d a b c d", "e f e f"]
    said = {"": long, "brief": ["a b c d", "e f"], "same": long}
    found = generation_metrics.diversity(said, str.split)
    assert found == {name: {"distinct_1": 1.0, "distinct_2": 1.0} for name in said}, "each cut to four and two words"
    alone = generation_metrics.diversity({"": long}, str.split)[""]
    assert alone == {"distinct_1": 0.5, "distinct_2": round(6 / 10, 6)}
    silent = generation_metrics.diversity({"": ["a a", "b"], "brief": ["", "b"]}, str.split)
    assert silent[""] == silent["brief"] == {"distinct_1": 1.0, "distinct_2": 0.0}


def test_characters_are_words_where_no_spaces_part_them() -> None:
    right = ["我很高兴见到你", "今天天气很好"]
    words = generation_metrics.words_by(right)
    assert words("我 很") == ["我", "很"] and generation_metrics.words_by(["I am glad"]) is str.split
    looping = generation_metrics.report(["我很高兴" * 12, "好"], [[one] for one in right], ["a", "b"])
    assert looping["repetition"] > 0.9 and looping["words"] == (48 + 1) / 2
    near = generation_metrics.report(["我很高兴见到你", "今天气很好"], [[one] for one in right], ["a", "b"])
    assert near["f1"] == pytest.approx((1 + 2 * 5 / 11) / 2, abs=1e-6)
    assert near["bleu"] > 50 and "tok:char" in near["bleu_signature"]


def test_of_one_group_there_is_no_interval() -> None:
    one = generation_metrics.ratio("f1", [1, 0, 1], [1, 1, 1], ["a", "a", "a"])
    assert one == {"f1": 0.666667, "f1_interval_by_group": None}
    assert generation_metrics.difference([1, 0], [0, 0], ["a", "a"]) == {"gain": 0.5, "low": None, "high": None}
    two = generation_metrics.ratio("f1", [1, 0, 1], [1, 1, 1], ["a", "b", "b"])
    assert two["f1_interval_by_group"] == [0.5, 1.0]
    drawn: dict[str, generation_metrics.Drawn] = {"": {}, "copy": {}}
    reports = {name: generation_metrics.ratio("f1", [1], [1], ["a"], drawn=drawn[name]) for name in drawn}
    assert generation_metrics.against(reports, drawn) == {
        "copy": {"f1": {"difference": 0.0, "low": None, "high": None}}
    }


def test_perplexity_is_a_token_and_bits_are_a_byte() -> None:
    found = generation_metrics.likelihood([2.0, 4.0], [2, 4], [10, 20], ["a", "b"])
    assert found["perplexity"] == pytest.approx(math.e, abs=1e-6)
    assert found["bits_per_byte"] == pytest.approx(6 / 30 / math.log(2), abs=1e-6)


def test_as_many_references_as_texts_are_needed() -> None:
    with pytest.raises(ValueError, match="2 texts, 1 lists of references and 2 groups"):
        generation_metrics.report(["a", "b"], [["a"]], ["x", "y"])


@pytest.mark.parametrize("order", [1, 2, 3])
def test_every_distribution_of_the_n_grams_sums_to_one(order: int) -> None:
    chance = np.random.default_rng(0)
    table = NGrams([chance.integers(0, 9, 50) for _ in range(4)], 11, 10, order)
    for history in ([], [3], [3, 4], [9, 9, 1], [10, 10], [0, 10]):  # token 10 never occurs, 9 neither
        share = table.distribution(history)
        assert share.sum() == pytest.approx(1)
        assert (share > 0).all()


def test_witten_bell_by_hand() -> None:
    table = NGrams([[0, 1, 0, 1, 1]], 3, 2, order=2)
    one = (3 + 2 / 3) / (5 + 2)  # p(1): three of five, two different tokens, uniform over three below
    assert table.distribution([])[1] == pytest.approx((0 + 1 * one) / (1 + 1))  # after the start came 0 only
    assert table.distribution([0])[1] == pytest.approx((2 + 1 * one) / (2 + 1))
    assert table.distribution([2])[1] == pytest.approx((0 + 1 * one) / (1 + 1))
    assert table.nats([0, 1]).tolist() == pytest.approx(
        [-math.log(table.distribution([])[0]), -math.log(table.distribution([0])[1])]
    )


def test_n_grams_learn_what_they_see_and_continue_a_prompt_the_same_way_again() -> None:
    row = [1, 2, 3, 4] * 20
    table = NGrams([row], 6, 0)
    assert table.nats(row).mean() < 0.2 < NGrams([row], 6, 0, 1).nats(row).mean()
    assert table.continued([1, 2], 8, seed=1, end=0) == [3, 4, 1, 2, 3, 4, 1, 2]
    varied = NGrams([np.random.default_rng(0).integers(0, 6, 99)], 6, 0)
    found = [varied.continued([1, 2], 12, seed=seed, end=0) for seed in (1, 1, 2)]
    assert found[0] == found[1] != found[2]
    assert all(len(row) <= 12 and 0 not in row for row in found)


PAIRS = [
    ("the house", "la casa"),
    ("the book", "il libro"),
    ("the red house", "la casa rossa"),
    ("a book", "un libro"),
    ("a house", "una casa"),
]


def test_the_dictionary_learns_which_word_means_which() -> None:
    found = answer_baselines.dictionary(PAIRS, ["House, book!", "an unknown word"])
    assert found == ["casa, libro!", "an unknown word"]


def test_the_dictionary_learns_from_all_pairs_but_long_ones_as_far_as_memory_goes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    late = [("a house", "una casa")] * 40_000 + [("the sea", "il mare")] * 3
    assert answer_baselines.dictionary(late, ["sea"]) == ["il"], "40,000 pairs are not all"
    assert len(answer_baselines.teaching([*PAIRS, ("word " * 41, "parola"), ("", "niente")])) == len(PAIRS) + 1
    monkeypatch.setattr(answer_baselines, "_LINKS", 8)
    assert answer_baselines.teaching(PAIRS) == [(["the", "house"], ["la", "casa"]), (["the", "book"], ["il", "libro"])]


def test_simple_answers_are_the_prompt_the_commonest_and_that_of_the_nearest_prompt() -> None:
    train = [*PAIRS, ("another house", "la casa")]
    found = answer_baselines.answers(train, ["one red house", "zzz"])
    assert found["copy"] == ["one red house", "zzz"]
    assert found["frequent"] == ["la casa"] * 2
    assert found["retrieval"] == ["la casa rossa", "la casa"]
    assert found == answer_baselines.answers(train, ["one red house", "zzz"])
