"""Which parameters are trained: all, the last blocks, the head, or low-rank adapters beside frozen weights.

The one idea: what is frozen is a function of the job (seed, and the export that training starts from), so it is never
saved, gathered or sent: checkpoints and what is read back from the engine hold the trained parameters alone, and the
whole model is the initial one with those put in.

LoRA is `peft`'s, in our own Transformer. Its first weights are ours, a pure function of (seed, parameter's name), and
so is its dropout, which is keyed like every other (DESIGN rule 5).
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from model.dropout import dropout, site_constants
from model.tuning_config import LoraConfig, Tuning

ADAPTER = "default"  # peft's name of the one adapter that there is
_LORA_SITES = 1 << 20  # dropout sites from here on are adapters'; those of blocks and heads are far below


def prepare(model: nn.Module, tuning: Tuning, seed: int) -> None:
    """Freeze what `tuning` does not train, after putting adapters in where it asks for them. In place.

    ValueError if nothing would be left to train.
    """
    if tuning.tune == "all":
        return
    chosen = _chosen(model, tuning)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
    if tuning.tune == "lora":
        _put_in_adapters(model, tuning.lora, seed)
    elif not chosen:
        raise ValueError(
            f"tune={tuning.tune} leaves nothing to train: this model has no head of its own (its output layer is the token "
            "embedding); choose last_layers, lora or all"
        )


def counts(model: nn.Module) -> tuple[int, int]:
    """How many parameters are trained, and how many there are."""
    sizes = [(p.requires_grad, getattr(p, "ds_numel", p.numel())) for p in model.parameters()]
    return sum(size for trained, size in sizes if trained), sum(size for _, size in sizes)


def _chosen(model: nn.Module, tuning: Tuning) -> set[str]:
    """The parameters of the model itself that are trained."""
    names = [name for name, _ in model.named_parameters()]
    head = {name for name in names if not name.startswith("transformer.")}
    if tuning.tune == "lora":  # an output layer of its own is pre-trained like any block, and has no adapter
        return head - {"lm_head.weight"}
    if tuning.tune == "head":
        return head
    blocks = 1 + max(int(found[1]) for name in names if (found := re.match(r"transformer\.h\.(\d+)\.", name)))
    assert tuning.last_layers is not None
    if tuning.last_layers > blocks:
        raise ValueError(f"last_layers={tuning.last_layers} is more than the model's {blocks} blocks; choose fewer")
    first = blocks - tuning.last_layers
    after = [name for name in names if (found := re.match(r"transformer\.h\.(\d+)\.", name)) and int(found[1]) >= first]
    return head | set(after) | {name for name in names if name.startswith("transformer.ln_f.")}


def targets(lora: LoraConfig) -> list[str]:
    """The modules of a block that get an adapter, as our Transformer names them."""
    both = lora.targets == "attention_and_feed_forward"
    return ["attn.c_attn", "attn.c_proj", *(["mlp.c_fc", "mlp.c_proj"] if both else [])]


def _put_in_adapters(model: nn.Module, lora: LoraConfig, seed: int) -> Any:
    """Put adapters into `model`, in place; peft's wrapper around it."""
    from peft import LoraConfig as PeftConfig
    from peft.tuners.lora import LoraModel

    config = PeftConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=0.0, target_modules=targets(lora), bias="none")
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    tuner = LoraModel(model, config, ADAPTER)  # which freezes everything else, heads too
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained or ".lora_" in name)
    _initialize(model, seed)
    if lora.dropout:
        _key_dropout(model, lora.dropout)
    return tuner


@torch.no_grad()
def _initialize(model: nn.Module, seed: int) -> None:
    """A uniform in +-1 / sqrt(in), as peft draws it, but of a generator of its own; B zero: the first step begins at the base."""
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            parameter.zero_()
        elif ".lora_A." in name:
            digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
            bound = 1 / math.sqrt(parameter.shape[1])
            parameter.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator))


class _KeyedDropout(nn.Module):
    """Dropout of one adapter's input, by the keys that the model was called with last."""

    def __init__(self, probability: float, keys: dict[str, Tensor | None], site: int) -> None:
        super().__init__()
        self.probability, self.keys, self.site = probability, keys, site_constants(site)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, C) -> (B, T, C)."""
        return dropout(x, self.probability, self.keys["rows"], self.site)


def _key_dropout(model: nn.Module, probability: float) -> None:
    """Give every adapter our dropout in place of peft's, which draws from torch's global generator.

    Modules inside of blocks are not handed the keys, so the model's own call leaves them where all adapters look. A
    block that runs again in the backward pass finds those of its forward pass: it comes before the next one.
    """
    keys: dict[str, Tensor | None] = {"rows": None}

    def remember(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        keys["rows"] = named.get("row_keys", arguments[2] if len(arguments) > 2 else None)

    model.register_forward_pre_hook(remember, with_kwargs=True)
    layers = [module for module in model.modules() if hasattr(module, "lora_dropout")]
    for number, layer in enumerate(layers):
        cast(nn.ModuleDict, layer.lora_dropout)[ADAPTER] = _KeyedDropout(probability, keys, _LORA_SITES + number)


def put_back(initial: nn.Module, trained: Mapping[str, Tensor]) -> None:
    """Put the trained parameters into the initial model. ValueError if they are not exactly those that it trains."""
    own = {name: parameter for name, parameter in initial.named_parameters() if parameter.requires_grad}
    if own.keys() != trained.keys():
        raise ValueError(f"not the parameters that this model trains: {sorted(own.keys() ^ trained.keys())[:5]}")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(trained[name])


def merged(model: nn.Module) -> dict[str, Tensor]:
    """The whole model's state by its own names, with adapters added to the weights that they stand beside: W + (alpha / r) B A."""
    for module in model.modules():
        if hasattr(module, "lora_dropout"):
            cast(Any, module).merge(safe_merge=True)
    return {
        name.replace(".base_layer.", "."): parameter.detach()
        for name, parameter in model.named_parameters()
        if ".lora_" not in name
    }
