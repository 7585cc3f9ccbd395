"""Generation: documents of any corpus in, a model that goes on writing them out: continued pre-training.

The one idea: a document is a stretch of text cut at a paragraph's end (pipelines/documents.py), and consecutive documents
of a file belong together, so what is held out is a whole stretch of them: a page and the next one share their words. A
stretch is known by its first document, so another file, or more at the end of one, changes the side of nothing.

Data: plain text and Markdown files, or records with a `text` column.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from pipelines.documents import cut, normalise_newlines
from pipelines.sources import known_format
from pipelines.tasks.examples import (
    SPLITS,
    Prepared,
    Text,
    divided,
    identifier,
    normalised,
    refuse_empty,
    summary,
    without_repeats,
)
from pipelines.tasks.user_data import records

LANGUAGE = ""  # who gives the data knows
FORM = "text"
VERSION = 2  # the first knew a stretch by the number of its file, which another file changes
_STRETCH = 4  # consecutive documents of a file that are on one side
_PLAIN = ("txt", "md")


def prepare(
    files: Sequence[Path],
    validation: float,
    test: float,
    document_bytes: int = 2048,
    text_column: str = "text",
    group_column: str = "",
) -> Prepared:
    """Documents of at most `document_bytes` bytes, split by stretches of them, or by the group column of records.

    ValueError names file, line and field of what cannot be used.
    """
    found = []
    for path in files:
        stretch = ""
        for place, (group, text) in enumerate(_texts(path, document_bytes, text_column, group_column)):
            stretch = stretch if place % _STRETCH else identifier(text)
            found.append(Text(identifier(text), text, group or stretch))
    unique, report = without_repeats(divided(found, validation, test), lambda one: normalised(one.text))
    refuse_empty(unique, files)
    return Prepared(unique, report | {"rows": len(found), "splits": {name: summary(unique[name]) for name in SPLITS}})


def _texts(path: Path, limit: int, text_column: str, group_column: str) -> Iterator[tuple[str, str]]:
    """The documents of a file, each with its group if there is a column for it."""
    if known_format(path) not in _PLAIN:
        for record in records([path]):
            group = record.name(group_column, "group_column") if group_column else ""
            for text in _documents(record.text(text_column, "text_column").encode(), limit, record.place):
                yield group, text
    else:
        for text in _documents(path.read_bytes(), limit, str(path)):
            yield "", text


def _documents(data: bytes, limit: int, place: str) -> Iterator[str]:
    for _, document in cut(normalise_newlines([data]), limit):
        try:
            if document.strip():
                yield document.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{place}: not UTF-8 ({error}); convert the file to UTF-8") from error
