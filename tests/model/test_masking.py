"""Masks: the rates of the paper, never a special token, and a function of (seed, place in the run) alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from model.cross_entropy import IGNORE_INDEX
from model.masking import Masking, target_counts
from model.vocabulary import Vocabulary, load
from tests.model.text import MASK, PAD, SIZE, tokenizer, vocabulary
from tests.pipelines.test_tokenizer import TEXT

ROWS, LENGTH = 400, 128
GOLDEN = [[5, 6, 8, 10, 12], [0, 6, 7, 9, 10]]
GOLDEN_WORDS = [[0, 6, 10, 11, 12], [0, 1, 9, 10, 15]]


@pytest.fixture(scope="module")
def tokens() -> np.ndarray:
    """Rows with a [CLS], some [SEP] and padding."""
    generator = np.random.default_rng(0)
    rows = generator.integers(4, SIZE, (ROWS, LENGTH))
    rows[:, 0], rows[:, 40], rows[:, -1] = 1, 2, 2
    for row, length in zip(rows[::2], generator.integers(20, LENGTH, ROWS // 2), strict=True):
        row[length - 1], row[length:] = 2, PAD
    return rows


def whole(masking: Masking, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return masking(tokens, np.arange(len(tokens)))


@pytest.mark.parametrize("whole_words", [False, True])
def test_of_fifteen_percent_four_fifths_are_hidden_a_tenth_is_random_and_a_tenth_stays(
    tokens: np.ndarray, whole_words: bool
) -> None:
    seen, targets = whole(Masking(vocabulary(), 7, whole_words=whole_words), tokens)
    chosen = targets != IGNORE_INDEX
    assert (targets[chosen] == tokens[chosen]).all() and (seen[~chosen] == tokens[~chosen]).all()
    assert chosen.sum(1).tolist() == target_counts((tokens != PAD).sum(1), 0.15).tolist()
    assert abs(chosen.sum() / (tokens != PAD).sum() - 0.15) < 0.003
    hidden, kept = (seen[chosen] == MASK).mean(), (seen[chosen] == tokens[chosen]).mean()
    assert abs(hidden - 0.8) < 0.02 and abs(kept - 0.1) < 0.015 and abs(1 - hidden - kept - 0.1) < 0.015
    others = seen[chosen & (seen != MASK) & (seen != tokens)]
    assert others.min() >= 4 and len(np.unique(others)) > 0.4 * min(SIZE, len(others))


@pytest.mark.parametrize("whole_words", [False, True])
def test_special_tokens_are_never_hidden(tokens: np.ndarray, whole_words: bool) -> None:
    seen, targets = whole(Masking(vocabulary(), 7, 0.5, whole_words), tokens)
    special = tokens < 4
    assert (targets[special] == IGNORE_INDEX).all() and (seen[special] == tokens[special]).all()


def test_a_mask_depends_on_seed_and_place_in_the_run_and_not_on_the_rows_beside_it(tokens: np.ndarray) -> None:
    masking, places = Masking(vocabulary(), 7), np.arange(ROWS)
    seen, targets = masking(tokens, places)
    for rows in (slice(0, 1), slice(17, 40), slice(ROWS - 3, ROWS)):
        again = masking(tokens[rows], places[rows])
        assert np.array_equal(again[0], seen[rows]) and np.array_equal(again[1], targets[rows])
    assert not np.array_equal(masking(tokens, places + ROWS)[1], targets), "another epoch hides others"
    assert not np.array_equal(replace(masking, seed=8)(tokens, places)[1], targets)


def test_every_position_is_hidden_as_often_as_any_other() -> None:
    rows = np.random.default_rng(0).integers(4, SIZE, (4000, 32))
    often = (whole(Masking(vocabulary(), 7), rows)[1] != IGNORE_INDEX).mean(0)
    assert abs(often - 5 / 32).max() < 0.03


def test_the_masks_are_the_ones_that_earlier_runs_had() -> None:
    """If this fails, runs that were begun before cannot be continued: say so in CHANGELOG.md."""
    rows = np.arange(4, 36).reshape(2, 16)
    for masking, expected in (
        (Masking(vocabulary(), 0, 0.3), GOLDEN),
        (Masking(vocabulary(), 0, 0.3, whole_words=True), GOLDEN_WORDS),
    ):
        targets = whole(masking, rows)[1]
        assert [np.flatnonzero(row != IGNORE_INDEX).tolist() for row in targets] == expected


def test_whole_words_are_hidden_whole(tokens: np.ndarray) -> None:
    facts = vocabulary()
    chosen = whole(Masking(facts, 7, whole_words=True), tokens)[1] != IGNORE_INDEX
    goes_on = ~facts.begins_word[tokens[:, 1:]] & ~facts.special[tokens[:, :-1]]
    assert goes_on.sum() > 1000
    assert (chosen[:, 1:] == chosen[:, :-1])[goes_on].all()


def test_a_row_with_nothing_but_special_tokens_has_no_target() -> None:
    rows = np.full((3, 16), 2)
    for whole_words in (False, True):
        assert (whole(Masking(vocabulary(), 7, whole_words=whole_words), rows)[1] == IGNORE_INDEX).all()


def words_of(facts: Vocabulary, ids: list[int], pieces: list[str]) -> list[str]:
    found: list[str] = []
    for token, piece in zip(ids, pieces, strict=True):
        if facts.begins_word[token] or not found:
            found.append(piece)
        else:
            found[-1] += piece
    return found


def test_words_of_a_byte_level_vocabulary_are_the_readers(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    folder = tokenizer(tmp_path / "t", TEXT, special_tokens="bert")
    facts, encoder = load(folder), Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert (facts.pad, facts.cls, facts.sep, facts.mask) == (0, 1, 2, 3)
    for text, expected in (
        ("The quickest foxes, jumping", ["The", "Ġquickest", "Ġfoxes", ",", "Ġjumping"]),
        ("naïve Äffchen", ["na\u00c3\u00afve", "Ġ\u00c3\u0126ffchen"]),
    ):
        encoded = encoder.encode(text, add_special_tokens=False)
        assert words_of(facts, encoded.ids, encoded.tokens) == expected
    encoded = encoder.encode("漢字かな", add_special_tokens=False)
    assert (
        len(words_of(facts, encoded.ids, encoded.tokens)) == 3
    )  # characters that were merged are one token, and one word


def test_a_vocabulary_without_mask_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no \[PAD\], \[CLS\], \[SEP\], \[MASK\]; .*special_tokens='bert'"):
        load(tokenizer(tmp_path / "t", TEXT))


def test_what_follows_a_special_token_begins_a_word_and_is_hidden_as_often_as_others() -> None:
    rows = np.tile([1, *[6] * 5, 2, *[6] * 5, 2], (400, 1))  # 6 goes on with a word: one before the [SEP], one after it
    often = (whole(Masking(vocabulary(), 7, 0.4, whole_words=True), rows)[1] != IGNORE_INDEX).mean(0)
    assert abs(often[1:6] - 0.5).max() < 0.1 and abs(often[7:12] - 0.5).max() < 0.1
