"""Names and shapes, to and from Hugging Face: our weights and configuration as a `transformers` model has them.

The one idea: the modules already bear Hugging Face's names, so a family is three small things: its config.json,
which weights it keeps transposed, and which weights it does not keep at all because they are tied. GPT-2 is the
family there is; another is another set of functions beside these, chosen by `ModelConfig.family`.

GPT-2's `Conv1D` computes x W + b with W (in, out), `nn.Linear` computes x W^T + b with W (out, in).
Nothing here imports transformers: what it accepts is held by the tests.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model import durable
from model.config import ModelConfig

_CONV1D = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
_BUFFERS = (".attn.bias", ".attn.masked_bias")  # causal masks that old checkpoints carry
# Options of GPT2Config that change what is computed, with the only value that Transformer computes.
_COMPUTED = {
    "activation_function": "gelu_new",
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}


class UnsupportedModel(ValueError):
    """A Hugging Face folder holds a model that Transformer does not compute, or that does not fit."""


def _label_names(config: ModelConfig) -> tuple[str, ...]:
    """One name for each class: the task's own, or Hugging Face's default."""
    return config.labels or tuple(f"LABEL_{index}" for index in range(config.num_labels or 0))


def _config_json(config: ModelConfig) -> dict[str, Any]:
    """GPT2Config's fields. `head_pdrop` is ours; transformers keeps what it does not know and does not use it."""
    eot = config.eot_token_id
    fields: dict[str, Any] = {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel" if config.num_labels is None else "GPT2ForSequenceClassification"],
        "vocab_size": config.vocab_size,
        "n_positions": config.n_positions,
        "n_ctx": config.n_positions,
        "n_embd": config.n_embd,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_inner": config.n_inner,
        "embd_pdrop": config.embd_pdrop,
        "resid_pdrop": config.resid_pdrop,
        "attn_pdrop": 0.0,
        "head_pdrop": config.head_pdrop,
        "layer_norm_epsilon": config.layer_norm_epsilon,
        "initializer_range": config.initializer_range,
        "tie_word_embeddings": config.tie_word_embeddings,
        "bos_token_id": eot,
        "eos_token_id": eot,
        "pad_token_id": eot,
        "use_cache": True,
        "torch_dtype": "float32",
    } | _COMPUTED
    if config.num_labels is not None:
        names = _label_names(config)
        fields["problem_type"] = "single_label_classification"
        fields["id2label"] = {str(index): name for index, name in enumerate(names)}
        fields["label2id"] = {name: index for index, name in enumerate(names)}
    return fields


def generation_config(config: ModelConfig) -> dict[str, Any]:
    """generation_config.json: which tokens start, end and pad a continuation."""
    eot = config.eot_token_id
    return {"bos_token_id": eot, "eos_token_id": eot, "pad_token_id": eot}


def to_hugging_face(config: ModelConfig, state: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Our state dict (any dtype, any device) -> config.json's fields, and fp32 tensors on the host by GPT-2's names.

    A tied output layer is left out: it is the token embedding. ValueError if the labels do not fit num_labels.
    """
    if config.num_labels is not None and len(_label_names(config)) != config.num_labels:
        raise ValueError(
            f"labels={list(config.labels)} name {len(config.labels)} classes, num_labels={config.num_labels}"
        )
    tensors = {}
    for name, tensor in state.items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        tensor = tensor.detach().to("cpu", torch.float32)
        tensors[name] = (tensor.t() if name.endswith(_CONV1D) else tensor).contiguous()
    return _config_json(config), tensors


def _read_config(folder: Path) -> ModelConfig:
    """config.json of a GPT-2 folder as a ModelConfig. UnsupportedModel where it asks for another computation."""
    path = folder / "config.json"
    if not path.exists():
        raise UnsupportedModel(f"{folder} has no config.json; expected a Hugging Face model folder")
    fields = durable.read_json(path)
    for name, value in ({"model_type": "gpt2"} | _COMPUTED).items():
        if fields.get(name, value) != value:
            raise UnsupportedModel(f"{path}: {name}={fields[name]!r} is not supported, only {value!r}")
    labels = _labels(fields)
    wanted = ModelConfig.model_fields.keys() - {"num_labels", "labels", "eot_token_id", "family"}
    values = {name: fields[name] for name in wanted if name in fields}
    for name in ("embd_pdrop", "resid_pdrop", "layer_norm_epsilon", "initializer_range", "head_pdrop"):
        if name in values:
            values[name] = float(values[name])
    return ModelConfig(eot_token_id=_eot(fields, path), num_labels=len(labels) or None, labels=labels, **values)


def _eot(fields: Mapping[str, Any], path: Path) -> int:
    """The end-of-text token's id. UnsupportedModel where there is not exactly one in the vocabulary."""
    eot = fields.get("eos_token_id")
    if not isinstance(eot, int) or not 0 <= eot < fields["vocab_size"]:
        raise UnsupportedModel(
            f"{path}: eos_token_id={eot!r} is not one id of the vocabulary of {fields['vocab_size']}"
        )
    return eot


def _labels(fields: Mapping[str, Any]) -> tuple[str, ...]:
    """The classes' names by index; none for a language model."""
    if "GPT2ForSequenceClassification" not in (fields.get("architectures") or ()):
        return ()
    names: dict[str, str] = fields.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
    return tuple(names[str(index)] for index in range(len(names)))


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    """All weights of a folder, from one safetensors file or from several with an index. Pickles are refused."""
    from safetensors.torch import load_file

    index = folder / "model.safetensors.index.json"
    names = set(durable.read_json(index)["weight_map"].values()) if index.exists() else {"model.safetensors"}
    missing = sorted(name for name in names if not (folder / name).exists())
    if missing:
        raise UnsupportedModel(f"{folder} lacks {missing}; weights are read from safetensors only, never from pickles")
    return {name: tensor for file in sorted(names) for name, tensor in load_file(folder / file).items()}


def from_hugging_face(folder: Path) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Read a GPT-2 folder: its ModelConfig, and a state dict in fp32 for the model that `heads.build` makes of it.

    UnsupportedModel names the file and the field when it is another family, computes something else, or keeps
    its weights in pickles.
    """
    config = _read_config(folder)
    state = {}
    for name, tensor in _read_tensors(folder).items():
        if name.endswith(_BUFFERS):
            continue
        if not name.startswith(("transformer.", "lm_head.", "score.")):
            name = f"transformer.{name}"  # as GPT2Model, and OpenAI's own files, name them
        tensor = tensor.to(torch.float32)
        state[name] = (tensor.t() if name.endswith(_CONV1D) else tensor).contiguous()
    if config.num_labels is None and config.tie_word_embeddings:
        state["lm_head.weight"] = state["transformer.wte.weight"]
    return config, state


def load_pretrained(model: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """Copy `state` into `model` in place and return the parameters that it had nothing for (a new head), sorted.

    A head of `state` that `model` lacks is left out. UnsupportedModel if any weight of the Transformer is
    missing or a shape differs: half a pre-trained model is none.
    """
    own = model.state_dict()
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
