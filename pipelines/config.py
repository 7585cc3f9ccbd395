"""What to make: a Recipe, frozen, strict, every field with its unit.

The one idea: a Recipe holds everything that decides the result and nothing else; an Execution (`execution.py`) holds
the rest.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from model.config import Config, ModelShape, TrainConfig, accumulation_steps
from pipelines.execution import Execution
from pipelines.task_config import Source, TaskConfig


class ShardConfig(Config):
    """How documents are cut, split and grouped into text shards."""

    sources: tuple[Source, ...] = Field(min_length=1, description="the corpus")
    document_bytes: int = Field(
        8192, ge=64, description="longest document, in UTF-8 bytes; longer ones are cut at paragraph ends"
    )
    shard_bytes: int = Field(32 << 20, ge=4096, description="aimed-at text in one shard, in bytes")
    heldout_fraction: float = Field(
        0.01, gt=0, lt=1, description="documents held out for evaluation, by a hash of their content"
    )
    decontaminate_min_words: int = Field(
        8, ge=1, description="evaluation examples of at least so many words remove documents that contain them"
    )


class TokenizerConfig(Config):
    """Where the tokenizer comes from: trained on its own sources, or pinned by digest."""

    sources: tuple[Source, ...] = Field(
        (), description="what it is trained on; its own, so that new documents do not change it"
    )
    vocab_size: int = Field(8192, ge=257, description="tokens in the vocabulary, at most")
    min_frequency: int = Field(2, ge=1, description="occurrences a pair needs to be merged")
    max_bytes: int = Field(64 << 20, ge=1024, description="text that it is trained on, in bytes, at most")
    pinned: str | None = Field(None, description="directory of a tokenizer to use as it is")
    digest: str | None = Field(
        None, pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the pinned directory's tokenizer.json"
    )

    @model_validator(mode="after")
    def _one_origin(self) -> TokenizerConfig:
        if bool(self.sources) == bool(self.pinned):
            raise ValueError("give either sources (to train a tokenizer) or pinned (to use one), not both or neither")
        if self.pinned and not self.digest:
            raise ValueError("a pinned tokenizer needs digest=<SHA-256 of its tokenizer.json>")
        return self


class PretrainConfig(TrainConfig):
    """Pre-training on unlabelled text."""

    objective: Literal["causal_lm"] = Field("causal_lm", description="what is predicted")


# Fields of fine-tuning that came later: a step's config has them only where they are set, see task_config.py.
ADDED_TO_FINETUNE = ("length_pool", "class_weights", "long_texts", "window_stride")


class FinetuneConfig(TrainConfig):
    """Fine-tuning on a task. `sequence_length` cuts longer examples, which is counted and reported."""

    init: Literal["base", "random"] = Field(
        "base", description="start from the pre-trained base model or from random weights"
    )
    dropout: float = Field(
        0.1, ge=0, lt=1, description="dropout of embeddings, residual branches and head, a probability"
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
        "length, whose probabilities are averaged",
    )
    window_stride: int | None = Field(
        None, ge=1, description="tokens between the beginnings of two windows; half of sequence_length if none"
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
        return (self.window_stride or self.sequence_length // 2) if self.long_texts == "windows" else 0


class EvaluateConfig(Config):
    """What is measured on held-out data, beside the baselines."""

    continuations: int = Field(3, ge=0, description="texts that the base model is asked to continue")
    continuation_tokens: int = Field(48, ge=1, description="new tokens in each continuation")


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

    base: str = Field("base", pattern=r"^[\w.-]+$", description="registered name of the base model")
    task: str = Field("sentiment", pattern=r"^[\w.-]+$", description="registered name of the task's model")
    base_gates: tuple[Gate, ...] = Field((), description="all must pass for `base@champion`")
    task_gates: tuple[Gate, ...] = Field((), description="all must pass for the task's `@champion`")


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


class Recipe(Config):
    """Everything that decides what comes out."""

    name: str = Field(pattern=r"^[\w.-]+$", description="for people; enters no fingerprint")
    shard: ShardConfig
    tokenizer: TokenizerConfig
    model: ModelShape
    pretrain: PretrainConfig
    task: TaskConfig | None = Field(None, description="the labelled task; none: only a base model is made")
    finetune: FinetuneConfig | None = Field(None, description="how the task is learned; given exactly when task is")
    evaluate: EvaluateConfig = EvaluateConfig()
    register_as: RegisterConfig = RegisterConfig()
    retrain: RetrainConfig = RetrainConfig()

    @model_validator(mode="after")
    def _fits(self) -> Recipe:
        if (self.task is None) != (self.finetune is None):
            raise ValueError("task and finetune belong together: give both or neither")
        for name, part in (("pretrain", self.pretrain), ("finetune", self.finetune)):
            if part is not None and part.sequence_length > self.model.n_positions:
                raise ValueError(
                    f"{name}.sequence_length={part.sequence_length} is longer than model.n_positions={self.model.n_positions}"
                )
        if self.evaluate.continuation_tokens >= self.model.n_positions:
            raise ValueError(
                f"evaluate.continuation_tokens={self.evaluate.continuation_tokens} leaves no room for a prompt in "
                f"model.n_positions={self.model.n_positions}; choose fewer"
            )
        if self.task is not None and self.register_as.base == self.register_as.task:
            raise ValueError(
                f"register_as.base and register_as.task are both {self.register_as.base!r}: they are two models, give them two names"
            )
        return self


class ConfigError(ValueError):
    """A recipe, an override or a file that cannot be used; the message says which field, what was seen, what to do."""


def check_together(recipe: Recipe, execution: Execution) -> None:
    """ConfigError if a sample is unknown, or a batch cannot be sliced over the execution's ranks and micro-batches."""
    from pipelines import samples

    labelled = recipe.task.sources.values() if recipe.task else ()
    for source in (*recipe.shard.sources, *recipe.tokenizer.sources, *labelled):
        if source.sample and source.sample not in samples.SAMPLES:
            raise ConfigError(f"no sample is called {source.sample!r}; there are {', '.join(sorted(samples.SAMPLES))}")
    for name, part in (("pretrain", recipe.pretrain), ("finetune", recipe.finetune)):
        try:
            if part is not None:
                accumulation_steps(part.global_batch_size, execution.ranks, execution.micro_batch_size)
        except ValueError as error:
            raise ConfigError(
                f"{name}: {error} (execution.ranks={execution.ranks}, execution.micro_batch_size={execution.micro_batch_size})"
            ) from None
