"""Sentences: where each one of a document begins, by rules that fit on this page.

The one idea: a sentence is what a reader of the raw text would end with a full stop, found by one regular expression
over the UTF-8 bytes. Nothing is learned and no language is guessed, so that equal text has equal sentences for ever.

A sentence ends

- after `.`, `!`, `?` or an ellipsis, with the closing quotes and brackets that follow, where white space comes next and
  after it anything but a small ASCII letter. Not after an initial (`J. Smith`) or a title (`Mr.`, `Dr.`, `vs.`; ABBREVIATIONS);
- after a full stop, exclamation or question mark of Chinese and Japanese (`。！？`), with closing quotes and brackets: no
  white space is needed;
- at an empty line, which ends a paragraph.

A line's end alone ends none: text that was wrapped by hand has one in the middle of its sentences. The white space
between two sentences belongs to the second one, as a byte-level tokenizer's words have theirs in front.
"""

from __future__ import annotations

import itertools
import re

RULES = 1  # raised when the rules change: it is part of the key of each token shard that has sentences
ABBREVIATIONS = (
    b"Mr",
    b"Mrs",
    b"Ms",
    b"Dr",
    b"Prof",
    b"St",
    b"Jr",
    b"Sr",
    b"vs",
    b"No",
    b"Gen",
    b"Gov",
    b"Sen",
    b"Rep",
)

_CLOSING = rb"""(?:["')\]]|\xe2\x80[\x99\x9d])*"""  # " ' ) ] and the curly ones
_WIDE = rb"(?:\xe3\x80\x82|\xef\xbc[\x81\x9f]|\xe2\x80\xa6)*"  # 。 ！ ？ …
_CLOSING_WIDE = rb"""(?:["')\]]|\xe2\x80[\x99\x9d]|\xe3\x80[\x8d\x8f\x8b]|\xef\xbc\x89)*"""  # also 」 』 》 ）
# It begins with a set of bytes, so that the search skips what cannot end a sentence: ten times as fast.
_END = re.compile(
    rb"[.!?\n\xe2\xe3\xef](?:"
    rb"(?<=[.!?])(?:[.!?]|\xe2\x80\xa6)*" + _CLOSING + rb"(?=\s+[^\sa-z])"
    rb"|(?<=\xe2)\x80\xa6(?:\xe2\x80\xa6" + _WIDE + _CLOSING_WIDE + rb"(?=\s*\S)|" + _CLOSING + rb"(?=\s+[^\sa-z]))"
    rb"|(?:(?<=\xe3)\x80\x82|(?<=\xef)\xbc[\x81\x9f])" + _WIDE + _CLOSING_WIDE + rb"(?=\s*\S)"
    rb"|(?<=\n)[^\S\n]*\n\s*(?=\S))"
)  # fmt: skip
_NO_END = re.compile(rb"(?:^|[^A-Za-z])(?:[A-Z]|" + rb"|".join(ABBREVIATIONS) + rb")$")
_LONGEST = 1 + max(map(len, ABBREVIATIONS))


def split(text: str) -> list[str]:
    """The sentences of a text, without the white space around them."""
    data = text.encode()
    pieces = (data[begin:end].decode() for begin, end in itertools.pairwise([*starts(data), len(data)]))
    return [piece.strip() for piece in pieces if piece.strip()]


def starts(document: bytes) -> list[int]:
    """The byte at which each sentence of a document (UTF-8) begins, ascending; the first is 0."""
    found = [0]
    for match in _END.finditer(document):
        begin, end = match.span()
        if document[begin] == 0x0A:  # an empty line: what is white before it belongs to what follows
            end = len(document[:begin].rstrip()) if document[begin - 1 : begin].isspace() else begin
        elif match.group() == b"." and _NO_END.search(document[max(0, begin - _LONGEST) : begin]):
            continue
        if end > found[-1]:
            found.append(end)
    return found
