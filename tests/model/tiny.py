"""Small models of odd shapes and a small real tokenizer, for the tests of this folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from model import durable
from model.config import ModelConfig

EOT = "<|endoftext|>"
TEXT = "the quick brown fox jumps over the lazy dog. a tale of two cities and of one film: it was the best of times. "


def config(**changes: Any) -> ModelConfig:
    """A model of odd sizes: no two dimensions are equal, so that a wrong transposition cannot pass."""
    shape: dict[str, Any] = {
        "n_positions": 37, "n_embd": 30, "n_layer": 3, "n_head": 5, "n_inner": 71, "vocab_size": 301, "eot_token_id": 7,
    }  # fmt: skip
    return ModelConfig(**(shape | changes))


def write_tokenizer(folder: Path, vocab_size: int = 300) -> Path:
    """Train a byte-level BPE on a line of text and write it as the tokenizer stage does. EOT has id 0."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[EOT], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([TEXT] * 3, trainer)
    folder.mkdir()
    durable.write_bytes(folder / "tokenizer.json", tokenizer.to_str().encode())
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), EOT)
    durable.write_json(
        folder / "tokenizer_config.json", {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False} | special
    )
    durable.write_json(folder / "special_tokens_map.json", special)
    return folder
