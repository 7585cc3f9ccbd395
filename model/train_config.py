"""How weights are learned, as frozen data. Torch-free, so that planning can read it.

The one idea: these are pure values. `deepspeed_config` is a function of them and of nothing else, so the
same recipe on the same number of ranks configures the same engine everywhere.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import Field, model_serializer, model_validator

from model.config import Config
from model.mixture_quotas import quotas


class TrainConfig(Config):
    """How weights are learned. All of it decides the result, so all of it enters the fingerprint."""

    seed: int = Field(0, ge=0, description="seed of initial weights, data order and dropout")
    max_steps: int = Field(ge=1, description="optimizer steps")
    global_batch_size: int = Field(ge=1, description="sequences in one optimizer step, over all ranks")
    sequence_length: int = Field(ge=2, description="tokens in a sequence (longest, where sequences are padded)")
    learning_rate: float = Field(gt=0, description="peak learning rate")
    min_learning_rate: float = Field(0.0, ge=0, description="learning rate at the end of the cosine")
    warmup_steps: int = Field(0, ge=0, description="steps of linear warm-up")
    weight_decay: float = Field(0.1, ge=0, description="AdamW weight decay, on matrices only")
    beta1: float = Field(0.9, ge=0, lt=1, description="AdamW beta1")
    beta2: float = Field(0.95, ge=0, lt=1, description="AdamW beta2")
    epsilon: float = Field(1e-8, gt=0, description="AdamW epsilon")
    grad_clip: float = Field(1.0, ge=0, description="largest global gradient norm; 0: no clipping")
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="of the forward and backward pass; bf16 keeps fp32 master weights"
    )
    zero_stage: Literal[0, 1, 2, 3] = Field(2, description="DeepSpeed ZeRO stage")
    offload: Literal["none", "optimizer", "optimizer_and_parameters"] = Field(
        "none", description="ZeRO state kept in host memory"
    )
    activation_checkpointing: bool = Field(False, description="recompute blocks in the backward pass to save memory")
    compile: bool = Field(False, description="compile the model with torch.compile (needs a C++ compiler)")

    @model_validator(mode="after")
    def _possible(self) -> TrainConfig:
        if self.warmup_steps > self.max_steps:
            raise ValueError(f"warmup_steps={self.warmup_steps} is more than max_steps={self.max_steps}")
        if self.min_learning_rate > self.learning_rate:
            raise ValueError(f"min_learning_rate={self.min_learning_rate} is above learning_rate={self.learning_rate}")
        if self.offload == "optimizer_and_parameters" and self.zero_stage != 3:
            raise ValueError(f"offload of parameters needs zero_stage=3, not {self.zero_stage}")
        if self.compile and self.zero_stage == 3:
            raise ValueError(
                "compile needs zero_stage of 0, 1 or 2, not 3: its hooks break the graph at every layer, and it is slower"
            )
        if self.precision == "bf16" and self.zero_stage == 0:
            raise ValueError(
                "precision bf16 needs zero_stage of 1, 2 or 3, not 0: DeepSpeed keeps fp32 master weights only there"
            )
        if self.offload == "optimizer" and self.zero_stage == 0:
            raise ValueError("offload of the optimizer needs zero_stage of 1, 2 or 3, not 0")
        return self


class ObjectiveConfig(Config):
    """What an objective makes of unlabelled text. A field at its default is left out when it is dumped: an option that
    came later changes no older recipe's fingerprint."""

    mask_fraction: float = Field(
        0.15, gt=0, le=0.5, description="masked_*: tokens that are targets, of a sequence's, as a fraction"
    )
    whole_words: bool = Field(False, description="masked_*: hide all tokens of a word, or none")
    attention: Literal["across_documents", "within_documents"] = Field(
        "across_documents", description="whether a token sees other documents of its sequence"
    )
    mixture: dict[str, float] = Field(
        {}, description="weight of each corpus, by the label of its source: its share of the samples; by size if empty"
    )

    def predicted(self, objective: str) -> float:
        """The fraction of a batch's tokens that the output layer is asked about."""
        if objective.startswith("masked_lm"):
            return self.mask_fraction
        return 0.0 if objective == "next_sentence" else 1.0

    @model_serializer(mode="wrap")
    def _what_was_chosen(self, dump: Any) -> dict[str, Any]:
        fields: dict[str, Any] = dump(self)
        plain = {name: one.default for name, one in ObjectiveConfig.model_fields.items()}
        return {name: value for name, value in fields.items() if name not in plain or value != plain[name]}

    @model_validator(mode="after")
    def _weights_are_weights(self) -> ObjectiveConfig:
        for name, weight in self.mixture.items():
            if not 0 < weight < math.inf:
                raise ValueError(f"mixture: the weight of {name!r} is {weight}; give each corpus a weight above 0")
        quotas(self.mixture)
        return self


def accumulation_steps(global_batch_size: int, world_size: int, micro_batch_size: int) -> int:
    """Micro-batches that a rank runs in one optimizer step. ValueError if the batch does not divide."""
    per_rank, rest = divmod(global_batch_size, world_size)
    if rest or per_rank == 0:
        raise ValueError(
            f"global_batch_size={global_batch_size} does not divide over {world_size} ranks; choose a multiple of {world_size}"
        )
    micro = min(micro_batch_size, per_rank)
    if per_rank % micro:
        raise ValueError(
            f"a rank's {per_rank} sequences (global_batch_size={global_batch_size} over {world_size} ranks) do not divide "
            f"into micro-batches of {micro}; choose micro_batch_size from the divisors of {per_rank}"
        )
    return per_rank // micro


def deepspeed_config(train: TrainConfig, world_size: int, micro_batch_size: int) -> dict[str, Any]:
    """The DeepSpeed configuration: a pure function of the recipe and of how the batch is sliced."""
    accumulation = accumulation_steps(train.global_batch_size, world_size, micro_batch_size)
    zero: dict[str, Any] = {"stage": train.zero_stage, "overlap_comm": False, "contiguous_gradients": True}
    if train.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu"}
    if train.offload == "optimizer_and_parameters":
        zero["offload_param"] = {"device": "cpu"}
    config: dict[str, Any] = {
        "train_batch_size": train.global_batch_size,
        "train_micro_batch_size_per_gpu": train.global_batch_size // world_size // accumulation,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": train.grad_clip,
        "zero_optimization": zero,
        "bf16": {"enabled": train.precision == "bf16"},
        # The optimizer is our own torch.optim.AdamW: no compiler is needed to build DeepSpeed's.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 1 << 62,
    }
    if train.precision == "bf16":
        # Micro-batches' gradients are summed in fp32: in bf16 a sum of many loses those that are small beside it.
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    return config
