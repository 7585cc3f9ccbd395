"""What anybody would try before a model that answers: say the question again, the commonest answer, a known one.

The one idea: each baseline is a function from the training pairs and the test prompts to texts, so that they stand beside
the model's answers under the very same metrics. `copy` says the prompt; `frequent` the training responses' most frequent
one; `retrieval` the response to the training prompt that is nearest by TF-IDF; `dictionary` puts the most probable
response word for each word of the prompt (IBM model 1, Brown et al. 1993), and what it never saw it leaves as it is.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from pipelines.tasks.metrics import BY_CHARACTER, written_without_spaces
from pipelines.words import word

if TYPE_CHECKING:
    import numpy as np

BASELINES = ("copy", "frequent", "retrieval", "dictionary")
_SPACED = re.compile(r" ([,.;:!?)\]])|([(\[]) ")
_ROUNDS = 5  # of expectation maximisation
_LONGEST = 40  # words; longer prompts and responses teach the dictionary little and cost their product
_LINKS = 20_000_000  # from a prompt's word to a response's, 1.2 GB of memory: the dictionary learns from no more
_AT_ONCE = 256  # prompts that are compared with all training prompts at a time


def answers(
    train: Sequence[tuple[str, str]], prompts: Sequence[str], names: Sequence[str] = BASELINES
) -> dict[str, list[str]]:
    """The texts of some baselines for `prompts`, learned from pairs of prompt and response."""
    said = {
        "copy": lambda: list(prompts),
        "frequent": lambda: frequent(train, len(prompts)),
        "retrieval": lambda: retrieval(train, prompts),
        "dictionary": lambda: dictionary(train, prompts),
    }
    return {name: said[name]() for name in names}


def frequent(train: Sequence[tuple[str, str]], count: int) -> list[str]:
    """The most frequent response, of several the first in the alphabet."""
    counts = Counter(response for _, response in train)
    return [min(counts, key=lambda response: (-counts[response], response))] * count


def retrieval(train: Sequence[tuple[str, str]], prompts: Sequence[str]) -> list[str]:
    """The response to the training prompt with the largest cosine of TF-IDF vectors, of several the first.

    Its terms are words, or one to three characters where texts are written without spaces.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = [prompt for prompt, _ in train]
    terms: dict[str, Any] = {"token_pattern": word().pattern}
    if written_without_spaces(texts):  # a clause would be one term, which no other prompt has
        terms = BY_CHARACTER
    vectors = TfidfVectorizer(sublinear_tf=True, **terms)
    try:
        known = vectors.fit_transform(texts)  # (N, terms), sparse
    except ValueError:  # no prompt has a word
        return [train[0][1]] * len(prompts)
    asked, found = vectors.transform(prompts), []
    for start in range(0, len(prompts), _AT_ONCE):
        similar = (asked[start : start + _AT_ONCE] @ known.T).toarray()  # (B, N)
        found += [train[place][1] for place in similar.argmax(1).tolist()]
    return found


def dictionary(train: Sequence[tuple[str, str]], prompts: Sequence[str]) -> list[str]:
    """Word by word, each by its most probable translation under IBM model 1."""
    table = translations(teaching(train))
    return [spaced([table.get(word.casefold(), word) for word in words(prompt)]) for prompt in prompts]


def teaching(train: Sequence[tuple[str, str]]) -> list[tuple[list[str], list[str]]]:
    """The words of the pairs that the dictionary is learned from: all but long ones, as far as memory goes."""
    found, links = list[tuple[list[str], list[str]]](), 0
    for prompt, response in train:
        source, target = [word.casefold() for word in words(prompt)], words(response)
        if max(len(source), len(target)) > _LONGEST:
            continue
        links += len(source) * len(target)
        if links > _LINKS:
            break
        found.append((source, target))
    return found


def translations(pairs: Sequence[tuple[list[str], list[str]]]) -> dict[str, str]:
    """The most probable response word for each prompt word, after a few rounds of IBM model 1 without the empty word."""
    import numpy as np

    both = [pair for pair in pairs if pair[0] and pair[1]]
    if not both:
        return {}
    sources, targets = _numbered(pair[0] for pair in both), _numbered(pair[1] for pair in both)
    # Each word of a response is a slot that has a link to every word of its prompt; L links.
    source = np.concatenate([np.tile([sources[word] for word in said], len(heard)) for said, heard in both])  # (L,)
    width: np.ndarray = np.repeat([len(said) for said, _ in both], [len(heard) for _, heard in both])  # (slots,)
    target: np.ndarray = np.repeat([targets[word] for _, heard in both for word in heard], width)
    slot: np.ndarray = np.repeat(np.arange(len(width)), width)
    cells, cell = np.unique(source * len(targets) + target, return_inverse=True)
    probability = _maximised(cell.ravel(), slot, cells // len(targets), len(sources))
    names, best = list(targets), dict[str, str]()
    order = np.lexsort((cells, -probability, cells // len(targets)))
    known = list(sources)
    for place in order.tolist():
        best.setdefault(known[cells[place] // len(targets)], names[cells[place] % len(targets)])
    return best


def _maximised(cell: np.ndarray, slot: np.ndarray, source: np.ndarray, sources: int) -> np.ndarray:
    """p(response word | prompt word) of each cell, by expectation maximisation over the links (cell, slot)."""
    import numpy as np

    probability = np.ones(len(source))
    for _ in range(_ROUNDS):
        weight = probability[cell]  # (L,)
        expected = np.bincount(cell, weight / np.bincount(slot, weight)[slot], len(source))
        probability = expected / np.bincount(source, expected, sources)[source]
    return probability.round(12)  # equal words of a corpus stay equal


def _numbered(rows: Any) -> dict[str, int]:
    numbers: dict[str, int] = {}
    for row in rows:
        for one in row:
            numbers.setdefault(one, len(numbers))
    return numbers


def words(text: str) -> list[str]:
    """Words, and punctuation by itself."""
    return _token().findall(text)


@cache
def _token() -> re.Pattern[str]:
    return re.compile(word(r"[\w'’-]").pattern + r"|[^\w\s]")


def spaced(found: Sequence[str]) -> str:
    """Words and marks as a line of text."""
    return _SPACED.sub(r"\1\2", " ".join(found))
