"""Tokenised examples: what is written is what is read, with or without masks and labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model import durable
from model.examples import Examples, text_windows, write_examples
from model.token_shards import DamagedShard

TOKENS = [[1, 2, 3], [4], [5, 6]]
IDS = ["a", "b", "c"]


def write(path: Path, tokens: Any = TOKENS, **columns: Any) -> Examples:
    write_examples(path, tokens, IDS, tokenizer="t", vocab_size=10, eot=0, **columns)
    return Examples(path)


def test_examples_come_back_with_labels_and_masks(tmp_path: Path) -> None:
    masks = [[True, False, True], None, [False, True]]
    examples = write(tmp_path / "a.arrow", labels=[1, None, 0], loss_masks=masks)
    assert (len(examples), examples.vocab_size, examples.eot, examples.tokenizer) == (3, 10, 0, "t")
    assert examples.lengths.tolist() == [3, 1, 2]
    for index, tokens in enumerate(TOKENS):
        example = examples[index]
        assert (example.id, example.tokens.tolist(), example.label) == (IDS[index], tokens, [1, None, 0][index])
        assert (None if example.loss_mask is None else example.loss_mask.tolist()) == masks[index]


def test_labels_and_masks_may_be_left_out(tmp_path: Path) -> None:
    example = write(tmp_path / "a.arrow")[0]
    assert example.label is None and example.loss_mask is None
    assert example.tokens.dtype == np.uint16


def test_equal_examples_give_equal_bytes(tmp_path: Path) -> None:
    write(tmp_path / "a.arrow", labels=[1, 0, 1])
    write(tmp_path / "b.arrow", labels=[1, 0, 1])
    assert durable.sha256(tmp_path / "a.arrow") == durable.sha256(tmp_path / "b.arrow")


@pytest.mark.parametrize("tokens", [[[1], [], [2]], [[1], [10], [2]]])
def test_an_empty_example_and_a_foreign_id_are_refused_by_name(tmp_path: Path, tokens: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="example b is empty or has an id outside of the vocabulary of 10"):
        write(tmp_path / "a.arrow", tokens)


def test_a_mask_of_another_length_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="example c has 2 tokens but a loss mask of 3"):
        write(tmp_path / "a.arrow", loss_masks=[None, None, [True] * 3])


def test_another_file_is_no_examples(tmp_path: Path) -> None:
    (tmp_path / "a.arrow").write_bytes(b"ARROW1 perhaps")
    with pytest.raises(DamagedShard):
        Examples(tmp_path / "a.arrow")


@pytest.mark.parametrize("stride", [1, 5, 14, 15, 16, 99])
def test_windows_hold_every_token_whatever_the_stride(stride: int) -> None:
    windows = text_windows(list(range(40)), 14, stride)
    assert {token for one in windows for token in one} == set(range(40)) and {len(one) for one in windows} == {14}
    assert windows == text_windows(list(range(40)), 14, min(stride, 14))
