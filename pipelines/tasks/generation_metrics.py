"""How good texts are that were made, not chosen: translations, answers, replies, continuations.

The one idea: every corpus figure is a function of sums over examples (matched n-grams, right answers, nats), so its 95 %
interval is a bootstrap over *groups* (source packages, conversations): the sums of the drawn groups, a thousand times.
The same groups are drawn for every text, so what is drawn of two of them, side by side, gives the interval of their difference.
BLEU and chrF are sacrebleu's own (Post 2018), signature and all; exact match and F1 are those of SQuAD's official script
(Rajpurkar et al. 2016). Distinct-n (Li et al. 2016) is the share of different n-grams among all; it is no function of sums
(a group drawn twice repeats itself, so a bootstrap would say too little), and stands without an interval. It falls with the
length of a text, so of several texts in one place as many words are counted as the shortest of them has. Where texts are
written without spaces (metrics.py says when), all of these take characters for words.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipelines.tasks.intervals import central, drawn_sums, rounded
from pipelines.tasks.metrics import written_without_spaces

if TYPE_CHECKING:
    import numpy as np

Words = Callable[[str], list[str]]  # what a text is made of
Drawn = dict[str, Sequence[float]]  # by metric: the values of the bootstrap

_ARTICLES = re.compile(r"\b(a|an|the)\b", re.UNICODE)
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_REPEATED = 4  # words of an n-gram whose second occurrence in a text is a repetition


def words_by(texts: Sequence[str]) -> Words:
    """How texts like these are taken apart: at blanks, or into characters where no spaces part words."""
    return characters if written_without_spaces(texts) else str.split


def words_of_answers(references: Sequence[Sequence[str]]) -> Words:
    """How answers are taken apart: by all that would be right, so that no answer decides how it is measured."""
    return words_by([reference for several in references for reference in several])


def characters(text: str) -> list[str]:
    """All but the blanks."""
    return [character for character in text if not character.isspace()]


def squad_normalised(text: str) -> str:
    """An answer as SQuAD compares it: lower case, without punctuation, articles and extra blanks."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(text: str, references: Sequence[str]) -> float:
    """1 if the text is one of the references, as SQuAD compares them, else 0."""
    return float(any(squad_normalised(text) == squad_normalised(reference) for reference in references))


def token_f1(text: str, references: Sequence[str], words: Words = str.split) -> float:
    """The best F1 of the text's words against those of a reference."""
    return max(_f1(words(squad_normalised(text)), words(squad_normalised(reference))) for reference in references)


def _f1(found: list[str], wanted: list[str]) -> float:
    shared = sum((Counter(found) & Counter(wanted)).values())
    return 2 * shared / (len(found) + len(wanted)) if shared else 0.0


def distinct(texts: Sequence[Sequence[str]], n: int) -> float:
    """Different n-grams over all of them, in all texts (lists of words) together; 0 where there is none."""
    grams = [gram for text in texts for gram in ngrams(text, n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def diversity(several: Mapping[str, Sequence[str]], words: Words) -> dict[str, dict[str, float]]:
    """distinct_1 and distinct_2 of each of several lists of texts, on as many words in each place as the shortest has there."""
    split = {name: [words(text) for text in texts] for name, texts in several.items()}
    shortest = [min(map(len, place)) for place in zip(*split.values(), strict=True)]
    found = {}
    for name, texts in split.items():
        cut = [text[:length] for text, length in zip(texts, shortest, strict=True)]
        found[name] = {f"distinct_{n}": rounded(distinct(cut, n)) for n in (1, 2)}
    return found


def repeated(words: Sequence[str]) -> tuple[int, int]:
    """How many of a text's n-grams of four words stand in it a second time, and how many it has."""
    grams = ngrams(words, _REPEATED)
    return len(grams) - len(set(grams)), len(grams)


def repetition(texts: Sequence[str], groups: Sequence[str], words: Words, drawn: Drawn | None = None) -> dict[str, Any]:
    """The share of n-grams of four words that stand in their text a second time."""
    counts = [repeated(words(text)) for text in texts]
    return ratio("repetition", [again for again, _ in counts], [all_ for _, all_ in counts], groups, drawn=drawn)


def length(texts: Sequence[str], words: Words) -> float:
    """Words of a text, on average."""
    return rounded(sum(len(words(text)) for text in texts) / len(texts))


def ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """The n-grams of a list of words, in order."""
    return [tuple(words[place : place + n]) for place in range(len(words) - n + 1)]


def report(
    texts: Sequence[str], references: Sequence[Sequence[str]], groups: Sequence[str], drawn: Drawn | None = None
) -> dict[str, Any]:
    """BLEU, chrF, exact match, F1, repetition and length of `texts`, with intervals over groups, as JSON values.

    `references[i]` are all texts that would be right in place of `texts[i]`. What the bootstrap draws is left in `drawn`.
    ValueError for no texts at all.
    """
    if not texts or not len(texts) == len(references) == len(groups):
        raise ValueError(
            f"{len(texts)} texts, {len(references)} lists of references and {len(groups)} groups; give as many"
        )
    pairs = list(zip(texts, references, strict=True))
    words = words_of_answers(references)
    ones = [1] * len(texts)
    return {
        "examples": len(texts),
        "groups": len(set(groups)),
        **_sacrebleu(texts, references, groups, words, drawn),
        **ratio("exact_match", [exact_match(*pair) for pair in pairs], ones, groups, drawn=drawn),
        **ratio("f1", [token_f1(*pair, words) for pair in pairs], ones, groups, drawn=drawn),
        **repetition(texts, groups, words, drawn),
        "words": length(texts, words),
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
    resampled = drawn_sums(sums)  # (R, 2)
    values = [of(float(top / bottom)) if bottom else 0.0 for top, bottom in [*resampled, sums.sum(0)]]
    return {name: rounded(values.pop())} | _interval(name, values, drawn)


def _interval(name: str, values: Sequence[float], drawn: Drawn | None) -> dict[str, list[float] | None]:
    """The interval of resampled values, which are left in `drawn` too."""
    if drawn is not None:
        drawn[name] = values
    return {f"{name}_interval_by_group": central(values)}


def against(
    reports: Mapping[str, Mapping[str, Any]], drawn: Mapping[str, Mapping[str, Sequence[float]]]
) -> dict[str, dict[str, dict[str, float | None]]]:
    """Ours (the report of no name) minus each other's figure, with the paired bootstrap interval: the same groups are drawn for all."""
    found: dict[str, dict[str, dict[str, float | None]]] = {}
    for name in [name for name in drawn if name]:
        for metric in [metric for metric in drawn[name] if metric in drawn[""]]:
            gains = [ours - theirs for ours, theirs in zip(drawn[""][metric], drawn[name][metric], strict=True)]
            low, high = central(gains) or (None, None)
            gain = rounded(reports[""][metric] - reports[name][metric])
            found.setdefault(name, {})[metric] = {"difference": gain, "low": low, "high": high}
    return found


def by_group(values: np.ndarray, groups: Sequence[str]) -> np.ndarray:
    """The sums of values (N, K) over the examples of each group, (G, K), in the order of the groups' names."""
    import numpy as np

    place = {name: index for index, name in enumerate(sorted(set(groups)))}
    sums = np.zeros((len(place), values.shape[1]))
    np.add.at(sums, [place[group] for group in groups], values)
    return sums


def _sacrebleu(
    texts: Sequence[str],
    references: Sequence[Sequence[str]],
    groups: Sequence[str],
    words: Words,
    drawn: Drawn | None,
) -> dict[str, Any]:
    """BLEU and chrF over the corpus with their signatures; an interval from the sums of the sentences' statistics.

    `_extract_corpus_statistics` and `_aggregate_and_compute` are what sacrebleu's own bootstrap calls; 2.6 is pinned.
    """
    import numpy as np
    from sacrebleu.metrics import BLEU, CHRF

    most = max(map(len, references))
    columns: Any = [[row[place] if place < len(row) else None for row in references] for place in range(most)]
    found: dict[str, Any] = {}
    for name, metric in (("bleu", BLEU(tokenize="char" if words is characters else "13a")), ("chrf", CHRF())):
        statistics = np.array(metric._extract_corpus_statistics(list(texts), columns), float)  # (N, K)
        sums = by_group(statistics, groups)
        scores = [metric._aggregate_and_compute([row.tolist()]).score for row in drawn_sums(sums)]
        found |= {
            name: rounded(metric._aggregate_and_compute(statistics.tolist()).score),
            **_interval(name, scores, drawn),
            f"{name}_signature": str(metric.get_signature()),
        }
    return found


def difference(ours: Sequence[float], theirs: Sequence[float], groups: Sequence[str]) -> dict[str, Any]:
    """The mean of `ours` minus `theirs` over the same examples, with the paired bootstrap interval over groups."""
    gains = [mine - other for mine, other in zip(ours, theirs, strict=True)]
    found = ratio("gain", gains, [1] * len(gains), groups)
    low, high = found["gain_interval_by_group"] or (None, None)
    return {"gain": found["gain"], "low": low, "high": high}
