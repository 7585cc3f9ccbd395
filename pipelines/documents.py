"""Documents: text cut at paragraph ends, identified by content, sent to train or held-out by a hash of it.

The one idea: everything here works on UTF-8 bytes with newlines already normalised. Paragraph ends, line ends
and spaces are ASCII, so cutting is a search in bytes, and where a text is cut depends on nothing but the text:
not on how it arrived in blocks, in which file, or on which machine.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from itertools import chain
from mmap import mmap

ID_BYTES = 16  # of the SHA-256; 2^64 documents before two are likely to share an id
_NEWLINES = re.compile(rb"\n*")


def normalise_newlines(blocks: Iterable[bytes]) -> Iterator[bytes]:
    r"""The blocks with \r\n and \r as \n; a \r at the end of a block waits for what follows it."""
    waiting = b""
    for block in blocks:
        block = waiting + block
        waiting = b"\r" if block.endswith(b"\r") else b""
        block = block[: len(block) - len(waiting)]
        yield block.replace(b"\r\n", b"\n").replace(b"\r", b"\n") if b"\r" in block else block
    if waiting:
        yield b"\n"


def cut(blocks: Iterable[bytes], limit: int) -> Iterator[tuple[int, bytes]]:
    """Documents of at most `limit` bytes, each with the number of newlines before it.

    A document ends at the last paragraph end (an empty line) within the limit; in a longer paragraph at the last
    line end, else before the last space, else between two characters. Newlines around a document belong to none;
    every other byte belongs to exactly one.
    """
    if limit < 4:
        raise ValueError(f"a document of at most {limit} bytes may have no room for a character; choose 4 and more")
    rest, line = b"", 0
    for block in chain(blocks, (None,)):
        rest, position = rest + (block or b""), 0
        while True:
            start = _NEWLINES.match(rest, position).end()  # type: ignore[union-attr]  # matches nothing at least
            line, position = line + start - position, start
            # A document's longest extent and the paragraph end after it must be in sight, or cuts would follow blocks.
            if start == len(rest) or (block is not None and len(rest) - start < limit + 2):
                break
            position = _end(rest, start, limit)
            yield line, rest[start:position].rstrip(b"\n")
            line += rest.count(b"\n", start, position)
        rest = rest[position:]


def _end(text: bytes, start: int, limit: int) -> int:
    """Where the document that begins at `start` ends."""
    if len(text) - start <= limit:
        return len(text)
    for separator in (b"\n\n", b"\n", b" "):
        found = text.rfind(separator, start + 1, start + limit + len(separator))
        if found > 0:
            return found
    return character_start(text, start + limit)


def character_start(text: bytes | mmap, position: int) -> int:
    """The last position not after `position` at which a UTF-8 character starts (or `position`, in other bytes)."""
    for start in range(position, max(position - 4, 0), -1):
        if text[start] & 0xC0 != 0x80:
            return start
    return position


def content_hash(document: bytes) -> bytes:
    """The SHA-256 (32 bytes) that identifies a document: its first 16 bytes are the id, others choose the split."""
    return hashlib.sha256(document).digest()


def is_heldout(content: bytes, fraction: float) -> bool:
    """Whether a document belongs to the held-out part, by bytes 16 to 24 of its content hash."""
    return int.from_bytes(content[16:24], "big") < fraction * 2.0**64
