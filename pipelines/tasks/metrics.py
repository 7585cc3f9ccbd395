"""How good a classifier is on held-out examples, how sure that figure is, and what simple models reach.

The one idea: no figure without its interval and its baselines. A model that says the same of everything reaches
the majority's share, and TF-IDF with logistic regression is hard to beat on a few thousand sentences; both are
computed here from the same split, so that they stand beside the model's figure.

Intervals: Wilson's for a share (Wilson 1927), and a bootstrap over *groups* (films) for any metric: sentences
of one film succeed and fail together, which makes an interval over sentences too narrow. All of it is
deterministic: fixed seeds, and a solver without random order.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

from pipelines.tasks.intervals import RESAMPLES, central, drawn_sums, rounded
from pipelines.words import have_marks, mark

if TYPE_CHECKING:
    import numpy as np

_READABLE = 10  # classes whose confusion matrix a person reads; of more, the pairs that are confused most often
# A fit's time is examples x terms x classes (30 s for 12,000 texts of 58 classes): of many classes fewer terms, fewer fits.
_FEW_CLASSES, _MOST_TERMS, _FEWER_TRIED = 4, 20_000, (3.0, 30.0)
_NO_SPACES = re.compile(r"[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")
BY_CHARACTER: dict[str, Any] = {"analyzer": "char", "ngram_range": (1, 3)}  # TF-IDF's terms where no spaces part words
_REGULARISATION = (1.0, 3.0, 10.0, 30.0)  # values of C tried for the baseline
_FOLDS = 5  # of the training split, where no validation split may choose among them


def confusion(labels: Sequence[int], predicted: Sequence[int], classes: int) -> np.ndarray:
    """Counts (classes, classes): row is the true label, column the predicted one. ValueError if lengths differ."""
    import numpy as np

    if len(labels) != len(predicted) or not len(labels):
        raise ValueError(
            f"{len(labels)} labels and {len(predicted)} predictions; there must be as many, and at least one"
        )
    counts: np.ndarray = np.zeros((classes, classes), dtype=np.int64)  # (classes, classes)
    np.add.at(counts, (np.asarray(labels), np.asarray(predicted)), 1)
    return counts


def margins(counts: np.ndarray) -> np.ndarray:
    """What accuracy and F1 need of a confusion matrix (..., K, K): right, true and predicted of each class, (..., 3, K)."""
    import numpy as np

    return np.stack([np.diagonal(counts, axis1=-2, axis2=-1), counts.sum(-1), counts.sum(-2)], axis=-2)


def accuracy(counts: np.ndarray) -> np.ndarray:
    """The share of right predictions, of one array of margins (3, K) or of many (..., 3, K)."""
    return counts[..., 0, :].sum(-1) / counts[..., 1, :].sum(-1)


def macro_f1(counts: np.ndarray) -> np.ndarray:
    """F1 = 2TP / (2TP + FP + FN) of each class, averaged over those that are in the labels or the predictions: of one that is
    in neither nothing was asked and nothing wrong was said. Of many margins (a bootstrap's draws) over those of each."""
    occurring = counts[..., 1, :] + counts[..., 2, :] > 0  # (..., K)
    return class_f1(counts).sum(-1) / occurring.sum(-1)


def class_f1(counts: np.ndarray) -> np.ndarray:
    """F1 of each class, (..., K), of margins (..., 3, K); 0 where it does not occur."""
    import numpy as np

    return 2 * counts[..., 0, :] / np.maximum(counts[..., 1, :] + counts[..., 2, :], 1)


def wilson_interval(right: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of the share right/total. ValueError unless 0 <= right <= total and total > 0."""
    if not (0 <= right <= total and total > 0):
        raise ValueError(f"{right} of {total} is not a share")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = right / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return max(0.0, centre - half), min(1.0, centre + half)


def group_margins(labels: Sequence[int], predicted: Sequence[int], groups: Sequence[str], classes: int) -> np.ndarray:
    """The margins of each group, (groups, 3, classes), in the order of the groups' names."""
    import numpy as np

    names = sorted(set(groups))
    place = {name: index for index, name in enumerate(names)}
    of, true, said = np.array([place[group] for group in groups]), np.asarray(labels), np.asarray(predicted)
    counts: np.ndarray = np.zeros((len(names), 3, classes))  # (G, 3, K)
    np.add.at(counts, (of, 0, true), true == said)
    np.add.at(counts, (of, 1, true), 1)
    np.add.at(counts, (of, 2, said), 1)
    return counts


def report(labels: Sequence[int], predicted: Sequence[int], groups: Sequence[str], classes: int) -> dict[str, Any]:
    """Accuracy and macro-F1 with 95 % intervals, as JSON values.

    `accuracy_interval` is Wilson's over examples; `*_interval_by_group` the bootstrap over groups.
    """
    counts = confusion(labels, predicted, classes)
    whole, drawn = margins(counts), drawn_sums(group_margins(labels, predicted, groups, classes))
    return {
        "examples": len(labels),
        "groups": len(set(groups)),
        "accuracy": rounded(accuracy(whole)),
        "accuracy_interval": [rounded(end) for end in wilson_interval(int(counts.trace()), len(labels))],
        "accuracy_interval_by_group": central(accuracy(drawn)),
        "macro_f1": rounded(macro_f1(whole)),
        "macro_f1_interval_by_group": central(macro_f1(drawn)),
        **({"confusion": counts.tolist()} if classes <= _READABLE else {}),
    }


def by_class(labels: Sequence[int], predicted: Sequence[int], names: Sequence[str]) -> dict[str, Any]:
    """What the model does with each class, and which pairs of classes it confuses most often, by their names."""
    import numpy as np

    counts = confusion(labels, predicted, len(names))
    f1 = class_f1(margins(counts))
    wrong = counts - np.diag(np.diagonal(counts))
    pairs = sorted(
        ((int(count), i, j) for (i, j), count in np.ndenumerate(wrong) if count), key=lambda pair: (-pair[0], pair[1:])
    )
    return {
        "classes": {name: {"examples": int(counts[i].sum()), "f1": rounded(f1[i])} for i, name in enumerate(names)},
        "most_confused": [{"is": names[i], "said": names[j], "times": count} for count, i, j in pairs[:_READABLE]],
    }


def difference(
    labels: Sequence[int], ours: Sequence[int], theirs: Sequence[int], groups: Sequence[str]
) -> dict[str, Any]:
    """Accuracy of `ours` minus `theirs` on the same examples, with the paired bootstrap interval over groups."""
    classes = max(*labels, *ours, *theirs) + 1
    pair = [group_margins(labels, predicted, groups, classes) for predicted in (ours, theirs)]
    drawn = accuracy(drawn_sums(pair[0])) - accuracy(drawn_sums(pair[1]))  # one seed: the same groups in both
    gain = accuracy(pair[0].sum(0)) - accuracy(pair[1].sum(0))
    return {"accuracy_gain": rounded(gain), "accuracy_gain_interval_by_group": central(drawn)}


def ratio_difference(
    ours: Sequence[float], theirs: Sequence[float], sizes: Sequence[float], their_sizes: Sequence[float] | None = None
) -> dict[str, Any]:
    """sum(ours) / sum(sizes) minus the same of `theirs`, with the paired bootstrap interval over the places of the lists.

    `their_sizes`, where they may differ: what one of two models was not asked counts in neither of its sums.
    """
    import numpy as np

    pairs = np.array([ours, sizes, theirs, sizes if their_sizes is None else their_sizes], dtype=np.float64)  # (4, D)
    random = np.random.default_rng(0)
    drawn = np.empty(RESAMPLES if pairs.shape[1] > 1 else 0)
    for place in range(len(drawn)):  # one at a time: a large corpus has many documents
        chosen = random.integers(0, pairs.shape[1], pairs.shape[1])
        drawn[place] = _gain(*pairs[:, chosen].sum(1))
    low, high = central(drawn) or (None, None)
    return {"gain": rounded(_gain(*pairs.sum(1))), "low": low, "high": high}


def _gain(ours: float, size: float, theirs: float, their_size: float) -> float:
    return ours / size - theirs / their_size


def majority_predictions(train_labels: Sequence[int], examples: int) -> list[int]:
    """The training split's most frequent label (the smallest of several), for each of `examples` texts."""
    counts = Counter(train_labels)
    return [min(counts, key=lambda label: (-counts[label], label))] * examples


def tfidf_predictions(
    train: tuple[Sequence[str], Sequence[int]],
    validation: tuple[Sequence[str], Sequence[int]] | None,
    texts: Sequence[str],
) -> tuple[list[int], dict[str, Any]]:
    """What TF-IDF with logistic regression says of `texts`, and how it was set.

    Its terms are words and word pairs, or one to three characters where texts are written without spaces; of two texts at
    least, or of one where no two share a term. The regularisation is chosen on the validation split, or by cross-validation
    on the training split where there is none, of equal ones the strongest: the test split decides nothing. Where there is
    nothing to learn, it says the majority class.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    by_character = written_without_spaces(train[0])
    terms: dict[str, Any] = dict(BY_CHARACTER) if by_character else {"ngram_range": (1, 2)}
    if not by_character and have_marks(train[0]):  # which its own words are cut at
        terms |= {"token_pattern": rf"\w(?:\w|{mark()})+"}
    many = len(set(train[1])) > _FEW_CLASSES
    terms |= {"max_features": _MOST_TERMS} if many else {}
    least = _shared_by(train[0], TfidfVectorizer(**terms).build_analyzer())
    if least == 0 or len(set(train[1])) == 1:
        why = "no training text has a term" if least == 0 else "the training labels are of one class"
        return majority_predictions(train[1], len(texts)), {"majority_class_instead": why}
    vectors = TfidfVectorizer(sublinear_tf=True, min_df=least, **terms)
    features = vectors.fit_transform(train[0])  # (examples, terms), sparse
    tried = _FEWER_TRIED if many else _REGULARISATION
    if validation is None:
        how, scores = "cross_validation_accuracy", {c: _cross_validated(features, train[1], c) for c in tried}
    else:
        how, held_out = "validation_accuracy", vectors.transform(validation[0])
        fitted = {c: _logistic_regression(features, train[1], c) for c in tried}
        scores = {c: float(model.score(held_out, validation[1])) for c, model in fitted.items()}
    best = max(scores, key=lambda c: (scores[c], -c))
    setting: dict[str, Any] = {"terms": features.shape[1], "C": best}
    if validation is not None or _folds(train[1]) > 1:
        setting |= {how: rounded(scores[best])}
    setting |= {"terms_are": "1 to 3 characters"} if by_character else {}
    setting |= {"terms_in": "one text or more: no two share a term"} if least == 1 else {}
    model = fitted[best] if validation else _logistic_regression(features, train[1], best)
    return [int(label) for label in model.predict(vectors.transform(texts))], setting


def _shared_by(texts: Sequence[str], terms: Callable[[str], list[str]]) -> int:
    """2 if a term is in two texts at least, 1 if terms are in one text each, 0 if there are none. Ends at the first shared one."""
    seen = set[str]()
    for text in texts:
        found = set(terms(text))
        if not seen.isdisjoint(found):
            return 2
        seen |= found
    return 1 if seen else 0


def written_without_spaces(texts: Sequence[str]) -> bool:
    """Whether most letters of the first hundred texts are Han, kana or Thai: words cannot be told by their spaces."""
    letters = [character for text in texts[:100] for character in text if character.isalpha()]
    return 2 * len(_NO_SPACES.findall("".join(letters))) > len(letters)


def _logistic_regression(features: Any, labels: Sequence[int], c: float) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=c, solver="lbfgs", max_iter=2000).fit(features, labels)


def _folds(labels: Sequence[int]) -> int:
    """As many folds as two classes can be in all of, a rarer class is in some; one, where a fold would be of one class."""
    return min(_FOLDS, Counter(labels).most_common(2)[1][1])


def _cross_validated(features: Any, labels: Sequence[int], c: float) -> float:
    """The share of the examples that a fit on the other folds is right about; 0 where there are no folds."""
    import warnings

    import numpy as np
    from sklearn.model_selection import StratifiedKFold

    folds, truth, right = _folds(labels), np.asarray(labels), 0
    if folds < 2:
        return 0.0
    with warnings.catch_warnings():  # of the rarer classes, which is meant
        warnings.simplefilter("ignore", UserWarning)
        parts = list(StratifiedKFold(folds).split(features, truth))
    for rest, part in parts:
        model = _logistic_regression(features[rest], truth[rest], c)
        right += int((model.predict(features[part]) == truth[part]).sum())
    return right / len(labels)


def baselines(
    train: tuple[Sequence[str], Sequence[int]],
    validation: tuple[Sequence[str], Sequence[int]] | None,
    test: tuple[Sequence[str], Sequence[int], Sequence[str]],
    classes: int,
) -> dict[str, dict[str, Any]]:
    """Reports of the majority class and of TF-IDF with logistic regression on `test` (texts, labels, groups).

    Without `validation` TF-IDF knows no labels but those of `train`.
    """
    texts, labels, groups = test
    predicted, setting = tfidf_predictions(train, validation, texts)
    return {
        "majority": report(labels, majority_predictions(train[1], len(labels)), groups, classes),
        "tfidf_logistic_regression": {**report(labels, predicted, groups, classes), **setting, "predicted": predicted},
    }
