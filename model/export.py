"""The export: a Hugging Face folder, and the probe that says whether it is the model that was trained.

The one idea: an export counts only when `transformers` computes from it what the live model computed. The
probe is a few sequences of all lengths and the live model's logits at each one's last token. Such a logit
depends on every position before it and on every weight, so that a wrong name, a missed transposition or a
stale tied weight shows.

Equal weights give equal bytes: nothing here writes a time, a host or a library's version.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from model import durable
from model.config import ModelConfig
from model.hf import generation_config, to_hugging_face

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json")


class ExportMismatch(Exception):
    """An export does not compute what the live model computed, or does not load whole."""


def _copy_tokenizer(source: Path, target: Path, n_positions: int) -> None:
    """The tokenizer's files, told how many tokens this model takes. FileNotFoundError if there is no tokenizer.json."""
    if not (source / "tokenizer.json").exists():
        raise FileNotFoundError(
            f"{source} has no tokenizer.json; an export needs the tokenizer its model was trained with"
        )
    for name in TOKENIZER_FILES:
        if (source / name).exists() and name != "tokenizer_config.json":
            durable.write_bytes(target / name, (source / name).read_bytes())
    path = source / "tokenizer_config.json"
    settings: dict[str, Any] = durable.read_json(path) if path.exists() else {}
    settings |= {"model_max_length": n_positions, "padding_side": "right", "truncation_side": "right"}
    durable.write_json(target / "tokenizer_config.json", settings)


def write_export(folder: Path, config: ModelConfig, state: Mapping[str, Tensor], tokenizer: Path) -> None:
    """Write `folder` whole or not at all: config.json, generation_config.json, model.safetensors (fp32), tokenizer.

    `state` is our model's state dict; `tokenizer` the folder of its tokenizer. OSError if `folder` has content.
    """
    from safetensors.torch import save_file

    fields, tensors = to_hugging_face(config, state)
    staging = durable.temporary(folder)
    staging.mkdir()
    try:
        durable.write_json(staging / "config.json", fields)
        if config.num_labels is None:
            durable.write_json(staging / "generation_config.json", generation_config(config))
        with durable.writing(staging / "model.safetensors") as draft:
            save_file(tensors, draft, metadata={"format": "pt"})
        _copy_tokenizer(tokenizer, staging, config.n_positions)
        durable.publish_folder(staging, folder)
    finally:
        durable.remove_tree(staging)


def probe_inputs(config: ModelConfig, rows: int = 6) -> tuple[Tensor, Tensor]:
    """Tokens (B, T = n_positions) padded on the right with EOT, and their attention mask: the same for equal configs.

    Lengths halve from n_positions down, so every position is probed. No row holds an EOT of its own, which
    a classifier would take for padding.
    """
    generator = torch.Generator().manual_seed(20_261_123)
    tokens = torch.randint(0, config.vocab_size - 1, (rows, config.n_positions), generator=generator)  # (B, T)
    tokens += tokens >= config.eot_token_id
    lengths = torch.tensor([max(config.n_positions >> row, 1) for row in range(rows)])  # (B,)
    mask = (torch.arange(config.n_positions) < lengths[:, None]).long()  # (B, T)
    return tokens.masked_fill(mask == 0, config.eot_token_id), mask


@torch.no_grad()
def last_logits(model: nn.Module, tokens: Tensor, attention_mask: Tensor) -> Tensor:
    """`model`'s logits at the last real token of each row of tokens (B, T): (B, V or K), fp32, on the host.

    Works on our models, wrapped or not; under ZeRO-3 every rank has to call it. One row at a time, because
    the logits of all rows at all positions can be larger than the model.
    """
    device = next(model.parameters()).device
    rows = []
    for row, mask in zip(tokens, attention_mask, strict=True):
        logits = model(row[None].to(device))[0]  # (T, V) or (K,)
        rows.append((logits if logits.ndim == 1 else logits[int(mask.sum()) - 1]).float().cpu())
    return torch.stack(rows)


def write_probe(path: Path, tokens: Tensor, attention_mask: Tensor, logits: Tensor) -> None:
    """Write a probe: `input_ids` and `attention_mask` (B, T) int64, `logits` (B, V or K) fp32 of each row's last token.

    The logits have to come from fp32 weights. Where the live model computes in bf16, they are those of an
    fp32 model of the same gathered weights, after that was compared with the live one at bf16's precision.
    """
    from safetensors.torch import save_file

    tensors = {"input_ids": tokens, "attention_mask": attention_mask, "logits": logits.float()}
    with durable.writing(path) as draft:
        save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, draft)


def load_export(folder: Path, device: str = "cpu") -> PreTrainedModel:
    """The export as `transformers` loads it, fp32, in eval mode: a language model or a classifier.

    ExportMismatch if a weight is missing, left over or of another shape, which transformers only warns about.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
    from transformers.utils import logging

    logging.disable_progress_bar()  # a job's output is a log, and loading takes less than a second
    architecture = durable.read_json(folder / "config.json")["architectures"][0]
    kind = AutoModelForCausalLM if architecture.endswith("LMHeadModel") else AutoModelForSequenceClassification
    model, info = kind.from_pretrained(folder, dtype=torch.float32, local_files_only=True, output_loading_info=True)
    wrong = {name: sorted(map(str, keys)) for name, keys in info.items() if keys}
    if wrong:
        raise ExportMismatch(f"{folder}: transformers did not load all weights: {wrong}")
    return model.to(device).eval()


@torch.no_grad()
def check_export(folder: Path, probe: Path, tolerance: float = 1e-4) -> float:
    """Load `folder` through transformers and return the largest absolute difference from the probe's logits.

    ExportMismatch if it exceeds `tolerance`, is not a number, or the tokenizer does not fit the model.
    """
    from safetensors.torch import load_file

    expected = load_file(probe)
    model = load_export(folder)
    largest = 0.0
    for tokens, mask, logits in zip(expected["input_ids"], expected["attention_mask"], expected["logits"], strict=True):
        found = model(tokens[None], attention_mask=mask[None]).logits[0]  # (T, V) or (K,)
        found = found if found.ndim == 1 else found[int(mask.sum()) - 1]
        largest = max(largest, float((found - logits).abs().max().nan_to_num(float("inf"))))
    if largest > tolerance:
        raise ExportMismatch(
            f"{folder}: logits differ from the probe by {largest:.3g}, more than {tolerance:.3g}: not the model that was trained"
        )
    _check_tokenizer(folder, model.config.vocab_size, model.config.eos_token_id)
    return largest


def _check_tokenizer(folder: Path, vocab_size: int, eot: int) -> None:
    """ExportMismatch unless the tokenizer loads and its ids are the model's."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if len(tokenizer) > vocab_size or tokenizer.eos_token_id != eot:
        raise ExportMismatch(
            f"{folder}: the tokenizer has {len(tokenizer)} ids with EOT {tokenizer.eos_token_id}, "
            f"the model {vocab_size} with EOT {eot}"
        )
