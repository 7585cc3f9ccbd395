"""An adapter alone, in peft's own format: whoever has the base model puts it on with `PeftModel.from_pretrained`.

The one idea: an adapter speaks of modules by Hugging Face's names, and `hf.py` knows those of every family: the B matrix
stands where the weight of its module stands, and is renamed, turned and cut into its Q, K and V as that would be.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from model import durable
from model.config import ModelConfig
from model.hf import to_hugging_face
from model.tuning import ADAPTER
from model.tuning_config import LoraConfig

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_TASKS = {"classification": "SEQ_CLS", "span": "QUESTION_ANS", "language_model": "CAUSAL_LM"}  # peft's, by our head
_PREFIX = "base_model.model."  # peft's own: the model inside of its wrapper


def write(folder: Path, config: ModelConfig, lora: LoraConfig, trained: Mapping[str, Tensor]) -> None:
    """Write the adapter into the new folder: `trained` are the parameters that a LoRA run trains, on the host."""
    from safetensors.torch import save_file

    folder.mkdir()
    tensors, modules = _in_peft_names(config, trained)
    durable.write_json(folder / CONFIG, _config(config, lora, modules, tensors))
    with durable.writing(folder / WEIGHTS) as draft:
        save_file(
            {name: tensor.contiguous() for name, tensor in sorted(tensors.items())}, draft, metadata={"format": "pt"}
        )


def _in_peft_names(config: ModelConfig, trained: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The adapter's tensors as peft names them, and the modules that have one, by Hugging Face's names."""
    tensors, modules, heads = {}, list[str](), dict[str, Tensor]()
    for name, tensor in trained.items():
        module, _, kind = name.partition(".lora_")
        if not kind:
            heads[name] = tensor
        elif kind.startswith("B."):
            for target, part in _parts(config, module, tensor).items():
                modules.append(target)
                tensors[f"{_PREFIX}{target}.lora_A.weight"] = trained[f"{module}.lora_A.{ADAPTER}.weight"].clone()
                tensors[f"{_PREFIX}{target}.lora_B.weight"] = part.clone()
    if heads:
        tensors |= {f"{_PREFIX}{name}": tensor for name, tensor in to_hugging_face(config, heads)[1].items()}
    return tensors, modules


def _parts(config: ModelConfig, module: str, b: Tensor) -> dict[str, Tensor]:
    """The rows of B (out, r) of one of our modules, by the Hugging Face modules that they belong to."""
    _, found = to_hugging_face(config, {f"{module}.weight": b})
    turned = _turned(config)
    return {name.removesuffix(".weight"): part.t() if turned else part for name, part in found.items()}


def _turned(config: ModelConfig) -> bool:
    """Whether the family keeps the weights of its blocks as (in, out): GPT-2's Conv1D."""
    return config.family == "gpt2"


def _config(config: ModelConfig, lora: LoraConfig, modules: list[str], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """adapter_config.json: what peft needs to know. Which base it belongs to is said where it is registered."""
    saved = {name.removeprefix(_PREFIX).rpartition(".")[0] for name in tensors if ".lora_" not in name}
    return {
        "peft_type": "LORA",
        "task_type": _TASKS.get(config.head_kind),  # of what peft has no class for, the plain one: none
        "base_model_name_or_path": None,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "bias": "none",
        "fan_in_fan_out": _turned(config),
        "target_modules": sorted({_in_a_block(module) for module in modules}),
        "modules_to_save": sorted(saved) or None,
        "inference_mode": True,
    }


def _in_a_block(module: str) -> str:
    """What follows the number of the block: `attn.c_attn` of `transformer.h.0.attn.c_attn`."""
    parts = module.split(".")
    return ".".join(parts[next(index for index, part in enumerate(parts) if part.isdigit()) + 1 :])
