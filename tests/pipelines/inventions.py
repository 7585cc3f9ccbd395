"""Invented data of the tasks that answer: translations word by word, conversations that count, a story of numbers."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from model import durable

NUMBERS = ["one", "two", "three", "four", "five", "six", "seven", "eight"]
NUMERI = ["uno", "due", "tre", "quattro", "cinque", "sei", "sette", "otto"]
WORDS = "\n".join([*NUMBERS, *NUMERI, " ".join(["", *NUMBERS, *NUMERI, "it", "is"]), *map(str, range(100))]) * 30


def lines(path: Path, records: list[dict[str, Any]]) -> list[Path]:
    durable.write_bytes(path, "".join(json.dumps(record) + "\n" for record in records).encode())
    return [path]


def descriptions(folder: Path) -> list[Path]:
    """Packages of numbers: their descriptions in two languages, word by word the same."""
    chance = random.Random(0)
    records = []
    for place in range(400):
        words = [chance.randrange(8) for _ in range(4)]  # BLEU counts runs of four
        text, other = (" ".join(names[word] for word in words) for names in (NUMBERS, NUMERI))
        records.append({"source": f"package{place % 80}", "package": f"p{place}", "text": text, "it": other})
    return lines(folder / "debian.jsonl", records)


def conversations(folder: Path) -> list[Path]:
    """Conversations in which each answers with the next number."""
    chance = random.Random(1)
    records = []
    for place in range(80):
        first = chance.randrange(8)
        turns = [f"{NUMBERS[(first + turn) % 8]} it is {place}" for turn in range(chance.randint(3, 9))]
        records.append({"conversation": f"c{place}", "turns": turns})
    return lines(folder / "chitchat.jsonl", records)


def story(folder: Path) -> list[Path]:
    chance = random.Random(2)
    text = "\n\n".join(" ".join(chance.choices(NUMBERS, k=3) * 12) + f" {place}" for place in range(120))
    durable.write_bytes(folder / "story.txt", text.encode())
    return [folder / "story.txt"]
