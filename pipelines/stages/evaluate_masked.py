"""evaluate, of a bidirectional base model: what was hidden in held-out text, and which sentence follows.

The one idea: as for every other model, the directory that ships is measured, and the simple method's figure stands next
to it: the most frequent token, a coin, and shared words.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from model import durable
from pipelines.engine.step import Attempt

KIND = "masked_language_model"
EVALUATION = 2  # its first frequencies were of special tokens too, which are never hidden
SEQUENCES = 2048  # held-out sequences or pairs that are asked about, at most


def measure(attempt: Attempt) -> dict[str, Any]:
    """Accuracy and perplexity of hidden tokens, accuracy of pairs with its 95 % interval, and the baselines'."""
    from pipelines.stages.evaluate import compute
    from pipelines.tasks import language_modelling
    from pipelines.tasks.metrics import wilson_interval

    for split in ("train", "heldout"):
        attempt.inputs[f"tokens_{split}"].check_units(attempt.root, f"{split}.json")
    counts = attempt.scratch / "counts"
    train = attempt.inputs["tokens_train"].path("train.json")
    durable.write_bytes(counts, language_modelling.token_counts(attempt.root, train).tobytes())
    config = attempt.config
    found: dict[str, Any] = compute(
        attempt, "model.evaluate_masked:evaluate", manifest=str(attempt.inputs["tokens_heldout"].path("heldout.json")),
        root=str(attempt.root), objective=config["objective"], options=config["options"],
        sequence_length=config["sequence_length"], counts=str(counts), sequences=SEQUENCES,
    )  # fmt: skip
    if "pairs" in found:
        low, high = wilson_interval(found.pop("pairs_right"), found["pairs"])
        found |= {"next_sentence_accuracy_low": round(low, 6), "next_sentence_accuracy_high": round(high, 6)}
    return found


def figure(metrics: Mapping[str, Any]) -> str:
    """The figures that say most, in a line."""
    parts = []
    if "masked_accuracy" in metrics:
        parts.append(f"masked {metrics['masked_accuracy']:.3f}, unigram {metrics['unigram_masked_accuracy']:.3f}")
    if "next_sentence_accuracy" in metrics:
        parts.append(f"next sentence {metrics['next_sentence_accuracy']:.3f}")
    return ", ".join(parts)


def told(metrics: Mapping[str, Any]) -> Iterator[str]:
    """The figures beside the baselines', in sentences."""
    m = metrics
    if "masked_accuracy" in m:
        yield (
            f"held-out: {m['masked_accuracy']:.3f} of {m['masked_tokens']:,} hidden tokens found (perplexity "
            f"{m['masked_perplexity']:.1f}); the most frequent token: {m['unigram_masked_accuracy']:.3f} "
            f"({m['unigram_masked_perplexity']:.1f})"
        )
    if "pairs" in m:
        yield (
            f"held-out: {m['next_sentence_accuracy']:.3f} of {m['pairs']:,} pairs right (95 %: "
            f"{m['next_sentence_accuracy_low']:.3f} to {m['next_sentence_accuracy_high']:.3f}); the larger class "
            f"{m['chance_next_sentence_accuracy']:.3f}, shared words {m['overlap_next_sentence_accuracy']:.3f}"
        )
