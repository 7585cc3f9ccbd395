"""Llama in Hugging Face's names: LlamaForCausalLM and LlamaForSequenceClassification.

The one idea: what we keep in one matrix (Q, K and V; the gate and the branch that it opens), Llama keeps in several, one
after another in the rows. Rotary positions pair feature i with i + D / 2 on both sides: no row is moved.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from model.config import ModelConfig

if TYPE_CHECKING:
    from torch import Tensor

ARCHITECTURES = {"language_model": "LlamaForCausalLM", "classification": "LlamaForSequenceClassification"}
BARE = "LlamaModel"  # with no head
# Options of LlamaConfig that change what is computed, with the only value that Transformer computes.
COMPUTED = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "rope_interleaved": False}
BUFFERS = ("rotary_emb.inv_freq",)  # rotary frequencies that old files carry
TIED = {"lm_head.weight": "model.embed_tokens.weight"}
_PARTS = {
    "attn.c_attn": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "mlp.c_fc": ("mlp.gate_proj", "mlp.up_proj"),
}
_NAMES = {
    "attn.c_proj": "self_attn.o_proj",
    "mlp.c_proj": "mlp.down_proj",
    "ln_1": "input_layernorm",
    "ln_2": "post_attention_layernorm",
}
_OUTER = {
    "transformer.wte": "model.embed_tokens",
    "transformer.ln_f": "model.norm",
    "lm_head": "lm_head",
    "score": "score",
}
_OURS = {theirs: ours for ours, theirs in (_NAMES | _OUTER).items()}
_THEIR_PARTS = {part: ours for ours, parts in _PARTS.items() for part in parts}
_LAYER = re.compile(r"(?:transformer\.h|model\.layers)\.(\d+)\.(.+)\.weight")


def config_json(config: ModelConfig) -> dict[str, Any]:
    """LlamaConfig's fields beside those that all families share. The three `*_pdrop` are ours, and told to nobody."""
    return {
        "max_position_embeddings": config.n_positions,
        "hidden_size": config.n_embd,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.n_embd // config.n_head,
        "intermediate_size": config.inner,
        "rms_norm_eps": config.layer_norm_epsilon,
        "rope_theta": config.rope_theta or 10_000.0,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta or 10_000.0},
        "attention_dropout": 0.0,
        "pretraining_tp": 1,
        "embd_pdrop": config.embd_pdrop,
        "resid_pdrop": config.resid_pdrop,
        "head_pdrop": config.head_pdrop,
        "bos_token_id": config.eot_token_id if config.cls_token_id is None else config.cls_token_id,
        "eos_token_id": config.eot_token_id,
        "pad_token_id": config.padding,
        "use_cache": True,
    } | COMPUTED


def shape(fields: Mapping[str, Any]) -> dict[str, Any]:
    """LlamaConfig's fields as ModelConfig's. ValueError where it asks for another computation."""
    width, heads = fields["hidden_size"], fields["num_attention_heads"]
    said = [fields.get(name) or {} for name in ("rope_parameters", "rope_scaling")]
    for kind in (one.get("rope_type", one.get("type")) for one in said):
        if kind not in ("default", None):
            raise ValueError(f"rope_type={kind!r} is not supported, only 'default'")
    rope = said[1] or said[0]  # as transformers reads them: rope_scaling, the older one, in place of the other
    if rope.get("partial_rotary_factor", 1) != 1:
        raise ValueError(f"partial_rotary_factor={rope['partial_rotary_factor']} is not supported, only 1")
    if (fields.get("head_dim") or width // heads) != width // heads:
        raise ValueError(f"head_dim={fields['head_dim']} is not supported, only hidden_size / num_attention_heads")
    opening = fields.get("bos_token_id")
    return {
        "n_positions": fields["max_position_embeddings"],
        "n_embd": width,
        "n_layer": fields["num_hidden_layers"],
        "n_head": heads,
        "n_kv_head": fields.get("num_key_value_heads") or heads,
        "n_inner": fields["intermediate_size"],
        "layer_norm_epsilon": float(fields.get("rms_norm_eps", 1e-6)),
        "rope_theta": float(rope.get("rope_theta") or fields.get("rope_theta") or 10_000.0),
        "tie_word_embeddings": bool(fields.get("tie_word_embeddings", False)),
        "initializer_range": float(fields.get("initializer_range", 0.02)),
        **({"cls_token_id": opening} if opening not in (None, fields.get("eos_token_id")) else {}),
        **{name: float(fields[name]) for name in ("embd_pdrop", "resid_pdrop", "head_pdrop") if name in fields},
    }


def to_theirs(config: ModelConfig, state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Our weights by Llama's names. A tied output layer is left out: it is the token embedding."""
    width = config.n_embd // config.n_head
    rows = {
        "attn.c_attn": [config.n_head * width, config.kv_heads * width, config.kv_heads * width],
        "mlp.c_fc": [config.inner, config.inner],
    }
    for name, tensor in state.items():
        found = _LAYER.fullmatch(name)
        if found is None:
            if name != "lm_head.weight" or not config.tie_word_embeddings:
                yield f"{_OUTER[name.removesuffix('.weight')]}.weight", tensor
            continue
        layer, part = found.groups()
        if part in _PARTS:
            pieces = tensor.split(rows[part])
            yield from (
                (f"model.layers.{layer}.{theirs}.weight", piece)
                for theirs, piece in zip(_PARTS[part], pieces, strict=True)
            )
        else:
            yield f"model.layers.{layer}.{_NAMES[part]}.weight", tensor


def to_ours(config: ModelConfig, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Llama's weights by our names. KeyError for a weight that Llama does not have."""
    import torch

    for name, tensor in tensors.items():
        found = _LAYER.fullmatch(name)
        if found is None:
            yield f"{_OURS[name.removesuffix('.weight')]}.weight", tensor
            continue
        layer, part = found.groups()
        ours = _THEIR_PARTS.get(part)
        if ours is None:
            yield f"transformer.h.{layer}.{_OURS[part]}.weight", tensor
        elif part == _PARTS[ours][0]:  # the first of those that we keep in one
            pieces = [tensors[name.replace(part, theirs)] for theirs in _PARTS[ours]]
            yield f"transformer.h.{layer}.{ours}.weight", torch.cat(pieces)


def whole(name: str) -> str:
    """A weight's name with the prefix that LlamaModel's lack."""
    return name if name.startswith(("model.", "lm_head", "score")) else f"model.{name}"
