"""What a training job is, as data: the JSON object that every rank of it gets.

The one idea: a job says all that a rank needs and nothing that it could find out. Paths and slicing are in it, for
it is never hashed; what decides the result is in `model` and `train`. Torch-free.
"""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import Field, model_validator

from model.config import Config, ModelConfig
from model.train_config import ObjectiveConfig, TrainConfig
from model.tuning_config import Tuning


class StreamData(Config):
    """Training text: a manifest of token shards."""

    manifest: str
    root: str = Field(description="folder that the manifest's paths are relative to")


class ExampleData(Config):
    """Training examples: one file of tokenised examples."""

    examples: str
    pool: int = Field(16, ge=1, description="global batches among which examples are sorted by length")


class RankJob(Config):
    """What a rank is to do. All ranks of a job get the same."""

    model: ModelConfig
    train: TrainConfig
    objective: Literal["causal_lm", "masked_lm", "next_sentence", "masked_lm_next_sentence", "classification", "span"]
    objective_options: ObjectiveConfig = ObjectiveConfig()
    data: StreamData | ExampleData
    tokenizer: str = Field(description="folder of the tokenizer that the export carries")
    tuning: Tuning = Field(Tuning(), description="which weights are trained, and what may stop it early")
    validation: str | None = Field(None, description="file of the tokenised examples that early stopping looks at")
    init: str | None = Field(None, description="export folder to start from; none: weights are a function of the seed")
    release: bool = Field(
        True, description="leave a Hugging Face export behind; false: our own weights, which no other software reads"
    )
    export_precision: Literal["fp32", "bf16"] = Field("fp32", description="of the export's weights")
    attempt: str = Field(description="folder of this owner; nothing is written outside of it but by a rename from it")
    outputs: str = Field(description="folder in the attempt for what the step leaves behind")
    checkpoints: str = Field(description="folder of the published checkpoints, older attempts' too")
    micro_batch_size: int = Field(ge=1, description="most sequences in one forward pass of a rank")
    threads: int = Field(1, ge=1, description="threads of a rank's CPU kernels; decides the last bits of the result")
    device: Literal["cpu", "cuda"] = "cpu"
    checkpoint_every: int = Field(0, ge=0, description="steps between checkpoints; 0: none by steps")
    checkpoint_seconds: float = Field(0, ge=0, description="seconds between checkpoints; 0: none by time")
    permanent_every: int = Field(0, ge=0, description="steps between checkpoints that stay for good; 0: none")
    permanent: str | None = Field(None, description="folder of those that stay; they are resumed from as others are")
    peak_flops: float | None = Field(
        None, gt=0, description="FLOP/s that one rank could reach, for MFU; none: measured"
    )
    keep_checkpoints: int = Field(2, ge=1, description="newest good checkpoints that are kept, beside permanent ones")
    verify: bool = Field(True, description="hash every token shard before it is read")

    @model_validator(mode="after")
    def _room_for_permanent(self) -> RankJob:
        if self.permanent_every and self.permanent is None:
            raise ValueError(f"permanent_every={self.permanent_every} needs the folder `permanent`")
        return self

    @model_validator(mode="after")
    def _something_to_validate(self) -> RankJob:
        early = self.tuning.early_stopping
        if early and self.validation is None:
            raise ValueError("tuning.early_stopping needs `validation`, a file of examples")
        if early and early.metric == "accuracy" and self.objective != "classification":
            raise ValueError(
                f"early_stopping.metric=accuracy needs classes, and the objective is {self.objective}; use loss"
            )
        return self

    @staticmethod
    def parse(job: dict[str, Any]) -> RankJob:
        """The job of a JSON value. pydantic's ValidationError names each field that is wrong."""
        return RankJob.model_validate_json(json.dumps(job))
