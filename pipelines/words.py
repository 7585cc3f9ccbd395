"""What a word is in any script: letters, digits and underscores, with the marks that stand at them.

The one idea: many scripts write vowels as marks at a letter (Devanagari, Tamil, Thai, ...: Unicode categories Mn and Mc),
and Python's `\\w` knows no marks: it would cut कि, की and कु to the same क. So a mark behind a word's character goes on
with the word. Text without such marks has the words that `\\w+` finds.

Variation selectors (in ❤️) are no marks here: they say how a sign is drawn, not what is read.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import cache

_ASTRAL = "\U00010000-\U0001ffff"
_SELECTORS = range(0xFE00, 0xFE10)


@cache
def mark() -> str:
    """A regular expression for one mark. Found out at the first need: it takes 20 ms."""
    marks = [
        code
        for code in range(0x300, 0x20000)  # beyond stand variation selectors only
        if unicodedata.category(chr(code)) in ("Mn", "Mc") and code not in _SELECTORS
    ]
    first, beyond = (_class(code for code in marks if (code > 0xFFFF) is high) for high in (False, True))
    # `re` looks up a class of the first 65,536 characters in a table, and walks through any other: so that one is asked last.
    return f"(?:[{first}]|[{_ASTRAL}](?<=[{beyond}]))"


def _class(codes: Iterable[int]) -> str:
    """Ascending characters as ranges, inside of a class."""
    ranges: list[list[int]] = []
    for code in codes:
        if ranges and ranges[-1][1] == code - 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    return "".join(f"{chr(low)}-{chr(high)}" for low, high in ranges)


@cache
def word(letter: str = r"\w") -> re.Pattern[str]:
    """What finds words of `letter`, a class of characters, and their marks."""
    return re.compile(f"{letter}+(?:{mark()}+{letter}*)*")


def have_marks(texts: Iterable[str]) -> bool:
    """Whether a word of any of the texts has a mark."""
    marked = re.compile(rf"\w{mark()}")
    return any(not text.isascii() and marked.search(text) for text in texts)
