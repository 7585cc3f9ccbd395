"""Jobs that tune a part of a small base model: every kind, every ZeRO stage, with and without early stopping."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from model.config import ModelConfig
from model.examples import write_examples
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
        self.validation = folder / "validation.arrow"
        self._write_validation()

    def _write_validation(self) -> None:
        """70 examples as those of training, but a third of the labels is wrong: who trains for long is surer and worse."""
        generator = np.random.default_rng(2)
        classes = generator.integers(0, 2, 70)
        tokens = [1 + label * 100 + generator.integers(0, 100, generator.integers(2, 30)) for label in classes]
        labels = [int(label) ^ int(generator.random() < 0.3) for label in classes]
        facts: dict[str, Any] = {"tokenizer": "t", "vocab_size": self.vocab_size, "eot": 0}
        write_examples(self.validation, tokens, [str(index) for index in range(70)], labels=labels, **facts)

    def tuned(self, name: str, tuning: dict[str, Any], *, stage: int = 2, **train: Any) -> dict[str, Any]:
        """A classifier on top of the base."""
        validation = str(self.validation) if "early_stopping" in tuning else None
        return self.classification(
            name, tuning=tuning, init=str(self.base), train={"zero_stage": stage} | train, validation=validation
        )

    def all(self) -> dict[str, dict[str, Any]]:
        """Every kind, by name."""
        jobs = {f"lora{stage}": self.tuned(f"lora{stage}", LORA, stage=stage) for stage in range(4)}
        jobs["head"] = self.tuned("head", {"tune": "head"}, stage=1)
        jobs["last_layers"] = self.tuned("last_layers", {"tune": "last_layers", "last_layers": 1}, stage=3)
        jobs["language_model"] = self.job(
            "language_model",
            tuning=LORA,
            init=str(self.base),
            train={"zero_stage": 2, "activation_checkpointing": True},
        )
        jobs["bf16"] = self.tuned("bf16", LORA, stage=2, precision="bf16")
        return jobs | self.stopping()

    def stopping(self) -> dict[str, dict[str, Any]]:
        """With early stopping by loss, which gets worse at some step, and by accuracy, which may do what it likes."""
        wild = {"learning_rate": 0.03, "max_steps": 60, "warmup_steps": 1}
        accuracy = {"early_stopping": {"metric": "accuracy", "every": 3, "patience": 9}}
        return {
            "early": self.tuned("early", EARLY, stage=2, **wild),
            "early3": self.tuned("early3", EARLY | LORA, stage=3, **wild),
            "accuracy": self.tuned("accuracy", accuracy, stage=1, seed=1),
        }
