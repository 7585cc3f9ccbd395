"""The tokenizer directory: the files that `transformers` and both engines read, and what shards say of them.

The one idea: a tokenizer is known by the SHA-256 of its tokenizer.json, wherever a tokenizer's digest is named.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from model import durable
from model.vocabulary import (
    CLS,
    MASK,
    PAD,
    SEP,
    tokens_of,
)  # SEP ends each document where there is no end-of-text token: in bidirectional models

if TYPE_CHECKING:
    from tokenizers import Tokenizer

EOT = "<|endoftext|>"  # ends each document; beginning of text, padding and unknown too, as in GPT-2
FILES = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json")


@dataclass(frozen=True)
class TokenizerFacts:
    """What shards say of a tokenizer: the digest of its tokenizer.json, number of ids, the end-of-text id."""

    digest: str
    vocab_size: int
    eot: int


def tokenizer_facts(folder: Path) -> TokenizerFacts:
    """Read a tokenizer directory, without `tokenizers`. ValueError if it has no end-of-text token.

    That is what tokenizer_config.json calls `eos_token`; if it names none, <|endoftext|>, or the [SEP] of a BERT.
    """
    path = folder / "tokenizer.json"
    state = durable.read_json(path)
    vocabulary = state["model"]["vocab"]
    if isinstance(vocabulary, list):  # of a Unigram model: pieces with their scores, in order of their ids
        vocabulary = {piece: index for index, (piece, _) in enumerate(vocabulary)}
    ids = vocabulary | {token["content"]: token["id"] for token in state["added_tokens"]}
    end = ending(folder, EOT in ids)
    if end not in ids:
        wanted = f"{EOT} (or {SEP})" if end == SEP else end
        raise ValueError(f"{path} has no token {wanted}, which has to end each document; use a tokenizer that has it")
    return TokenizerFacts(durable.sha256(path), max(ids.values()) + 1, ids[end])


def load(folder: Path) -> Tokenizer:
    """The tokenizer of a directory in the `tokenizers` library, which takes each text whole and as it is.

    A sentence encoder's tokenizer.json (MiniLM's) says that texts are cut and filled up to 128 tokens: that is about its
    model. How long ours may be, and what fills a batch, is decided where examples are made.
    """
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def special_ids(folder: Path) -> dict[str, int]:
    """The ids "pad_token_id", "cls_token_id", "sep_token_id" and "mask_token_id" of a tokenizer that has a [MASK]; else nothing."""
    pieces = tokens_of(durable.read_json(folder / "tokenizer.json"))
    roles = {"pad_token_id": PAD, "cls_token_id": CLS, "sep_token_id": SEP, "mask_token_id": MASK}
    return {role: pieces.index(name) for role, name in roles.items() if name in pieces} if MASK in pieces else {}


def ending(folder: Path, knows_eot: bool) -> str:
    """The token that ends documents: what tokenizer_config.json calls `eos_token`, or else <|endoftext|>, or [SEP]."""
    path = folder / "tokenizer_config.json"
    token = durable.read_json(path).get("eos_token") if path.exists() else None
    return str(token["content"] if isinstance(token, dict) else token or (EOT if knows_eot else SEP))
