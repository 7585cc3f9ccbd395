"""What a tokenizer's vocabulary says of each id: is it special, does it begin a word, how many bytes of text it stands for.

The one idea: `tokenizer.json` is a public format, so these facts are read off it once, as arrays over the ids, and
whoever masks tokens or finds sentences indexes an array. Torch-free, and without the `tokenizers` library.

A *word* is what whole-word masking masks together. A token begins one unless it goes on with what is before it: in WordPiece
it then begins with `##`, and each Chinese character and each mark of punctuation is a word of its own; in a byte-level
vocabulary it begins with a letter, a digit or a sign beyond ASCII and below U+3000 (no space in front), so that a mark or a
Chinese character is one word with what follows it without a space.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from model import durable

TEMPLATE_FILE = "chat_template.jinja"  # of a chat model; where `transformers` saves it today
FILES = (  # that a tokenizer may consist of
    "tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json", TEMPLATE_FILE,
)  # fmt: skip
PAD, CLS, SEP, MASK = "[PAD]", "[CLS]", "[SEP]", "[MASK]"  # of a bidirectional model's tokenizer, as BERT calls them


@dataclass(frozen=True)
class Vocabulary:
    """A vocabulary for masked language models: the special ids, and facts about all ids (V,)."""

    size: int
    pad: int
    cls: int
    sep: int
    mask: int
    special: np.ndarray  # (V,) bool, never masked and never put in a masked token's place
    begins_word: np.ndarray  # (V,) bool

    @property
    def ordinary(self) -> np.ndarray:
        """The ids that stand for text, ascending."""
        return np.flatnonzero(~self.special)


def load(folder: Path) -> Vocabulary:
    """The vocabulary of a tokenizer directory. ValueError names the special token that it lacks."""
    path = folder / "tokenizer.json"
    state = durable.read_json(path)
    pieces = tokens_of(state)
    ids = {piece: index for index, piece in enumerate(pieces) if piece is not None}
    missing = [name for name in (PAD, CLS, SEP, MASK) if name not in ids]
    if missing:
        raise ValueError(
            f"{path} has no {', '.join(missing)}; masked language models need [PAD], [CLS], [SEP] and [MASK]: train the "
            "tokenizer with tokenizer.special_tokens='bert', or pin one that has them"
        )
    special = np.array([piece is None for piece in pieces])
    special[[token["id"] for token in state["added_tokens"] if token["special"]]] = True
    special[[ids[name] for name in (PAD, CLS, SEP, MASK)]] = True
    begins = _begins_byte_level if is_byte_level(state) else _begins_wordpiece
    begins_word = np.array([piece is None or begins(piece) for piece in pieces]) | special
    return Vocabulary(len(pieces), ids[PAD], ids[CLS], ids[SEP], ids[MASK], special, begins_word)


def ids_of(state: dict[str, Any]) -> dict[str, int]:
    """The id of each token of a tokenizer.json, added ones too."""
    vocabulary = state["model"]["vocab"]
    if isinstance(vocabulary, list):  # of a Unigram model: pieces with their scores, in order of their ids
        vocabulary = {piece: index for index, (piece, _) in enumerate(vocabulary)}
    return vocabulary | {token["content"]: token["id"] for token in state["added_tokens"]}


def tokens_of(state: dict[str, Any]) -> list[str | None]:
    """The token of each id of a tokenizer.json; None where an id is not used."""
    ids = ids_of(state)
    pieces: list[str | None] = [None] * (max(ids.values()) + 1)
    for piece, index in ids.items():
        pieces[index] = piece
    return pieces


def is_byte_level(state: dict[str, Any]) -> bool:
    """Whether a tokenizer.json is a byte-level BPE that changes no byte of the text, so that its tokens' bytes add up to it."""
    steps = state["pre_tokenizer"] or {}
    levels = [step for step in steps.get("pretokenizers", [steps]) if step.get("type") == "ByteLevel"]
    whole = bool(levels) and not any(step.get("add_prefix_space") for step in levels)
    return state["model"].get("type", "BPE") == "BPE" and not state["normalizer"] and whole


def byte_lengths(state: dict[str, Any]) -> np.ndarray:
    """Bytes of text that each id of a byte-level vocabulary stands for, (V,) int64; 0 for special tokens.

    Of a token that swallows spaces it says what is left without them (`takes_spaces`).
    """
    lengths = np.array([len(piece or "") for piece in tokens_of(state)], np.int64)  # a character for each byte
    for token in state["added_tokens"]:  # these are written as text
        lengths[token["id"]] = 0 if token["special"] else len(token["content"].encode())
    return lengths


def takes_spaces(state: dict[str, Any]) -> bool:
    """Whether an added token that is found in texts swallows white space beside it, however much there is."""
    return any(not token["special"] and (token.get("lstrip") or token.get("rstrip")) for token in state["added_tokens"])


def _byte_of() -> dict[str, int]:
    """The byte that each character of a byte-level vocabulary stands for (GPT-2's table: printable ones are themselves)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}


_BYTE_OF = _byte_of()


def _begins_byte_level(piece: str) -> bool:
    """Not with a letter or digit of an alphabet, which go on with the word before, unless a Chinese character begins in it
    (or another sign whose first byte is 0xE3 or more)."""
    text = [_BYTE_OF.get(character, ord(" ")) for character in piece]
    goes_on = chr(text[0]).isalnum() if text[0] < 0x80 else max(text) < 0xE3
    return not goes_on


def _begins_wordpiece(piece: str) -> bool:
    return not piece.startswith("##")
