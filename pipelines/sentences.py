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

import re

RULES = 1  # raised when the rules change: it is part of the key of each token shard that has sentences
ABBREVIATIONS = (b"Mr", b"Mrs", b"Ms", b"Dr", b"Prof", b"St", b"Jr", b"Sr", b"vs", b"No", b"Gen", b"Gov", b"Sen", b"Rep")

_CLOSING = rb"""(?:["')\]]|\xe2\x80[\x99\x9d])*"""  # " ' ) ] and the curly ones
_CLOSING_WIDE = rb"""(?:["')\]]|\xe2\x80[\x99\x9d]|\xe3\x80[\x8d\x8f\x8b]|\xef\xbc\x89)*"""  # also 」 』 》 ）
_END = re.compile(
    rb"(?:(?<![A-Za-z])[A-Z]|\b(?:" + rb"|".join(ABBREVIATIONS) + rb"))\.(?=\s)"  # no end: an initial, a title
    rb"|(?P<end>"
    rb"(?:[.!?]|\xe2\x80\xa6)+" + _CLOSING + rb"(?=\s+[^\sa-z])"
    rb"|(?:\xe3\x80\x82|\xef\xbc\x81|\xef\xbc\x9f|\xe2\x80\xa6)+" + _CLOSING_WIDE + rb"(?=\s*\S)"
    rb"|(?<=\S)(?=[^\S\n]*\n[^\S\n]*\n\s*\S))"
)  # fmt: skip


def starts(document: bytes) -> list[int]:
    """The byte at which each sentence of a document (UTF-8) begins, ascending; the first is 0."""
    found = [0]
    for match in _END.finditer(document):
        end = match.end("end")
        if match.group("end") is not None and end > found[-1]:
            found.append(end)
    return found
