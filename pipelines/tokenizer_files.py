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
    ids_of,
    tokens_of,
)  # SEP ends each document where there is no end-of-text token: in bidirectional models

if TYPE_CHECKING:
    from tokenizers import Tokenizer

EOT = "<|endoftext|>"  # ends each document; beginning of text, padding and unknown too, as in GPT-2


@dataclass(frozen=True)
class TokenizerFacts:
    """What shards say of a tokenizer: the digest of its tokenizer.json, number of ids, the end-of-text id."""

    digest: str
    vocab_size: int
    eot: int
    told_beside: bool = False  # the EOT is one that tokenizer.json, and so the digest, does not tell


def tokenizer_facts(folder: Path) -> TokenizerFacts:
    """Read a tokenizer directory, without `tokenizers`. ValueError if it has no end-of-text token.

    That is what tokenizer_config.json calls `eos_token`; if it names none, <|endoftext|>, or the [SEP] of a BERT.
    """
    path = folder / "tokenizer.json"
    ids = ids_of(durable.read_json(path))
    end = ending(folder, EOT in ids)
    if end not in ids:
        wanted = f"{EOT} (or {SEP})" if end == SEP else end
        raise ValueError(f"{path} has no token {wanted}, which has to end each document; use a tokenizer that has it")
    told_beside = end != (EOT if EOT in ids else SEP)
    return TokenizerFacts(durable.sha256(path), max(ids.values()) + 1, ids[end], told_beside)


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


def frame(folder: Path) -> tuple[int, int]:
    """The ids of the token that opens a row and of the one that closes each of its texts, as evaluation knows them.

    Those are what tokenizer_config.json calls `cls_token` and `sep_token`; if it names none, [CLS] and [SEP], which a
    tokenizer may have without a [MASK]. ValueError if it lacks one.
    """
    path = folder / "tokenizer.json"
    pieces = tokens_of(durable.read_json(path))
    wanted = (_named(folder, "cls_token") or CLS, _named(folder, "sep_token") or SEP)
    missing = [name for name in wanted if name not in pieces]
    if missing:
        raise ValueError(f"{path} has no token {' or '.join(missing)}; use a tokenizer that has {' and '.join(wanted)}")
    return pieces.index(wanted[0]), pieces.index(wanted[1])


def ending(folder: Path, knows_eot: bool) -> str:
    """The token that ends documents: what tokenizer_config.json calls `eos_token`, or else <|endoftext|>, or [SEP]."""
    return _named(folder, "eos_token") or (EOT if knows_eot else SEP)


def _named(folder: Path, role: str) -> str | None:
    """The token that tokenizer_config.json names for a role, if it does."""
    path = folder / "tokenizer_config.json"
    token = durable.read_json(path).get(role) if path.exists() else None
    return str(token["content"] if isinstance(token, dict) else token) if token else None


def bert_misfit(folder: Path) -> str | None:
    """Why a BERT cannot be trained with a tokenizer: its documents do not end with [SEP]. None if they do; ValueError, KeyError."""
    end = ending(folder, EOT in tokens_of(durable.read_json(folder / "tokenizer.json")))
    if end == SEP:
        return None
    return (
        f'{folder} ends documents with {end}, and a BERT\'s end with {SEP}; say "eos_token": "{SEP}" in its '
        "tokenizer_config.json (its tokenizer.json, and so the digest, stays)"
    )
