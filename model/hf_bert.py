"""BERT in Hugging Face's names: BertForPreTraining, BertForMaskedLM, BertForSequenceClassification, BertForQuestionAnswering.

The one idea: a table of names. Q, K and V, which we keep in one matrix, are three there; the decoder's weights are the
token embedding's and only its bias is kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from model.config import ModelConfig

if TYPE_CHECKING:
    from torch import Tensor

ARCHITECTURES = {
    "pretraining": "BertForPreTraining",
    "masked_lm": "BertForMaskedLM",
    "classification": "BertForSequenceClassification",
    "span": "BertForQuestionAnswering",
}
BARE = "BertModel"  # with no head
ACTIVATIONS = {"gelu": "gelu", "relu": "relu"}
# Options of BertConfig that change what is computed, with the only value that Transformer computes.
COMPUTED = {
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}
_PARTS = ("attention.self.query", "attention.self.key", "attention.self.value")
_NAMES = {
    "attn.c_proj": "attention.output.dense",
    "ln_1": "attention.output.LayerNorm",
    "mlp.c_fc": "intermediate.dense",
    "mlp.c_proj": "output.dense",
    "ln_2": "output.LayerNorm",
}
_OUTER = {
    "transformer.wte": "bert.embeddings.word_embeddings",
    "transformer.wpe": "bert.embeddings.position_embeddings",
    "transformer.wse": "bert.embeddings.token_type_embeddings",
    "transformer.ln_e": "bert.embeddings.LayerNorm",
    "pooler": "bert.pooler.dense",
    "predictor.transform": "cls.predictions.transform.dense",
    "predictor.ln": "cls.predictions.transform.LayerNorm",
    "next_sentence": "cls.seq_relationship",
    "score": "classifier",
    "span": "qa_outputs",
}
_OURS = {theirs: ours for ours, theirs in (_NAMES | _OUTER).items()}
BUFFERS = ("embeddings.position_ids",)  # 0, 1, 2, .. in old files
TIED = {
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}
_OLD = {".gamma": ".weight", ".beta": ".bias"}  # TensorFlow's names, in old files
_OUR_LAYER = re.compile(r"transformer\.h\.(\d+)\.(.+)\.(weight|bias)")
_THEIR_LAYER = re.compile(r"bert\.encoder\.layer\.(\d+)\.(.+)\.(weight|bias)")


def config_json(config: ModelConfig) -> dict[str, Any]:
    """BertConfig's fields beside those that all families share."""
    return {
        "max_position_embeddings": config.n_positions,
        "hidden_size": config.n_embd,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "intermediate_size": config.inner,
        "hidden_act": ACTIVATIONS[config.feed_forward_kind],
        "type_vocab_size": config.segments,
        "layer_norm_eps": config.layer_norm_epsilon,
        # BERT has one probability for embeddings and branches; ours, which may be two, are kept beside it.
        "hidden_dropout_prob": config.resid_pdrop,
        "embd_pdrop": config.embd_pdrop,
        "resid_pdrop": config.resid_pdrop,
        "attention_probs_dropout_prob": 0.0,
        "classifier_dropout": config.head_pdrop,
        "pad_token_id": config.padding,
        "eos_token_id": config.eot_token_id,
        "cls_token_id": config.cls_token_id,
        "sep_token_id": config.sep_token_id,
        "mask_token_id": config.mask_token_id,
        "use_cache": False,
    } | COMPUTED


def shape(fields: Mapping[str, Any]) -> dict[str, Any]:
    """BertConfig's fields as ModelConfig's."""
    kind = {theirs: ours for ours, theirs in ACTIVATIONS.items()}[fields.get("hidden_act", "gelu")]
    dropped = float(fields.get("hidden_dropout_prob", 0.0))
    last = fields.get("classifier_dropout")
    return {
        "n_positions": fields["max_position_embeddings"],
        "n_embd": fields["hidden_size"],
        "n_layer": fields["num_hidden_layers"],
        "n_head": fields["num_attention_heads"],
        "n_inner": fields["intermediate_size"],
        "type_vocab_size": fields.get("type_vocab_size", 2),
        "layer_norm_epsilon": float(fields.get("layer_norm_eps", 1e-12)),
        "initializer_range": float(fields.get("initializer_range", 0.02)),
        "embd_pdrop": float(fields.get("embd_pdrop", dropped)),
        "resid_pdrop": float(fields.get("resid_pdrop", dropped)),
        "head_pdrop": dropped if last is None else float(last),
        **({} if kind == "gelu" else {"feed_forward": kind}),
        **{
            name: fields[name]
            for name in ("cls_token_id", "sep_token_id", "mask_token_id")
            if fields.get(name) is not None
        },
    }


def to_theirs(config: ModelConfig, state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Our weights by BERT's names. The decoder's weights are left out: they are the token embedding."""
    for name, tensor in state.items():
        found = _OUR_LAYER.fullmatch(name)
        if found is None:
            if name == "predictor.decoder.bias":
                yield "cls.predictions.bias", tensor
            elif name != "predictor.decoder.weight":
                module, _, kind = name.rpartition(".")
                yield f"{_OUTER[module]}.{kind}", tensor
            continue
        layer, part, kind = found.groups()
        if part == "attn.c_attn":
            yield from (
                (f"bert.encoder.layer.{layer}.{theirs}.{kind}", piece)
                for theirs, piece in zip(_PARTS, tensor.chunk(3), strict=True)
            )
        else:
            yield f"bert.encoder.layer.{layer}.{_NAMES[part]}.{kind}", tensor


def to_ours(config: ModelConfig, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """BERT's weights by our names. KeyError for a weight that BERT does not have."""
    import torch

    for name, tensor in tensors.items():
        found = _THEIR_LAYER.fullmatch(name)
        if found is None:
            if name == "cls.predictions.bias":
                yield "predictor.decoder.bias", tensor
            else:
                module, _, kind = name.rpartition(".")
                yield f"{_OURS[module]}.{kind}", tensor
            continue
        layer, part, kind = found.groups()
        if part == _PARTS[0]:
            pieces = [tensors[name.replace(part, one)] for one in _PARTS]
            yield f"transformer.h.{layer}.attn.c_attn.{kind}", torch.cat(pieces)
        elif part not in _PARTS:
            yield f"transformer.h.{layer}.{_OURS[part]}.{kind}", tensor
    if any(name.startswith("cls.predictions.") for name in tensors):
        yield "predictor.decoder.weight", tensors["bert.embeddings.word_embeddings.weight"]


def whole(name: str) -> str:
    """A weight's name as it is today, with the prefix that BertModel's lack."""
    for old, new in _OLD.items():
        if name.endswith(old):
            name = name.removesuffix(old) + new
    return name if name.startswith(("bert.", "cls.", "classifier.", "qa_outputs.")) else f"bert.{name}"
