"""Names and shapes, to and from Hugging Face: our weights and configuration as a `transformers` model has them.

The one idea: a family is one small file of names (`hf_gpt2.py`, `hf_llama.py`, `hf_bert.py`), which says how its
config.json and its weights are called; what all families share is here (labels, files, refusals) and, of what is read
without torch, in `hf_config.py`.

Nothing here imports transformers: what it accepts is held by the tests.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model import durable, own_weights
from model.config import ModelConfig
from model.hf_config import FAMILIES, UnsupportedModel, read_config

_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)  # what weights may be in: a number each
_SIZES = (  # of all families' config.json: what decides how many weights there are, and of what shape
    "vocab_size", "n_positions", "n_embd", "n_inner", "n_layer", "n_head", "max_position_embeddings", "hidden_size",
    "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "type_vocab_size",
)  # fmt: skip


def _label_names(config: ModelConfig) -> tuple[str, ...]:
    """One name for each class: the task's own, or Hugging Face's default."""
    return config.labels or tuple(f"LABEL_{index}" for index in range(config.num_labels or 0))


def architecture(config: ModelConfig) -> str:
    """The name of the class in `transformers` that computes this model."""
    return str(FAMILIES[config.family].ARCHITECTURES[config.head_kind])


def _config_json(config: ModelConfig, dtype: torch.dtype) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "model_type": config.family,
        "architectures": [architecture(config)],
        "vocab_size": config.vocab_size,
        "initializer_range": config.initializer_range,
        "tie_word_embeddings": config.tie_word_embeddings,
        "torch_dtype": str(dtype).removeprefix("torch."),
    } | FAMILIES[config.family].config_json(config)
    if config.num_labels is not None:
        names = _label_names(config)
        fields["problem_type"] = "single_label_classification"
        fields["id2label"] = {str(index): name for index, name in enumerate(names)}
        fields["label2id"] = {name: index for index, name in enumerate(names)}
    return fields


def generation_config(config: ModelConfig) -> dict[str, Any]:
    """generation_config.json: which tokens start, end and pad a continuation."""
    eot = config.eot_token_id
    opening = eot if config.cls_token_id is None else config.cls_token_id
    return {"bos_token_id": opening, "eos_token_id": eot, "pad_token_id": config.padding}


def to_hugging_face(
    config: ModelConfig, state: Mapping[str, Tensor], dtype: torch.dtype = torch.float32
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Our state dict (any dtype, any device) -> config.json's fields, and tensors of `dtype` on the host by the family's names.

    Tied weights are left out. ValueError if the labels do not fit num_labels, UnsupportedModel if no family computes it.
    """
    if not config.exportable:
        raise UnsupportedModel(f"no Hugging Face family computes feed_forward={config.feed_forward}; choose another")
    if config.num_labels is not None and len(_label_names(config)) != config.num_labels:
        raise ValueError(
            f"labels={list(config.labels)} name {len(config.labels)} classes, num_labels={config.num_labels}"
        )
    on_host = {name: tensor.detach().to("cpu", dtype) for name, tensor in state.items()}
    theirs = FAMILIES[config.family].to_theirs(config, on_host)
    return _config_json(config, dtype), {name: tensor.contiguous() for name, tensor in theirs}


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder: one, or if there is none those of the index, as transformers has it. Pickles are refused."""
    index, names = folder / "model.safetensors.index.json", {"model.safetensors"}
    if index.exists() and not (folder / "model.safetensors").exists():
        names = set(durable.read_json(index)["weight_map"].values())
    missing = sorted(name for name in names if not (folder / name).exists())
    if missing:
        raise UnsupportedModel(f"{folder} lacks {missing}; weights are read from safetensors only, never from pickles")
    return [folder / name for name in sorted(names)]


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    """All weights of a folder. UnsupportedModel for a file that is not whole."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = {}
    for file in _weight_files(folder):
        try:
            tensors |= load_file(file)
        except SafetensorError as error:
            raise UnsupportedModel(
                f"{file} is no whole safetensors file, cut perhaps while it was copied ({error}); copy it again"
            ) from error
    return tensors


def from_hugging_face(folder: Path) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Read a Hugging Face folder, or one of our own weights: its ModelConfig, and a state dict in fp32 for the model that `heads.build` makes of it.

    UnsupportedModel names the file and the field when it is another family, computes something else, or keeps
    its weights in pickles, packed, or under names that the family has not.
    """
    if own_weights.are_in(folder):
        return own_weights.read(folder)
    config = read_config(folder)
    family = FAMILIES[config.family]
    read = {name: tensor for name, tensor in _read_tensors(folder).items() if not name.endswith(family.BUFFERS)}
    _require_floats(folder, read)
    theirs = {family.whole(name): tensor.to(torch.float32) for name, tensor in read.items()}
    if config.tie_word_embeddings:
        _keep_once(folder, config, theirs)
    try:
        state = {name: tensor.contiguous() for name, tensor in family.to_ours(config, theirs)}
    except KeyError as error:
        raise UnsupportedModel(f"{folder}: family {config.family} has no weight {error}, or lacks its like") from error
    if config.head_kind == "language_model" and config.tie_word_embeddings:
        state["lm_head.weight"] = state["transformer.wte.weight"]
    return config, state


def _require_floats(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """UnsupportedModel for weights that are packed in integers or 8 bits: they are no numbers without what unpacks them."""
    packed = [
        f"{name} ({str(one.dtype).removeprefix('torch.')})" for name, one in tensors.items() if one.dtype not in _FLOATS
    ]
    if packed:
        raise UnsupportedModel(
            f"{folder}: {len(packed)} weights are packed, as {', '.join(sorted(packed)[:3])}; "
            "give a folder whose weights are in fp32, fp16 or bf16"
        )


def _keep_once(folder: Path, config: ModelConfig, theirs: dict[str, Tensor]) -> None:
    """Leave of two weights that the configuration ties the one that both are, by whichever name the file has it.

    UnsupportedModel if they differ and the model's head is of them: transformers unties them then, Transformer cannot.
    """
    of_tokens = config.head_kind not in ("classification", "span")
    for name, other in FAMILIES[config.family].TIED.items():
        own = theirs.pop(name, None)
        if own is not None and not torch.equal(theirs.setdefault(other, own), own) and of_tokens:
            raise UnsupportedModel(
                f"{folder}: config.json ties {name} to {other}, and the file has another one; save the model with "
                "tie_word_embeddings=false (GPT-2, Llama; a BERT cannot be untied here), or without the weight that is not used"
            )


def misfit(folder: Path, config: ModelConfig, own: Mapping[str, Tensor]) -> str | None:
    """Where the weights of a folder are not those of the model that its config.json describes, by the names in its files; none if they are.

    `own` are such a model's weights. Of heads only the shapes count, of a layer that is too many all.
    """
    family = FAMILIES[config.family]
    wanted = {name: tuple(tensor.shape) for name, tensor in family.to_theirs(config, own)}
    body = {name: tensor for name, tensor in own.items() if name.startswith("transformer.")}
    found = {}
    for name, tensor in _read_tensors(folder).items():
        if not name.endswith(family.BUFFERS):
            whole = family.whole(name)
            found[family.TIED.get(whole, whole) if config.tie_word_embeddings else whole] = name, tuple(tensor.shape)
    wrong = [
        f"{name} is {shape} and not {wanted[whole]}"
        for whole, (name, shape) in found.items()
        if wanted.get(whole, shape) != shape
    ]
    wrong += [f"{name} is missing" for name, _ in family.to_theirs(config, body) if name not in found]
    wrong += [
        f"{name} is of no layer that it has"
        for whole, (name, _) in found.items()
        if whole not in wanted and re.search(r"\.\d+\.", whole)
    ]
    fields = durable.read_json(folder / "config.json")
    sizes = ", ".join(f"{name}={fields[name]}" for name in _SIZES if name in fields)
    sizes += f", {config.num_labels} classes (id2label, num_labels)" if config.num_labels else ""
    more = f" and {len(wrong) - 3} more" if wrong[3:] else ""
    return (
        f"its weights do not fit config.json: {'; '.join(sorted(wrong)[:3])}{more}; it says {sizes}" if wrong else None
    )


def begin_from(folder: Path, model: nn.Module, config: ModelConfig) -> list[str]:
    """Copy the weights in `folder` into `model` (of `config`), as `load_pretrained` does; returns the parameters without any.

    The head of a classifier of other classes is left out, though its shape may fit: it is not about these. UnsupportedModel
    if the weights have learned to be computed with otherwise: many shapes would not tell.
    """
    found, state = from_hugging_face(folder)
    _require_same_computation(folder, found, config)
    if found.num_labels is not None and _label_names(found) != _label_names(config):
        state = {name: tensor for name, tensor in state.items() if not name.startswith("score.")}
    return load_pretrained(model, state)


def _require_same_computation(folder: Path, found: ModelConfig, config: ModelConfig) -> None:
    """UnsupportedModel, with both values, where `found` computes otherwise than `config` from equal weights."""
    theirs, ours = found.computation, config.computation
    if found.head_kind == config.head_kind == "language_model" and config.tie_word_embeddings:
        theirs["tie_word_embeddings"], ours["tie_word_embeddings"] = found.tie_word_embeddings, True
    wrong = [f"{name}={theirs[name]} where the model has {ours[name]}" for name in ours if theirs[name] != ours[name]]
    if wrong:
        raise UnsupportedModel(
            f"{folder}: its weights are of {', '.join(wrong)}; give the model that shape (model.*), or do not begin from "
            "these weights (make retrain: retrain.start=scratch)"
        )


def load_pretrained(model: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """Copy `state` into `model` in place and return the parameters that it had nothing for (a new head), sorted.

    A head of `state` that `model` lacks is left out. UnsupportedModel if any weight of the Transformer is
    missing or left over, or a shape differs: half a pre-trained model is none.
    """
    own = model.state_dict()
    surplus = sorted(name for name in state.keys() - own.keys() if name.startswith("transformer."))
    if surplus:
        raise UnsupportedModel(
            f"pre-trained weights do not fit the model: it has no {', '.join(surplus[:3])}"
            f"{f' and {len(surplus) - 3} more' if surplus[3:] else ''}; give the model their shape"
        )
    shared = {name: tensor for name, tensor in state.items() if name in own}
    absent = sorted(own.keys() - shared.keys())
    wrong = [name for name in absent if name.startswith("transformer.")]
    wrong += [
        f"{name} {tuple(value.shape)} for {tuple(own[name].shape)}"
        for name, value in shared.items()
        if value.shape != own[name].shape
    ]
    if wrong:
        raise UnsupportedModel(
            f"pre-trained weights do not fit the model: {', '.join(wrong)}; give the model their shape"
        )
    model.load_state_dict(shared, strict=False)
    return absent
