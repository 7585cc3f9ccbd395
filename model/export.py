"""The export: a Hugging Face folder, and the probe that says whether it is the model that was trained.

The one idea: an export counts only when `transformers` computes from it what the live model computed. The
probe is a few sequences of all lengths and the live model's logits at each one's last token. Such a logit
depends on every position before it and on every weight, so that a wrong name, a missed transposition or a
stale tied weight shows. BERT is probed with padding and two segments.

Equal weights give equal bytes: nothing here writes a time, a host or a library's version.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from model import durable, own_weights
from model.config import ModelConfig
from model.hf import generation_config, to_hugging_face
from model.vocabulary import FILES

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}  # of an export's weights, as recipes name them
# Of the largest logit. Where hidden states reach 20,000, as SmolLM2's do, transformers' own two attentions differ by 1.2e-4
# in fp32 (logits to 40): an absolute bound alone would refuse a right export. A wrong weight shows at 1e-2 and more.
RELATIVE_TOLERANCE = 1e-5
_ROTARY_PROBE = 512  # tokens in the longest row of a probe where positions are rotary


class ExportMismatch(Exception):
    """An export does not compute what the live model computed, or does not load whole."""


def _copy_tokenizer(source: Path, target: Path, n_positions: int) -> None:
    """The tokenizer's files, told how many tokens this model takes. FileNotFoundError if there is no tokenizer.json."""
    if not (source / "tokenizer.json").exists():
        raise FileNotFoundError(
            f"{source} has no tokenizer.json; an export needs the tokenizer its model was trained with"
        )
    for name in FILES:
        if (source / name).exists() and name != "tokenizer_config.json":
            durable.write_bytes(target / name, (source / name).read_bytes())
    path = source / "tokenizer_config.json"
    settings: dict[str, Any] = durable.read_json(path) if path.exists() else {}
    settings |= {"model_max_length": n_positions, "padding_side": "right", "truncation_side": "right"}
    durable.write_json(target / "tokenizer_config.json", settings)


def write_export(
    folder: Path,
    config: ModelConfig,
    state: Mapping[str, Tensor],
    tokenizer: Path,
    shard_size: int | str = "5GB",
    precision: str = "fp32",
) -> None:
    """Write `folder` whole or not at all: config.json, generation_config.json, model.safetensors, tokenizer.

    `state` is our model's state dict; `tokenizer` the folder of its tokenizer. Weights of more than `shard_size` (bytes,
    or as "5GB") are several files with an index. `precision` is that of the weights, fp32 or bf16. OSError if `folder` has
    content.
    """
    fields, tensors = to_hugging_face(config, state, DTYPES[precision])
    staging = durable.temporary(folder)
    staging.mkdir()
    try:
        durable.write_json(staging / "config.json", fields)
        if config.head_kind == "language_model":
            durable.write_json(staging / "generation_config.json", generation_config(config))
        _write_weights(staging, tensors, shard_size)
        _copy_tokenizer(tokenizer, staging, config.n_positions)
        durable.publish_folder(staging, folder)
    finally:
        durable.remove_tree(staging)


def write_own(folder: Path, config: ModelConfig, state: Mapping[str, Tensor], tokenizer: Path) -> None:
    """Write `folder` whole or not at all: our own weights and configuration, and the tokenizer. OSError if it has content."""
    staging = durable.temporary(folder)
    staging.mkdir()
    try:
        own_weights.write(staging, config, state)
        _copy_tokenizer(tokenizer, staging, config.n_positions)
        durable.publish_folder(staging, folder)
    finally:
        durable.remove_tree(staging)


def _write_weights(folder: Path, tensors: Mapping[str, Tensor], shard_size: int | str) -> None:
    """One safetensors file, or several and model.safetensors.index.json, as Hugging Face cuts them."""
    from huggingface_hub import split_torch_state_dict_into_shards
    from safetensors.torch import save_file

    split = split_torch_state_dict_into_shards(dict(tensors), max_shard_size=shard_size)
    for file, names in split.filename_to_tensors.items():
        with durable.writing(folder / file) as draft:
            save_file({name: tensors[name] for name in names}, draft, metadata={"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        durable.write_json(folder / "model.safetensors.index.json", index)


def probe_inputs(config: ModelConfig, rows: int = 6) -> tuple[Tensor, Tensor]:
    """Tokens (B, T) padded on the right, and their attention mask: the same for equal configs.

    Lengths halve from T = n_positions down, so every position is probed; rotary positions have no weights, and a window of
    thousands of them would cost minutes. No row holds an EOT or a padding token of its own, which a classifier would take
    for padding.
    """
    longest = min(config.n_positions, _ROTARY_PROBE) if config.family == "llama" else config.n_positions
    generator = torch.Generator().manual_seed(20_261_123)
    avoided = sorted({config.eot_token_id, config.padding})
    tokens = torch.randint(0, config.vocab_size - len(avoided), (rows, longest), generator=generator)  # (B, T)
    for token in avoided:
        tokens += tokens >= token
    lengths = torch.tensor([max(longest >> row, 1) for row in range(rows)])  # (B,)
    mask = (torch.arange(longest) < lengths[:, None]).long()  # (B, T)
    return tokens.masked_fill(mask == 0, config.padding), mask


def _segments(kinds: int, tokens: Tensor) -> Tensor | None:
    """BERT's segments for a probe: the second half of each row is of the second one, where there is one."""
    if not kinds:
        return None
    return (torch.arange(tokens.shape[-1]) >= tokens.shape[-1] // 2).long().clamp(max=kinds - 1).expand_as(tokens)


@torch.no_grad()
def last_logits(model: nn.Module, tokens: Tensor, attention_mask: Tensor, kinds: int = 0) -> Tensor:
    """`model`'s logits at the last real token of each row of tokens (B, T): (B, V or K), fp32, on the host.

    `kinds` are those of segments (`ModelConfig.segments`). Of a Transformer without a head they are its last hidden states.
    BERT's heads for pre-training give both their logits, one after the other. Works on our models, wrapped or not; under
    ZeRO-3 every rank has to call it. One row at a time, because the logits of all rows at all positions can be larger than
    the model.
    """
    device, segments = next(model.parameters()).device, _segments(kinds, tokens)
    rows = []
    for place, (row, mask) in enumerate(zip(tokens, attention_mask, strict=True)):
        inputs = {} if segments is None else {
            "token_types": segments[place][None].to(device), "padding": mask[None].bool().to(device)
        }  # fmt: skip
        found = model(row[None].to(device), **inputs)
        rows.append(_at_last(found if isinstance(found, tuple) else (found,), int(mask.sum())))
    return torch.stack(rows)


def _at_last(outputs: tuple[Tensor, ...], length: int) -> Tensor:
    """What a model said of one row: at its last real token where it says something of each, all in one vector."""
    return torch.cat([(one[0] if one[0].ndim == 1 else one[0][length - 1]).float().cpu() for one in outputs])


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
    """The export as `transformers` loads it, fp32, in eval mode, as the class that its config.json names.

    Weights of our own that no such class computes come with the same face. ExportMismatch if a weight is missing, left over or of another shape, which transformers only warns about.
    """
    if own_weights.are_in(folder):
        return cast("PreTrainedModel", own_weights.load(folder, device))
    import transformers
    from transformers.utils import logging

    logging.disable_progress_bar()  # a job's output is a log, and loading takes less than a second
    kind = getattr(transformers, durable.read_json(folder / "config.json")["architectures"][0])
    model, info = kind.from_pretrained(folder, dtype=torch.float32, local_files_only=True, output_loading_info=True)
    wrong = {name: sorted(map(str, keys)) for name, keys in info.items() if keys}
    if wrong:
        raise ExportMismatch(f"{folder}: transformers did not load all weights: {wrong}")
    return model.to(device).eval()


@torch.no_grad()
def check_export(folder: Path, probe: Path, tolerance: float = 1e-4) -> float:
    """Load `folder` through transformers and return the largest absolute difference from the probe's logits.

    ExportMismatch if it exceeds `tolerance` (or RELATIVE_TOLERANCE of the largest logit, if that is more), is not a number,
    or the tokenizer does not fit the model.
    """
    model = load_export(folder)
    largest, allowed = difference(model, probe, tolerance)
    if largest > allowed:
        raise ExportMismatch(
            f"{folder}: logits differ from the probe by {largest:.3g}, more than {allowed:.3g}: not the model that was trained"
        )
    _check_tokenizer(folder, model.config)
    return largest


@torch.no_grad()
def difference(
    model: PreTrainedModel, probe: Path, tolerance: float = 1e-4, padded: bool = True
) -> tuple[float, float]:
    """The largest absolute difference of what a model of transformers says from a probe, and how much is allowed.

    That is `tolerance`, or RELATIVE_TOLERANCE of the largest logit, if that is more. Without padding (not `padded`) rows are
    read by a model that has no padding token either.
    """
    from safetensors.torch import load_file

    expected = load_file(probe)
    segments = _segments(getattr(model.config, "type_vocab_size", 0), expected["input_ids"])
    largest = 0.0
    for place, logits in enumerate(expected["logits"]):
        length = int(expected["attention_mask"][place].sum())
        seen = slice(None if padded else length)
        inputs = {name: expected[name][place][None, seen] for name in ("input_ids", "attention_mask")}
        if segments is not None:
            inputs["token_type_ids"] = segments[place][None, seen]
        found = _at_last(_logits(model(**inputs)), length)
        largest = max(largest, float((found - logits).abs().max().nan_to_num(float("inf"))))
    return largest, max(tolerance, RELATIVE_TOLERANCE * float(expected["logits"].abs().max().nan_to_num(0.0)))


def _logits(said: Any) -> tuple[Tensor, ...]:
    """The logits among what a model of transformers returns, in the order in which ours gives them; hidden states if it has no head."""
    if hasattr(said, "last_hidden_state"):
        return (said.last_hidden_state,)
    if hasattr(said, "seq_relationship_logits"):
        return said.prediction_logits, said.seq_relationship_logits
    if hasattr(said, "start_logits"):
        return (torch.stack((said.start_logits, said.end_logits), dim=-1),)
    return (said.logits,)


def _check_tokenizer(folder: Path, config: Any) -> None:
    """ExportMismatch unless the tokenizer loads and its ids are the model's. A BERT's EOT is its tokenizer's [SEP].

    Of the other special tokens those are compared that both sides name.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    eot = tokenizer.sep_token_id if config.model_type == "bert" else tokenizer.eos_token_id
    if len(tokenizer) > config.vocab_size or eot != config.eos_token_id:
        raise ExportMismatch(
            f"{folder}: the tokenizer has {len(tokenizer)} ids with EOT {eot}, "
            f"the model {config.vocab_size} with EOT {config.eos_token_id}"
        )
    for name in ("pad_token_id", "cls_token_id", "sep_token_id", "mask_token_id"):
        own, known = getattr(tokenizer, name, None), getattr(config, name, None)
        if known not in (own, None) and own is not None:
            raise ExportMismatch(f"{folder}: {name} is {own} in the tokenizer and {known} in the model")
