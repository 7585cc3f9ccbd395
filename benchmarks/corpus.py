"""Text in any amount, made from the samples: the same bytes for the same seed, and no text twice.

The one idea: paragraphs of Shakespeare and of today's conversations are drawn at random into documents of about 4 KB.
Real text also keeps bringing words that were never seen before, which is what a tokenizer's cache does not help
with; so every tenth paragraph has a word coined from the halves of two others. In 500 MB that is one word in 150.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

from model import durable
from pipelines import samples

SAMPLES = ("shakespeare", "conversations")
FILE_BYTES = 32 << 20  # of one file of the corpus
PARAGRAPHS = 40  # in a document
COINED = 0.1  # share of paragraphs that get a coined word


def paragraphs(cache: Path) -> list[str]:
    """The paragraphs of the samples that have 20 to 600 characters."""
    found: list[str] = []
    for path in samples.fetch("shakespeare", cache):
        found += re.split(r"\n\s*\n", path.read_text("utf-8", errors="replace"))
    for path in samples.fetch("conversations", cache):
        for line in path.read_bytes().splitlines():
            found += json.loads(line)["text"].split("\n")
    return [text for text in (paragraph.strip() for paragraph in found) if 20 <= len(text) <= 600]


def documents(drawn_from: list[str], seed: int) -> Iterator[str]:
    """Documents without an end, each of PARAGRAPHS paragraphs."""
    chance = random.Random(seed)
    words = sorted({word for text in drawn_from for word in re.findall(r"[a-z]{4,}", text)})
    while True:
        chosen = chance.choices(drawn_from, k=PARAGRAPHS)
        for place in range(int(chance.random() < 0.5), PARAGRAPHS, int(1 / COINED)):
            first, second = chance.choice(words), chance.choice(words)
            chosen[place] += f" {first[: len(first) // 2 + 1]}{second[len(second) // 2 :]}."
        yield "\n\n".join(chosen)


def write(folder: Path, size: int, cache: Path, seed: int = 0) -> Path:
    """Write about `size` bytes of text as JSON lines to files in `folder`, which is returned; it must not exist."""
    folder.mkdir(parents=True)
    drawn_from = paragraphs(cache)
    lines: list[bytes] = []
    filled = written = 0
    for document in documents(drawn_from, seed):
        lines.append(json.dumps({"text": document}, ensure_ascii=False).encode() + b"\n")
        filled += len(lines[-1])
        if filled >= FILE_BYTES or written + filled >= size:
            durable.write_bytes(folder / f"corpus-{written // FILE_BYTES:04d}.jsonl", b"".join(lines))
            written, filled, lines = written + filled, 0, []
        if written >= size:
            return folder
    raise AssertionError("documents never end")
