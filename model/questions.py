"""A question and the text that holds its answer, as the windows that a BERT reads: [CLS] question [SEP] part of the text [SEP].

The one idea: training and evaluation cut a text in the same way, so a window is one function of tokens. An answer is a
stretch of characters; which tokens cover it the offsets of the tokenizer say. Torch-free.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from model.examples import window_starts

Offsets = Sequence[tuple[int, int]]  # the characters at which each token begins and ends


@dataclass(frozen=True)
class Window:
    """One row of tokens. Those of the context begin at `second`; the first of them is the context's token `start`."""

    tokens: list[int]
    second: int
    start: int
    count: int  # tokens of the context

    @property
    def token_types(self) -> list[int]:
        """The segment of each token: 0 for the question, 1 for the context."""
        return [int(place >= self.second) for place in range(len(self.tokens))]

    def place(self, span: tuple[int, int] | None) -> tuple[int, int]:
        """Where tokens first..last of the context stand in the row; (0, 0), at [CLS], if not all of them do."""
        if span is None or span[0] < self.start or span[1] >= self.start + self.count:
            return 0, 0
        return span[0] - self.start + self.second, span[1] - self.start + self.second


def windows(
    question: list[int], context: list[int], special: tuple[int, int], length: int, stride: int
) -> list[Window]:
    """The windows of at most `length` tokens, each `stride` of the context's tokens after the one before it; `special` are
    [CLS] and [SEP]. Without a stride (0) one: a longer context loses its end. A question takes at most half of a window."""
    cls, sep = special
    asked = [cls, *question[: longest_question(length)], sep]
    room = length - len(asked) - 1
    found = []
    for start in window_starts(len(context), room, stride):
        part = context[start : start + room]
        found.append(Window([*asked, *part, sep], len(asked), start, len(part)))
    return found


def longest_question(length: int) -> int:
    """Tokens of a question that a window of `length` tokens keeps."""
    return length // 2 - 2


def covering(offsets: Offsets, start: int, end: int) -> tuple[int, int] | None:
    """The first and the last token that hold any of the characters start .. end - 1; None if none does."""
    inside = [place for place, (first, last) in enumerate(offsets) if first < end and last > start and last > first]
    return (inside[0], inside[-1]) if inside else None
