"""The corpus: the documents of source stretches, each with its identity and where it came from.

The one idea: reading (`records.py`) and cutting (`documents.py`) meet here, and nowhere else, so that the shards
and the tokenizer are made of the very same documents.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pipelines.documents import ID_BYTES, content_hash, cut
from pipelines.records import Reject, read, undecodable
from pipelines.sources import SourceError
from pipelines.stretches import Stretch


@dataclass(frozen=True, slots=True)
class Document:
    """A document: its text, the same as UTF-8, its content hash (32 bytes), and `label:digest:line` of its origin.

    A text of nothing but white space comes as a document with empty `utf8`, so that it can be counted.
    """

    text: str
    utf8: bytes
    content: bytes
    source: str

    @property
    def id(self) -> str:
        """The document's id: 32 hex digits."""
        return self.content[:ID_BYTES].hex()


def documents(stretch: Stretch, limit: int) -> Iterator[Document | Reject]:
    """The documents of a stretch, of at most `limit` bytes each, and the records that gave none."""
    for text in read(stretch):
        if isinstance(text, Reject):
            yield text
            continue
        count = 0
        for count, (newlines, utf8) in enumerate(cut(text.blocks, limit), 1):
            line = text.line + newlines if text.spans_lines else text.line
            part = f".{count}" if count > 1 and not text.spans_lines else ""
            yield _document(utf8, line, f"{stretch.name}:{line}{part}")
        if count == 0:
            yield Document("", b"", b"", f"{stretch.name}:{text.line}")


def _document(utf8: bytes, line: int, source: str) -> Document | Reject:
    try:
        text = utf8.decode("utf-8")
    except UnicodeDecodeError as error:
        return undecodable(utf8, line, error)
    if not text.strip():
        return Document("", b"", b"", source)
    return Document(text, utf8, content_hash(utf8), source)


def refuse(reject: Reject, stretch: Stretch) -> None:
    """SourceError for a bad record, unless its source says that bad records are skipped."""
    if stretch.file.on_bad_record == "fail":
        shown = f"; it begins {reject.excerpt[:80]!r}" if reject.excerpt else ""
        raise SourceError(
            f"{stretch.file.path}:{reject.line}: {reject.reason}{shown}. Mend it, or set on_bad_record='skip' to count "
            "such records, keep them in rejects.jsonl and go on"
        )
