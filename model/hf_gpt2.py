"""GPT-2 in Hugging Face's names: GPT2LMHeadModel and GPT2ForSequenceClassification.

The one idea: our modules bear GPT-2's names, so all that differs is how matrices lie: `Conv1D` computes x W + b with
W (in, out), `nn.Linear` computes x W^T + b with W (out, in).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from model.config import ModelConfig

if TYPE_CHECKING:
    from torch import Tensor

ARCHITECTURES = {"language_model": "GPT2LMHeadModel", "classification": "GPT2ForSequenceClassification"}
BARE = "GPT2Model"  # with no head
ACTIVATIONS = {"gelu": "gelu_new", "relu": "relu"}
# Options of GPT2Config that change what is computed, with the only value that Transformer computes.
COMPUTED = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}
_CONV1D = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
BUFFERS = (".attn.bias", ".attn.masked_bias")  # causal masks that old checkpoints carry
TIED = {"lm_head.weight": "transformer.wte.weight"}
_BLOCK = r"transformer\.h\.\d+\.(ln_1|ln_2|attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj)\.(weight|bias)"
_OUTER = r"transformer\.(wte|wpe)\.weight|transformer\.ln_f\.(weight|bias)|(lm_head|score)\.weight"
_KNOWN = re.compile(f"{_BLOCK}|{_OUTER}")


def config_json(config: ModelConfig) -> dict[str, Any]:
    """GPT2Config's fields beside those that all families share. `head_pdrop` is ours; transformers keeps what it does not know."""
    return {
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
        "bos_token_id": config.eot_token_id,
        "eos_token_id": config.eot_token_id,
        "pad_token_id": config.padding,
        "use_cache": True,
        "activation_function": ACTIVATIONS[config.feed_forward_kind],
    } | COMPUTED


def shape(fields: Mapping[str, Any]) -> dict[str, Any]:
    """GPT2Config's fields as ModelConfig's."""
    names = ("n_positions", "n_embd", "n_layer", "n_head", "n_inner", "tie_word_embeddings")
    numbers = ("embd_pdrop", "resid_pdrop", "head_pdrop", "layer_norm_epsilon", "initializer_range")
    found = {name: fields[name] for name in names if name in fields}
    found |= {name: float(fields[name]) for name in numbers if name in fields}
    kind = {theirs: ours for ours, theirs in ACTIVATIONS.items()}[fields.get("activation_function", "gelu_new")]
    return found | ({} if kind == "gelu" else {"feed_forward": kind})


def to_theirs(config: ModelConfig, state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Our weights by GPT-2's names and as it keeps them. A tied output layer is left out: it is the token embedding."""
    for name, tensor in state.items():
        if name != "lm_head.weight" or not config.tie_word_embeddings:
            yield name, tensor.t() if name.endswith(_CONV1D) else tensor


def to_ours(config: ModelConfig, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """GPT-2's weights by our names. KeyError for a weight that GPT-2 does not have."""
    for name, tensor in tensors.items():
        if not _KNOWN.fullmatch(name):
            raise KeyError(name)
        yield name, tensor.t() if name.endswith(_CONV1D) else tensor


def whole(name: str) -> str:
    """A weight's name with the prefix that GPT2Model's, and OpenAI's own files, lack."""
    return name if name.startswith(("transformer.", "lm_head.", "score.")) else f"transformer.{name}"
