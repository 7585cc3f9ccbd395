"""Tiny Hugging Face exports with random weights, made by transformers itself: what training would hand over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TEXTS = [
    "a warm , funny and finally moving film",
    "dull .",
    "the reserved <|endoftext|> token stands in a stranger's text",
    "it never ends " * 60,
    "",
]


def safetensors(data: bytes) -> bytes:
    """A safetensors file with these bytes as its one tensor."""
    header = json.dumps({"weight": {"dtype": "U8", "shape": [len(data)], "data_offsets": [0, len(data)]}}).encode()
    return len(header).to_bytes(8, "little") + header + data


def write_classifier(folder: Path, seed: int = 0) -> Path:
    """A two-class GPT2ForSequenceClassification with a byte-level BPE tokenizer, 64 positions."""
    from transformers import GPT2ForSequenceClassification

    config = _config(folder, num_labels=2, id2label={0: "rotten", 1: "fresh"}, label2id={"rotten": 0, "fresh": 1})
    return _write(GPT2ForSequenceClassification, config, folder, seed)


def write_base(folder: Path, seed: int = 0) -> Path:
    """A GPT2LMHeadModel with the same tokenizer."""
    from transformers import GPT2LMHeadModel

    return _write(GPT2LMHeadModel, _config(folder), folder, seed)


def _write(kind: Any, config: Any, folder: Path, seed: int) -> Path:
    import torch

    torch.manual_seed(seed)
    kind(config).save_pretrained(folder)
    return folder


def _config(folder: Path, **more: Any) -> Any:
    from transformers import GPT2Config

    eot = _write_tokenizer(folder)
    ids = {"eos_token_id": eot, "bos_token_id": eot, "pad_token_id": eot}
    return GPT2Config(
        vocab_size=300, n_positions=64, n_embd=32, n_layer=2, n_head=2, initializer_range=0.5, **ids, **more
    )


def _write_tokenizer(folder: Path) -> int:
    from tokenizers import ByteLevelBPETokenizer

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(TEXTS * 4, vocab_size=300, min_frequency=2, special_tokens=["<|endoftext|>"])
    tokenizer.save_model(str(folder))
    tokenizer.save(str(folder / "tokenizer.json"))
    special = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), "<|endoftext|>")
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {"tokenizer_class": "GPT2Tokenizer", "model_max_length": 64, "split_special_tokens": True, **special}
        )
    )
    return int(tokenizer.token_to_id("<|endoftext|>"))
