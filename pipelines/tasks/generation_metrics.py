"""How good texts are that were made, not chosen: translations, answers, replies, continuations.

The one idea: every corpus figure is a function of sums over examples (matched n-grams, right answers, nats), so its 95 %
interval is a bootstrap over *groups* (source packages, conversations): the sums of the drawn groups, a thousand times.
The same groups are drawn for every text, so what is drawn of two of them, side by side, gives the interval of their difference.
BLEU and chrF are sacrebleu's own (Post 2018), signature and all; exact match and F1 are those of SQuAD's official script
(Rajpurkar et al. 2016). Distinct-n (Li et al. 2016) is the share of different n-grams among all; it is no function of sums
(a group drawn twice repeats itself, so a bootstrap would say too little), and stands without an interval.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

Drawn = dict[str, Sequence[float]]  # by metric: the values of the bootstrap

_RESAMPLES = 1000
_ARTICLES = re.compile(r"\b(a|an|the)\b", re.UNICODE)
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_REPEATED = 4  # words of an n-gram whose second occurrence in a text is a repetition


def squad_normalised(text: str) -> str:
    """An answer as SQuAD compares it: lower case, without punctuation, articles and extra blanks."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(text: str, references: Sequence[str]) -> float:
    """1 if the text is one of the references, as SQuAD compares them, else 0."""
    return float(any(squad_normalised(text) == squad_normalised(reference) for reference in references))


def token_f1(text: str, references: Sequence[str]) -> float:
    """The best F1 of the text's words against those of a reference."""
    return max(_f1(squad_normalised(text).split(), squad_normalised(reference).split()) for reference in references)


def _f1(found: list[str], wanted: list[str]) -> float:
    shared = sum((Counter(found) & Counter(wanted)).values())
    return 2 * shared / (len(found) + len(wanted)) if shared else 0.0


def distinct(texts: Sequence[str], n: int) -> float:
    """Different word n-grams over all of them, in all texts together; 0 where there is none."""
    grams = [gram for text in texts for gram in ngrams(text.split(), n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def repeated(text: str) -> tuple[int, int]:
    """How many of a text's n-grams of four words stand in it a second time, and how many it has."""
    grams = list(ngrams(text.split(), _REPEATED))
    return len(grams) - len(set(grams)), len(grams)


def repetition(texts: Sequence[str], groups: Sequence[str], drawn: Drawn | None = None) -> dict[str, Any]:
    """The share of n-grams of four words that stand in their text a second time."""
    counts = [repeated(text) for text in texts]
    return ratio("repetition", [again for again, _ in counts], [all_ for _, all_ in counts], groups, drawn=drawn)


def ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """The n-grams of a list of words, in order."""
    return [tuple(words[place : place + n]) for place in range(len(words) - n + 1)]


def report(
    texts: Sequence[str], references: Sequence[Sequence[str]], groups: Sequence[str], drawn: Drawn | None = None
) -> dict[str, Any]:
    """BLEU, chrF, exact match, F1, distinct-n and repetition of `texts`, with intervals over groups, as JSON values.

    `references[i]` are all texts that would be right in place of `texts[i]`. What the bootstrap draws is left in `drawn`.
    ValueError for no texts at all.
    """
    if not texts or not len(texts) == len(references) == len(groups):
        raise ValueError(
            f"{len(texts)} texts, {len(references)} lists of references and {len(groups)} groups; give as many"
        )
    pairs = list(zip(texts, references, strict=True))
    ones = [1] * len(texts)
    return {
        "examples": len(texts),
        "groups": len(set(groups)),
        **_sacrebleu(texts, references, groups, drawn),
        **ratio("exact_match", [exact_match(*pair) for pair in pairs], ones, groups, drawn=drawn),
        **ratio("f1", [token_f1(*pair) for pair in pairs], ones, groups, drawn=drawn),
        **repetition(texts, groups, drawn),
        "distinct_1": _rounded(distinct(texts, 1)),
        "distinct_2": _rounded(distinct(texts, 2)),
        "words": _rounded(sum(len(text.split()) for text in texts) / len(texts)),
    }


def likelihood(
    nats: Sequence[float],
    tokens: Sequence[int],
    text_bytes: Sequence[int],
    groups: Sequence[str],
    drawn: Drawn | None = None,
) -> dict[str, Any]:
    """Perplexity a token and bits a byte of what should have been said: sums over examples of -ln p, tokens and bytes."""
    return ratio("perplexity", nats, tokens, groups, math.exp, drawn) | ratio(
        "bits_per_byte", nats, text_bytes, groups, lambda value: value / math.log(2), drawn
    )


def ratio(
    name: str,
    above: Sequence[float],
    below: Sequence[float],
    groups: Sequence[str],
    of: Callable[[float], float] = lambda value: value,
    drawn: Drawn | None = None,
) -> dict[str, Any]:
    """`of`(sum above / sum below) under `name`, and its interval; 0 where there is nothing below."""
    import numpy as np

    sums = by_group(np.array([above, below], float).T, groups)  # (G, 2)
    resampled = draws(len(sums)) @ sums  # (R, 2)
    values = [of(float(top / bottom)) if bottom else 0.0 for top, bottom in [*resampled, sums.sum(0)]]
    return {name: _rounded(values.pop())} | _interval(name, values, drawn)


def _interval(name: str, values: Sequence[float], drawn: Drawn | None) -> dict[str, list[float]]:
    """The interval of resampled values, which are left in `drawn` too."""
    if drawn is not None:
        drawn[name] = values
    return {f"{name}_interval_by_group": _central(values)}


def against(
    reports: Mapping[str, Mapping[str, Any]], drawn: Mapping[str, Mapping[str, Sequence[float]]]
) -> dict[str, dict[str, dict[str, float]]]:
    """Ours (the report of no name) minus each other's figure, with the paired bootstrap interval: the same groups are drawn for all."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name in [name for name in drawn if name]:
        for metric in [metric for metric in drawn[name] if metric in drawn[""]]:
            gains = [ours - theirs for ours, theirs in zip(drawn[""][metric], drawn[name][metric], strict=True)]
            low, high = _central(gains)
            gain = _rounded(reports[""][metric] - reports[name][metric])
            found.setdefault(name, {})[metric] = {"difference": gain, "low": low, "high": high}
    return found


def by_group(values: np.ndarray, groups: Sequence[str]) -> np.ndarray:
    """The sums of values (N, K) over the examples of each group, (G, K), in the order of the groups' names."""
    import numpy as np

    place = {name: index for index, name in enumerate(sorted(set(groups)))}
    sums = np.zeros((len(place), values.shape[1]))
    np.add.at(sums, [place[group] for group in groups], values)
    return sums


def draws(groups: int, seed: int = 0) -> np.ndarray:
    """Bootstrap: how often each of the groups is drawn, (resamples, G)."""
    import numpy as np

    return np.random.default_rng(seed).multinomial(groups, [1 / groups] * groups, size=_RESAMPLES).astype(float)


def _sacrebleu(
    texts: Sequence[str], references: Sequence[Sequence[str]], groups: Sequence[str], drawn: Drawn | None
) -> dict[str, Any]:
    """BLEU and chrF over the corpus with their signatures; an interval from the sums of the sentences' statistics.

    `_extract_corpus_statistics` and `_aggregate_and_compute` are what sacrebleu's own bootstrap calls; 2.6 is pinned.
    """
    import numpy as np
    from sacrebleu.metrics import BLEU, CHRF

    most = max(map(len, references))
    columns: Any = [[row[place] if place < len(row) else None for row in references] for place in range(most)]
    found: dict[str, Any] = {}
    for name, metric in (("bleu", BLEU()), ("chrf", CHRF())):
        statistics = np.array(metric._extract_corpus_statistics(list(texts), columns), float)  # (N, K)
        sums = by_group(statistics, groups)
        scores = [metric._aggregate_and_compute([row.tolist()]).score for row in draws(len(sums)) @ sums]
        found |= {
            name: _rounded(metric._aggregate_and_compute(statistics.tolist()).score),
            **_interval(name, scores, drawn),
            f"{name}_signature": str(metric.get_signature()),
        }
    return found


def difference(ours: Sequence[float], theirs: Sequence[float], groups: Sequence[str]) -> dict[str, Any]:
    """The mean of `ours` minus `theirs` over the same examples, with the paired bootstrap interval over groups."""
    gains = [mine - other for mine, other in zip(ours, theirs, strict=True)]
    found = ratio("gain", gains, [1] * len(gains), groups)
    low, high = found["gain_interval_by_group"]
    return {"gain": found["gain"], "low": low, "high": high}


def _rounded(value: float) -> float:
    """Six digits: what is left of the last bits of a sum must not make two equal runs differ."""
    return round(float(value), 6)


def _central(values: Sequence[float]) -> list[float]:
    """The central 95 % of resampled values."""
    import numpy as np

    low, high = np.quantile(np.asarray(values, float), 0.025), np.quantile(np.asarray(values, float), 0.975)
    return [_rounded(float(low)), _rounded(float(high))]
