"""How good answers that were found in a text are, as SQuAD's official script says it, and what simple answers reach.

The one idea: exact match and F1 of the normalised words (Rajpurkar et al. 2016), the best over all answers that count as
right; intervals are bootstraps over groups, for the questions about an article succeed and fail together. Beside the
model stand `frequent`, the training answers' most frequent one, and `overlap`, the sentence of the context that shares
most words with the question.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from pipelines.contamination import words
from pipelines.sentences import split
from pipelines.tasks.examples import Span
from pipelines.tasks.generation_metrics import difference, exact_match, ratio, token_f1, words_by

MEASURED = ("exact_match", "f1")
BASELINES = ("frequent", "overlap")
_ASKING = ("what", "who", "when", "where", "which", "how", "why", "whose", "whom")


def report(texts: Sequence[str], asked: Sequence[Span]) -> dict[str, Any]:
    """Exact match and F1 with 95 % intervals over groups, as JSON values."""
    groups = [one.group for one in asked]
    scored = {name: scores(texts, asked, name) for name in MEASURED}
    found: dict[str, Any] = {"examples": len(asked), "groups": len(set(groups))}
    for name, values in scored.items():
        found |= ratio(name, values, [1] * len(values), groups)
    return found


def scores(texts: Sequence[str], asked: Sequence[Span], metric: str = "f1") -> list[float]:
    """Exact match or F1 of each text against all right answers of its question."""
    right = [[answer["text"] for answer in one.answers] for one in asked]
    if metric == "exact_match":
        return [exact_match(text, answers) for text, answers in zip(texts, right, strict=True)]
    words = words_by([one.context for one in asked])
    return [token_f1(text, answers, words) for text, answers in zip(texts, right, strict=True)]


def against(texts: Sequence[str], others: dict[str, list[str]], asked: Sequence[Span]) -> dict[str, Any]:
    """F1 of `texts` minus that of each of the others, paired."""
    groups, ours = [one.group for one in asked], scores(texts, asked)
    return {name: difference(ours, scores(said, asked), groups) for name, said in others.items()}


def by_question_word(texts: Sequence[str], asked: Sequence[Span]) -> dict[str, Any]:
    """Exact match and F1 by what asks: the first question word, wherever it stands."""
    kinds = [next((word for word in words(one.question) if word in _ASKING), "other") for one in asked]
    exact, f1 = (scores(texts, asked, name) for name in MEASURED)
    found = {}
    for kind in sorted(set(kinds)):
        chosen = [place for place, one in enumerate(kinds) if one == kind]
        means = {
            name: round(sum(of[i] for i in chosen) / len(chosen), 6)
            for name, of in (("exact_match", exact), ("f1", f1))
        }
        found[kind] = {"examples": len(chosen)} | means
    return found


def baselines(train: Sequence[Span], asked: Sequence[Span]) -> dict[str, list[str]]:
    """What each baseline answers."""
    counts = Counter(one.answers[0]["text"] for one in train)
    commonest = min(counts, key=lambda text: (-counts[text], text))
    return {"frequent": [commonest] * len(asked), "overlap": [overlapping(one.question, one.context) for one in asked]}


def overlapping(question: str, context: str) -> str:
    """The sentence of the context with most different words of the question; of several the first."""
    wanted = set(words(question))
    return max(split(context), key=lambda sentence: len(wanted & set(words(sentence))), default="")
