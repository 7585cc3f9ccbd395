"""The task of train_tokenizer: byte-level BPE over a deterministic sample of documents, written as GPT-2's files.

The one idea: which documents are used is a function of their content. Where the sources hold more than `max_bytes`,
a document is taken when its hash falls below the share that fits, so the sample spreads over all sources.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from model import durable
from model.vocabulary import CLS, FILES, MASK, PAD, SEP
from pipelines.corpus import documents, refuse
from pipelines.pieces import text_size
from pipelines.records import Reject
from pipelines.sources import SourceError
from pipelines.stretches import Stretch, stretch_from
from pipelines.tokenizer_files import EOT, tokenizer_facts

SPECIAL_TOKENS = {"gpt2": [EOT], "bert": [PAD, CLS, SEP, MASK]}  # in order of their ids, from 0
DOCUMENT_BYTES = 1 << 16  # documents of the training sample; BPE does not look across words, so it hardly matters


def train(item: dict[str, Any]) -> dict[str, Any]:
    """Train on the documents of `stretches` and write the five files of a tokenizer directory to `folder`."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    config = item["config"]
    specials = SPECIAL_TOKENS[config.get("special_tokens", "gpt2")]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=config["vocab_size"], min_frequency=config["min_frequency"],
        # A space before [MASK] belongs to it, as it belongs to the words that it stands for.
        special_tokens=[AddedToken(name, special=True, normalized=False, lstrip=name == MASK) for name in specials],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False,
    )  # fmt: skip
    sample = Sample([stretch_from(stretch) for stretch in item["stretches"]], config["max_bytes"])
    tokenizer.train_from_iterator(iter(sample), trainer)
    if not sample.bytes:
        raise SourceError("the tokenizer's sources hold no text; give it sources with text (tokenizer.sources)")
    if CLS in specials:
        # For whoever loads it with plain `transformers`: a text, or a pair with its token types. Documents are encoded
        # without it (add_special_tokens=False), so no shard depends on it.
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{CLS} $A {SEP}", pair=f"{CLS} $A {SEP} $B:1 {SEP}:1",
            special_tokens=[(name, specials.index(name)) for name in (CLS, SEP)],
        )  # fmt: skip
    _write(Path(item["folder"]), tokenizer, _BERT if CLS in specials else _GPT2)
    return _figures(Path(item["folder"])) | {"trained_on_bytes": sample.bytes, "rejected": sample.rejected}


class Sample:
    """The documents that a tokenizer is trained on, streamed; what went by is counted in `bytes` and `rejected`."""

    def __init__(self, stretches: list[Stretch], max_bytes: int) -> None:
        self.bytes = self.rejected = 0
        self._stretches, self._max_bytes = stretches, max_bytes

    def __iter__(self) -> Iterator[str]:
        share = self._max_bytes / max(sum(text_size(stretch.file) for stretch in self._stretches), 1)
        for stretch in self._stretches:
            for document in documents(stretch, DOCUMENT_BYTES):
                if isinstance(document, Reject):
                    refuse(document, stretch)
                    self.rejected += 1
                elif self._taken(document.content, len(document.utf8), share):
                    self.bytes += len(document.utf8)
                    yield document.text

    def _taken(self, content: bytes, size: int, share: float) -> bool:
        # Bytes 24 to 32: those that choose the held-out split must not choose the sample too.
        return (
            bool(size)
            and self.bytes + size <= self._max_bytes
            and int.from_bytes(content[24:], "big") < share * 2.0**64
        )


# A reserved token in somebody's text stays text wherever this directory is loaded.
_GPT2 = (
    {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False, "split_special_tokens": True},
    dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), EOT),
)
# But [MASK] is written in texts, by those who ask what fills it: whoever takes a stranger's text splits by an argument.
_BERT: tuple[dict[str, Any], dict[str, str]] = (
    {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": ["input_ids", "token_type_ids", "attention_mask"]},
    {"pad_token": PAD, "cls_token": CLS, "sep_token": SEP, "mask_token": MASK, "bos_token": CLS, "eos_token": SEP},
)  # fmt: skip


def _write(folder: Path, tokenizer: Any, described: tuple[dict[str, Any], dict[str, str]]) -> None:
    """The directory as `transformers` expects it, all from one state, all with deterministic bytes."""
    settings, special = described
    state = json.loads(tokenizer.to_str())
    merges = "".join(f"{' '.join(pair)}\n" for pair in state["model"]["merges"])
    durable.write_bytes(folder / "tokenizer.json", tokenizer.to_str().encode("utf-8"))
    durable.write_json(folder / "vocab.json", dict(sorted(state["model"]["vocab"].items(), key=lambda item: item[1])))
    durable.write_bytes(folder / "merges.txt", f"#version: 0.2\n{merges}".encode())
    durable.write_json(folder / "special_tokens_map.json", special)
    durable.write_json(folder / "tokenizer_config.json", settings | {"clean_up_tokenization_spaces": False} | special)


def copy_pinned(item: dict[str, Any]) -> dict[str, Any]:
    """Copy a pinned tokenizer directory after checking its digest. SourceError if it is missing or another one."""
    source, folder = Path(item["pinned"]), Path(item["folder"])
    if not (source / "tokenizer.json").is_file():
        raise SourceError(
            f"tokenizer.pinned={source}: there is no tokenizer.json in it; give the directory of a fast tokenizer"
        )
    found = durable.sha256(source / "tokenizer.json")
    if found != item["config"]["digest"]:
        raise SourceError(
            f"{source / 'tokenizer.json'} has SHA-256 {found}, tokenizer.digest says {item['config']['digest']}; correct one of them"
        )
    for name in FILES:
        if (source / name).is_file():
            durable.write_bytes(folder / name, (source / name).read_bytes())
    return _figures(folder)


def _figures(folder: Path) -> dict[str, Any]:
    facts = tokenizer_facts(folder)
    return {"vocab_size": facts.vocab_size, "eot": facts.eot, "digest": facts.digest}
