"""When a model is released: the names it is registered under, the gates it has to pass, how a champion is challenged.

The one idea: a gate and a challenge are conditions on measured figures, so they say what is measured and what is enough.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from model.config import Config

MEASURED = ("export_bytes", "latency_ms")  # what registering measures itself, of any model


class Gate(Config):
    """A condition on an evaluation metric, a size or a latency that a version has to meet to become champion."""

    metric: str = Field(
        description="a metric of the evaluation, as it is named there; export_bytes; or latency_ms, which is measured "
        "where a gate names it"
    )
    minimum: float | None = Field(None, description="smallest value that passes")
    maximum: float | None = Field(None, description="largest value that passes")
    baseline: str | None = Field(
        None, description="another metric that the bound is measured from; the bounds are then differences"
    )

    @model_validator(mode="after")
    def _bounded(self) -> Gate:
        if self.minimum is None and self.maximum is None:
            raise ValueError(f"a gate on {self.metric} needs a minimum or a maximum")
        return self


class RegisterConfig(Config):
    """Under which names models are registered, and what makes a version champion."""

    base: str = Field(
        "base",
        pattern=r"^[\w.-]+$",
        description="registered name of the base model (of an imported one: where its adapter is registered)",
    )
    task: str = Field("sentiment", pattern=r"^[\w.-]+$", description="registered name of the task's model")
    base_gates: tuple[Gate, ...] = Field((), description="all must pass for `base@champion`")
    task_gates: tuple[Gate, ...] = Field((), description="all must pass for the task's `@champion`")
    adapter: str | None = Field(
        None,
        pattern=r"^[\w.-]+$",
        description="registered name of the adapter alone, against its base version (finetune.tune=lora); none: it is not registered",
    )


class RetrainConfig(Config):
    """How a champion is challenged when there is something new, and when the challenger takes its place."""

    start: Literal["continue_pretraining", "base", "champion", "scratch"] = Field(
        "continue_pretraining",
        description="pre-training goes on from the base champion, then fine-tuning (new documents and new examples "
        "count); or fine-tuning alone starts from the base champion, or from the task's champion, head included (only "
        "new examples count); or everything is trained from scratch. Without a task, champion is the base champion",
    )
    pretrain_steps: int | None = Field(
        None, ge=1, description="optimizer steps for which pre-training goes on; pretrain.max_steps if none"
    )
    finetune_steps: int | None = Field(
        None, ge=1, description="optimizer steps of fine-tuning; finetune.max_steps if none"
    )
    learning_rate_factor: float = Field(
        1.0, gt=0, description="both learning rates are multiplied by this: what is trained already wants smaller steps"
    )
    minimum_gain: float = Field(
        0.0,
        description="the lower end of the gain's 95 % interval has to be above this: accuracy, or fewer bits per byte",
    )
