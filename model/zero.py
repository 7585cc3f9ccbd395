"""The DeepSpeed engine around a model: built from a recipe, and read back as whole fp32 weights.

The one idea: DeepSpeed owns where the state lies (ZeRO's partitions, offload), we own what is computed: the
optimizer is our own `torch.optim.AdamW` with a learning rate that is set from outside at each step, so nothing of
the schedule is state, and nothing needs a compiler.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from model.adamw import AdamW
from model.train_config import TrainConfig, deepspeed_config
from model.world import World, import_deepspeed


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """AdamW's groups: weight decay on matrices only, none on biases and norms, as GPT-3 was trained (Brown et al. 2020)."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in parameters if parameter.ndim >= 2]
    vectors = [parameter for parameter in parameters if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]  # ZeRO takes no empty group, and adapters have no vectors


def optimizer(model: nn.Module, train: TrainConfig) -> AdamW:
    """The optimizer, fused: one pass over memory for each tensor."""
    return AdamW(
        parameter_groups(model, train.weight_decay),
        lr=train.learning_rate,
        betas=(train.beta1, train.beta2),
        eps=train.epsilon,
        fused=True,
    )


def build_engine(model: nn.Module, train: TrainConfig, world: World, micro_batch_size: int, *, universal: bool) -> Any:
    """A DeepSpeedEngine that trains `model`. `universal`: it is going to load a checkpoint in the universal format."""
    deepspeed = import_deepspeed(world.device.type)
    config = deepspeed_config(train, world.size, micro_batch_size)
    if universal:
        config["checkpoint"] = {"load_universal": True}
    model.to(world.device)
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=optimizer(model, train), config=config, dist_init_required=False
    )
    if train.compile:
        engine.compile()
    return engine


def set_learning_rate(engine: Any, rate: float) -> None:
    """Use `rate` in the engine's next optimizer step."""
    for group in engine.optimizer.param_groups:
        group["lr"] = rate


def gradient_norm(engine: Any) -> float:
    """The global L2 norm of the last step's gradients before clipping, NaN if they had none. At ZeRO 0 call it before that step."""
    norm = engine.get_global_grad_norm()
    if norm is None:
        norm = torch.nn.utils.get_total_norm([p.grad for p in engine.module.parameters() if p.grad is not None])
    return math.nan if norm < 0 else float(norm)  # ZeRO says -1 where the norm is infinite or no number


def _whole(parameter: nn.Parameter, train: TrainConfig) -> torch.Tensor:
    """A parameter's fp32 values, gathered from all ranks: the master copy where training is in bf16. Collective."""
    import deepspeed

    if train.precision == "bf16":
        return deepspeed.utils.safe_get_full_fp32_param(parameter)
    with deepspeed.zero.GatheredParameters([parameter], enabled=train.zero_stage == 3):
        return parameter.detach().clone()


def full_state(engine: Any, train: TrainConfig, world: World) -> dict[str, torch.Tensor]:
    """The trained parameters, whole and in fp32, on the host of rank 0; empty on the others. Every rank has to call it."""
    state: dict[str, torch.Tensor] = {}
    for name, parameter in engine.module.named_parameters(remove_duplicate=True):
        if not parameter.requires_grad:
            continue
        values = _whole(parameter, train)
        if world.is_first:
            state[name] = values.float().cpu()
    return state


@torch.no_grad()
def put_state(engine: Any, state: Mapping[str, torch.Tensor], train: TrainConfig) -> None:
    """Give the live model these trained parameters (known to rank 0), to compute with, not to train on. Collective."""
    import deepspeed

    for name, parameter in engine.module.named_parameters(remove_duplicate=True):
        if not parameter.requires_grad:
            continue
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0, enabled=train.zero_stage == 3):
            if name in state:
                parameter.copy_(state[name])
            if train.zero_stage < 3:
                dist.broadcast(parameter.data, src=0)
