"""What lm-eval's task `gptline_response` makes of an answer. Runs in lm-eval's process, beside its task file.

The one idea: every figure is by lm-eval's own functions, so that it is another program's; nothing of ours is imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lm_eval.api import metrics
from lm_eval.tasks.qasper.metrics import f1_abstractive, normalize_answer  # of SQuAD's official script


def process_results(doc: dict[str, Any], results: Sequence[str]) -> dict[str, Any]:
    """The figures of one answer, and for those of the whole corpus the answer with all that would be right."""
    said, right = results[0], doc["references"]
    return {
        "bleu": (right, said),
        "chrf": (right, said),
        "exact_match": max(float(normalize_answer(said) == normalize_answer(one)) for one in right),
        "f1": max(float(f1_abstractive([said], [one])) for one in right),
    }


def bleu(items: Sequence[tuple[list[str], str]]) -> float:
    """lm-eval's BLEU; under a name of its own it has no standard error, which costs a hundred more of them."""
    return float(metrics.bleu(items))


def chrf(items: Sequence[tuple[list[str], str]]) -> float:
    """lm-eval's chrF."""
    return float(metrics.chrf(items))
