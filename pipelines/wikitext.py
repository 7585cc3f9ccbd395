"""Wikitext: an encyclopedia's own markup to its paragraphs of prose.

The one idea: what is prose stands in a line of its own, without a mark at its beginning. Headings, lists, tables and boxes
go; a link becomes its words; what cannot be read without a template's program (a pronunciation, a map) is left out.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator

_PAGE = re.compile(r"<title>([^<]*)</title>.*?<text[^>]*>([^<]*)</text>", re.DOTALL)
_APART = re.compile(
    r"<!--.*?-->|<ref[^>]*/>|<(ref|math|gallery|timeline|code|pre|table)\b.*?</\1>|\{\|.*?\n\|\}", re.DOTALL
)
_MEASURE = re.compile(r"\{\{(?:convert|cvt)\|([\d.,]+)\|([^|{}]+)[^{}]*\}\}")
_TEMPLATE = re.compile(r"\{\{[^{}]*\}\}")
_PICTURE = re.compile(r"\[\[(?:File|Image|Category|[a-z-]{2,12}):(?:[^\[\]]|\[\[[^\[\]]*\]\])*\]\]")
_LINK = re.compile(r"\[\[(?:[^\[\]|]*\|)?([^\[\]|]*)\]\]")
_OUTSIDE = re.compile(r"\[https?://\S+ ?([^\]]*)\]")
_TAG = re.compile(r"<[^<>]+>|'{2,}|__[A-Z]+__")
_EMPTY = re.compile(r"\(\s*[,;:\s]*\)")
_NO_PROSE = ("=", "*", "#", ":", ";", "|", "!", "{", "}", "[", "-")
_SHORTEST = 80  # characters of a paragraph


def articles(dump: str) -> Iterator[tuple[str, str]]:
    """Title and prose of each article of a dump (XML) that is not only a redirection, paragraphs parted by an empty line."""
    for title, text in _PAGE.findall(dump):
        prose = "\n\n".join(paragraphs(html.unescape(html.unescape(text))))
        if prose and not text.lstrip().lower().startswith("#redirect"):
            yield html.unescape(title), prose


def paragraphs(wikitext: str) -> Iterator[str]:
    """The paragraphs of prose of one article."""
    text = _MEASURE.sub(r"\1 \2", _APART.sub("", wikitext))
    while (fewer := _TEMPLATE.sub("", text)) != text:  # from the innermost outwards
        text = fewer
    text = _OUTSIDE.sub(r"\1", _LINK.sub(r"\1", _PICTURE.sub("", text)))
    for line in _TAG.sub("", text).split("\n"):
        paragraph = " ".join(_EMPTY.sub("", line).split()).replace(" ,", ",").replace(" .", ".").replace("( ", "(")
        if len(paragraph) >= _SHORTEST and not paragraph.startswith(_NO_PROSE):
            yield paragraph
