"""Whether a recipe can be made here: what its fields cannot tell each by itself, before anything is fetched or computed.

The one idea: what is known when a command is given is said then, not after hours: samples that do not exist, options that
would do nothing, a tokenizer that does not fit, batches that cannot be sliced over this execution's ranks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from model.config import Config
from model.train_config import accumulation_steps
from pipelines.config import ConfigError, EvaluateConfig, Recipe
from pipelines.execution import Execution


def check_together(recipe: Recipe, execution: Execution) -> None:
    """ConfigError if a sample is unknown, an option would do nothing, a pinned tokenizer that is here lacks a token that the
    model needs, or a batch cannot be sliced over the execution's ranks and micro-batches."""
    from pipelines import samples

    labelled = recipe.task.sources.values() if recipe.task else ()
    unlabelled = (source for part in (recipe.shard, recipe.tokenizer) if part for source in part.sources)
    for source in (*unlabelled, *labelled):
        if source.sample and source.sample not in samples.SAMPLES:
            raise ConfigError(f"no sample is called {source.sample!r}; there are {', '.join(sorted(samples.SAMPLES))}")
    for idle in _idle(recipe):
        raise ConfigError(idle)
    _check_pinned(recipe)
    parts = {"pretrain": recipe.pretrain, "finetune": recipe.finetune}
    for start in recipe.few_labels.starts if recipe.few_labels else ():
        parts[f"few_labels.starts {start.name}: finetune"] = start.finetune
    for name, part in parts.items():
        try:
            if part is not None:
                accumulation_steps(part.global_batch_size, execution.ranks, execution.micro_batch_size)
        except ValueError as error:
            raise ConfigError(
                f"{name}: {error} (execution.ranks={execution.ranks}, execution.micro_batch_size={execution.micro_batch_size})"
            ) from None


def _idle(recipe: Recipe) -> Iterator[str]:
    """Options that were given and would do nothing. Not said by the recipe itself: a challenger's, whose tokenizer is pinned to
    its champion's, keeps how that was trained."""
    if recipe.tokenizer and recipe.tokenizer.pinned:
        for name, value in _given(recipe.tokenizer, ("vocab_size", "min_frequency", "max_bytes", "special_tokens")):
            yield (
                f"tokenizer.{name}={value} is of a tokenizer that is trained here, and the pinned one is used as it is; leave "
                'it out (in SET by giving all of it: tokenizer={"pinned":...,"digest":...})'
            )
    if recipe.pretrain and recipe.pretrain.objective != "causal_lm":
        for name, value in _given(recipe.evaluate, EvaluateConfig.model_fields):
            yield (
                f"evaluate.{name}={value}: a model that learns pretrain.objective={recipe.pretrain.objective!r} continues no "
                "text; leave it out"
            )


def _given(part: Config, names: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """Those of the fields that are not at their defaults."""
    values = ((name, getattr(part, name)) for name in names)
    return ((name, value) for name, value in values if value != type(part).model_fields[name].default)


def _check_pinned(recipe: Recipe) -> None:
    """ConfigError unless a BERT's pinned tokenizer, if it is here already, has the special tokens that BERT learns with, and
    ends documents with [SEP]."""
    if not (recipe.tokenizer and recipe.tokenizer.pinned and recipe.model and recipe.model.family == "bert"):
        return
    from model import vocabulary
    from pipelines.tokenizer_files import bert_misfit

    folder = Path(recipe.tokenizer.pinned).expanduser().absolute()
    if not (folder / "tokenizer.json").is_file():  # the step train_tokenizer says so, when its turn comes
        return
    try:
        vocabulary.load(folder)
        misfit = bert_misfit(folder)
    except (ValueError, KeyError) as error:  # a KeyError: JSON, but no tokenizer
        raise ConfigError(f"tokenizer.pinned: {error}") from error
    if misfit:
        raise ConfigError(f"tokenizer.pinned: {misfit}")
