"""Jobs that tune a part of a small base model: every kind, every ZeRO stage, with and without early stopping."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from model.config import ModelConfig
from model.export import write_export
from model.heads import build
from tests.model.training_runs import Jobs

LORA = {"tune": "lora", "lora": {"rank": 3, "alpha": 6, "dropout": 0.1, "targets": "attention_and_feed_forward"}}
EARLY = {"early_stopping": {"metric": "loss", "every": 2, "patience": 2}}


class TuningJobs(Jobs):
    """Jobs that start from one base model, a language model with random weights."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.base = folder / "base"
        config = ModelConfig(**self.job("shape")["model"])
        write_export(self.base, config, build(config, seed=3).state_dict(), self.tokenizer)

    def tuned(self, name: str, tuning: dict[str, Any], *, stage: int = 2, **train: Any) -> dict[str, Any]:
        """A classifier on top of the base."""
        validation = str(self.folder / "examples.arrow") if "early_stopping" in tuning else None
        return self.classification(
            name, tuning=tuning, init=str(self.base), train={"zero_stage": stage} | train, validation=validation
        )

    def all(self) -> dict[str, dict[str, Any]]:
        """Every kind, by name."""
        jobs = {f"lora{stage}": self.tuned(f"lora{stage}", LORA, stage=stage) for stage in range(4)}
        jobs["head"] = self.tuned("head", {"tune": "head"}, stage=1)
        jobs["last_layers"] = self.tuned("last_layers", {"tune": "last_layers", "last_layers": 1}, stage=3)
        jobs["language_model"] = self.job(
            "language_model", tuning=LORA, init=str(self.base), train={"zero_stage": 2, "activation_checkpointing": True}
        )
        jobs["bf16"] = self.tuned("bf16", LORA, stage=2, precision="bf16")
        return jobs | self.stopping()

    def stopping(self) -> dict[str, dict[str, Any]]:
        """With early stopping: a rate at which training gets worse soon, and accuracy, which is best at some step."""
        wild = {"learning_rate": 0.3, "max_steps": 40, "warmup_steps": 1}
        accuracy = {"early_stopping": {"metric": "accuracy", "every": 3, "patience": 9}}
        return {
            "early": self.tuned("early", EARLY, stage=2, **wild),
            "early3": self.tuned("early3", EARLY | LORA, stage=3, **wild),
            "accuracy": self.tuned("accuracy", accuracy, stage=1),
        }
