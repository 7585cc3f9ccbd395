"""Cutting text: at the best place there is, whatever the blocks it arrives in, without losing a byte."""

from __future__ import annotations

import random

import pytest

from pipelines.documents import content_hash, cut, is_heldout, normalise_newlines


def pieces(text: str, limit: int, block: int = 1 << 20) -> list[str]:
    data = text.encode()
    return [
        part.decode() for _, part in cut([data[start : start + block] for start in range(0, len(data), block)], limit)
    ]


def test_documents_end_at_the_last_paragraph_end_that_fits() -> None:
    assert pieces("aa aa\n\nbb bb\n\ncc cc\n", 12) == ["aa aa\n\nbb bb", "cc cc"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one two\nthree four\nfive", ["one two", "three four", "five"]),  # lines
        ("one two three four five", ["one two", " three four", " five"]),  # spaces
        ("abcdefghijklmnopqrstuvwx", ["abcdefghijkl", "mnopqrstuvwx"]),  # characters
        ("äöüäöüäöüäöü", ["äöüäöü", "äöüäöü"]),  # of two bytes each
        ("x" + "語" * 8, ["x語語語", "語語語語", "語"]),  # of three
    ],
)
def test_a_paragraph_that_is_too_long_is_cut_at_lines_then_spaces_then_characters(
    text: str, expected: list[str]
) -> None:
    assert pieces(text, 12) == expected


def test_cuts_do_not_depend_on_the_blocks_and_lose_nothing_but_newlines() -> None:
    random.seed(0)
    text = "".join(random.choice(["word ", "längeres ", "\n", "\n\n", "語", "x" * 30, "\n\n\n"]) for _ in range(800))
    whole = pieces(text, 64)
    assert all(pieces(text, 64, block) == whole for block in (1, 7, 64, 65, 66, 67, 1000))
    assert "".join(whole).replace("\n", "") == text.replace("\n", "")
    assert max(len(part.encode()) for part in whole) <= 64


def test_each_document_knows_the_lines_before_it() -> None:
    text = b"\n\none\ntwo\n\n\nthree\n\nfour"
    assert list(cut([text], 8)) == [(2, b"one\ntwo"), (6, b"three"), (8, b"four")]


def test_all_newlines_become_one_kind_even_across_blocks() -> None:
    assert b"".join(normalise_newlines([b"a\r", b"\nb\r", b"c\n", b"d\r"])) == b"a\nb\nc\nd\n"


def test_the_split_follows_the_content_and_the_fraction() -> None:
    contents = [content_hash(b"%d" % index) for index in range(4000)]
    heldout = {index for index, content in enumerate(contents) if is_heldout(content, 0.1)}
    assert 320 < len(heldout) < 480
    assert heldout < {index for index, content in enumerate(contents) if is_heldout(content, 0.2)}


def test_documents_of_less_than_a_character_are_refused() -> None:
    with pytest.raises(ValueError, match="at most 3 bytes may have no room for a character"):
        list(cut([b"abc"], 3))
