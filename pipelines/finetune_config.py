"""How a task is learned from a base model: the part of a Recipe that fine-tuning reads.

The one idea: it is the training of a base model (`TrainConfig`) with what only a task has: where it begins, which weights
are tuned, and what becomes of examples that are long, or of rare classes.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from model.train_config import TrainConfig
from model.tuning_config import Tuning
from pipelines.forms.long_texts import stride as stride_of

# Fields of fine-tuning that came later: a step's config has them only where they are set, see task_config.py.
ADDED_TO_FINETUNE = ("length_pool", "class_weights", "long_texts", "window_stride")


class FinetuneConfig(TrainConfig, Tuning):
    """Fine-tuning on a task. `sequence_length` cuts longer examples, which is counted and reported."""

    init: Literal["base", "random"] = Field(
        "base", description="start from the pre-trained base model or from random weights"
    )
    dropout: float = Field(
        0.1, ge=0, le=0.99, description="dropout of embeddings, residual branches and head, a probability"
    )
    length_pool: int = Field(
        16, ge=1, description="global batches among which examples are sorted by length: more leave less padding"
    )
    class_weights: Literal["none", "balanced"] = Field(
        "none",
        description="of a classification: what each class counts in the loss; balanced: all classes alike in sum",
    )
    long_texts: Literal["cut", "windows"] = Field(
        "cut",
        description="of a classification: texts longer than sequence_length lose their end, or are read in windows of that "
        "length, whose probabilities are averaged; of questions about a text likewise, and the best window answers",
    )
    window_stride: int | None = Field(
        None,
        ge=1,
        description="tokens between the beginnings of two windows, at most those that a window has room for beside special "
        "tokens; half of sequence_length if none",
    )

    @model_validator(mode="after")
    def _windows_reach(self) -> FinetuneConfig:
        if self.window_stride is not None and self.long_texts != "windows":
            raise ValueError("window_stride is of windows: set long_texts=windows, or leave it out")
        if self.window_stride is not None and self.window_stride > self.sequence_length:
            raise ValueError(
                f"window_stride={self.window_stride} passes over tokens: choose at most sequence_length={self.sequence_length}"
            )
        return self

    @property
    def stride(self) -> int:
        """Tokens between the beginnings of two windows; 0 where texts are cut."""
        return stride_of(vars(self))

    @model_validator(mode="after")
    def _something_learned_before(self) -> FinetuneConfig:
        if self.tune != "all" and self.init == "random":
            raise ValueError(
                f"tune={self.tune} freezes weights that init=random never trained; set tune=all or init=base"
            )
        return self
