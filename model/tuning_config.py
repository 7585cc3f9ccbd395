"""What of a model fine-tuning changes, and when it stops, as frozen data. Torch-free, so that planning can read it.

The one idea: a choice that says nothing is the choice that was there before it. `Tuning().meaning()` is empty, so a
recipe that tunes all weights to the last step has the fingerprint that it had when nothing else could be asked for.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from model.config import Config

Tune = Literal["all", "last_layers", "head", "lora"]


class LoraConfig(Config):
    """Low-rank adapters (Hu et al. 2021, LoRA): W x becomes W x + (alpha / rank) B A x, and only A and B are learned."""

    rank: int = Field(8, ge=1, description="rows of A and columns of B")
    alpha: int = Field(16, ge=1, description="the adapter's output is multiplied by alpha / rank")
    dropout: float = Field(0.0, ge=0, le=0.99, description="dropout of the adapters' inputs, a probability")
    targets: Literal["attention", "attention_and_feed_forward"] = Field(
        "attention", description="which matrices of each block get an adapter, whatever the family calls them"
    )


class EarlyStopping(Config):
    """Stop when the validation examples get no better, and keep the weights that were best on them."""

    metric: Literal["loss", "accuracy"] = Field("loss", description="what is compared; accuracy needs classes")
    every: int = Field(50, ge=1, description="optimizer steps between two evaluations; one more after the last step")
    patience: int = Field(
        3, ge=1, description="evaluations in a row that are no better than the best before training stops"
    )


class Tuning(Config):
    """Which weights are learned, and for how long at most."""

    tune: Tune = Field(
        "all",
        description="all: every weight; last_layers: the last blocks, what follows them and the head; head: what the task "
        "adds on top of the pre-trained model; lora: low-rank adapters, and that head",
    )
    last_layers: int | None = Field(None, ge=1, description="blocks that tune=last_layers trains")
    lora: LoraConfig = Field(LoraConfig(), description="the adapters of tune=lora")
    early_stopping: EarlyStopping | None = Field(
        None, description="stop by the validation examples; none: all max_steps, and the last weights"
    )

    @model_validator(mode="after")
    def _belongs_together(self) -> Tuning:
        if (self.tune == "last_layers") != (self.last_layers is not None):
            raise ValueError(
                f"tune={self.tune} and last_layers={self.last_layers}: give a number exactly with tune=last_layers"
            )
        if self.tune != "lora" and self.lora != LoraConfig():
            raise ValueError(f"lora is given, but tune={self.tune}; set tune=lora or leave lora out")
        return self

    def meaning(self) -> dict[str, Any]:
        """What enters a step's configuration: nothing where all weights are tuned to the last step."""
        used = {"all": set(), "head": {"tune"}, "last_layers": {"tune", "last_layers"}, "lora": {"tune", "lora"}}[
            self.tune
        ]
        if self.early_stopping:
            used = used | {"early_stopping"}
        return self.model_dump(mode="json", include=used)
