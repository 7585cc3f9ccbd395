"""What a step's configuration says because code once did otherwise: marks that make stale what may have been made wrongly.

The one idea: raising a stage's version makes all its steps anew, everywhere; a mark stands only in the configurations of
those steps that the old code may have got wrong, so that nobody else pays. The marks of a stage go when its version is raised
for another reason. `flow.py` puts them where they belong.
"""

from __future__ import annotations

from typing import Any

from pipelines.config import Recipe, TaskConfig

CLEANED = ("references", "words")  # marks of the step `shard` that its units have where they are about them


def words(config: TaskConfig) -> dict[str, Any]:
    """Of `prepare_task`: words were cut at their vowel signs, so that texts of some scripts counted as equal. Own data may be of such."""
    own = any(source.sample is None for source in config.sources.values())
    return {"words": "with marks"} if own else {}


def cleaned(config: TaskConfig, form: str) -> dict[str, Any]:
    """Of `shard`: a corpus was cleaned of the first right answer to a held-out prompt alone, and by words that were cut at
    their vowel signs. Units of which neither is true stay: their keys leave these marks out (`CLEANED`)."""
    return words(config) | ({"references": True} if form == "response" else {})


def overlap(recipe: Recipe, form: str) -> dict[str, Any]:
    """Of `evaluate`: the sentence that shares most words with a question was found by words that were cut at their vowel signs."""
    assert recipe.task
    return words(recipe.task) if form == "span" else {}


def mixture(recipe: Recipe) -> dict[str, Any]:
    """Of `pretrain`: corpora were drawn from in the order of the recipe's keys, which no fingerprint tells. It is by name now."""
    assert recipe.pretrain
    return {"mixture_order": "names"} if len(recipe.pretrain.mixture) > 1 else {}


def windows(recipe: Recipe, form: str) -> dict[str, Any]:
    """Of `evaluate`: windows further apart than one has room for beside special tokens passed over tokens.

    A tokenizer that is trained here as GPT-2's puts no tokens around texts.
    """
    assert recipe.finetune
    plain = recipe.tokenizer and recipe.tokenizer.sources and recipe.tokenizer.special_tokens == "gpt2"
    far = recipe.finetune.stride > recipe.finetune.sequence_length - 2
    return {"windows": "without_gaps"} if far and not plain and form == "classification" else {}
