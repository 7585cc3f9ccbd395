"""What a training job would be, without doing it: sizes, memory, batches, and one step on shapes alone.

The one idea: the model is built and run on the `meta` device, which has shapes and no memory, so that GPT-2 small or
ten times that is checked on a laptop in seconds.
"""

from __future__ import annotations

import json
from typing import Any

import torch

from model.config import ModelConfig
from model.heads import build
from model.monitor import flops_per_token
from model.train_config import TrainConfig, accumulation_steps, deepspeed_config

_ADAM = 8  # bytes of optimizer state a parameter: two moments in fp32


def describe(job: dict[str, Any]) -> dict[str, Any]:
    """Facts about `job` ({"model", "train", "predicted", "ranks", "micro_batch_size"}) as JSON values.

    ValueError if the batch does not divide over the ranks. Bytes a rank are of weights, gradients and optimizer
    state after ZeRO's partitioning (Rajbhandari et al., 2020, section 3); activations come on top.
    """
    config = ModelConfig.model_validate_json(json.dumps(job["model"]))
    train = TrainConfig.model_validate_json(json.dumps(job["train"]))
    accumulation = accumulation_steps(train.global_batch_size, job["ranks"], job["micro_batch_size"])
    with torch.device("meta"):
        model = build(config)
        micro = train.global_batch_size // job["ranks"] // accumulation
        tokens = torch.zeros((micro, train.sequence_length), dtype=torch.int64)  # (B, T)
        # What BERT is asked about depends on the tokens, and here there are none: the shapes of its hidden states do.
        loss = model.transformer(tokens).sum() if config.family == "bert" else model(tokens, tokens)
        loss.backward()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    flops = flops_per_token(model, config, train.sequence_length, job["predicted"])
    tokens_per_step = train.global_batch_size * train.sequence_length
    return {
        "parameters": parameters,
        "tokens_per_step": tokens_per_step,
        "tokens": tokens_per_step * train.max_steps,
        "micro_batch_size": micro,
        "accumulation_steps": accumulation,
        "flops_per_token": flops,
        "flops": flops * tokens_per_step * train.max_steps,
        "state_bytes_per_rank": state_bytes(parameters, train, job["ranks"]),
        "deepspeed": deepspeed_config(train, job["ranks"], job["micro_batch_size"]),
    }


def state_bytes(parameters: int, train: TrainConfig, ranks: int) -> int:
    """Bytes of weights, gradients and optimizer state on one rank under the ZeRO stage."""
    half = train.precision == "bf16"
    weights, gradients = 2 if half else 4, 4  # which are summed in fp32, also those of bf16 weights
    optimizer = _ADAM + (4 if half else 0)  # bf16 keeps an fp32 copy of the weights with the optimizer
    shared = [1 if train.zero_stage < stage else ranks for stage in (3, 2, 1)]
    return sum(parameters * size // parts for size, parts in zip((weights, gradients, optimizer), shared, strict=True))
