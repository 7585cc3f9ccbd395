"""An n-gram language model over tokens: what a text generator has to beat.

The one idea: counts are sorted arrays of integers, an n-gram's tokens being the digits of one number, so that training is
`np.unique` and a probability two binary searches. Interpolated as Witten and Bell (1991) do: a history h that was seen
c(h) times with t(h) different tokens after it gives

    p(w | h) = (c(h, w) + t(h) p(w | h without its first token)) / (c(h) + t(h))

down to single tokens, whose fallback is the uniform distribution. All of it is deterministic, and every distribution sums
to one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

ORDER = 3


class NGrams:
    """Counts of all n-grams up to `order` in some sequences of tokens, each of which begins after `start`.

    `masks`, where given, say which tokens are learned: the others are only what stands before them.
    """

    def __init__(
        self,
        sequences: Iterable[Sequence[int]],
        vocab_size: int,
        start: int,
        order: int = ORDER,
        masks: Iterable[Sequence[bool]] | None = None,
    ) -> None:
        import numpy as np

        if vocab_size**order >= 2**63:
            raise ValueError(
                f"{vocab_size} tokens to the power of {order} do not fit into 63 bits; choose a lower order"
            )
        self.vocab_size, self.start, self.order = vocab_size, start, order
        padded = [np.asarray([start] * (order - 1) + list(row), np.int64) for row in sequences]
        learned = None if masks is None else [np.asarray(mask, bool) for mask in masks]
        self._tables = [self._counted(padded, learned, length) for length in range(1, order + 1)]

    def _counted(
        self, padded: list[np.ndarray], learned: list[np.ndarray] | None, length: int
    ) -> dict[str, np.ndarray]:
        """The n-grams of one length: keys and counts, and of their histories keys, counts and different followers."""
        import numpy as np

        skip = self.order - length
        keys = [self._keys(row[skip:], length) for row in padded]  # each (T,): one ends with each token
        if learned is not None:
            keys = [row[mask] for row, mask in zip(keys, learned, strict=True)]
        grams, counts = np.unique(np.concatenate([*keys, np.empty(0, np.int64)]), return_counts=True)
        histories, first = np.unique(grams // self.vocab_size, return_index=True)
        followers: np.ndarray = np.diff(np.append(first, len(grams)))
        seen = np.add.reduceat(counts, first) if len(first) else np.empty(0, np.int64)
        return {"grams": grams, "counts": counts, "histories": histories, "seen": seen, "followers": followers}

    def _keys(self, row: np.ndarray, length: int) -> np.ndarray:
        """The n-grams of a row (T,) as numbers, (T - length + 1,)."""
        import numpy as np

        keys: np.ndarray = np.zeros(max(0, len(row) - length + 1), np.int64)
        for place in range(length):
            keys = keys * self.vocab_size + row[place : place + len(keys)]
        return keys

    def probabilities(self, grams: np.ndarray) -> np.ndarray:
        """p of the last token of each row of grams (N, order) after the others, (N,)."""
        import numpy as np

        found = np.full(len(grams), 1 / self.vocab_size)
        for length, table in enumerate(self._tables, 1):
            keys: np.ndarray = np.zeros(len(grams), np.int64)
            for place in range(self.order - length, self.order):
                keys = keys * self.vocab_size + grams[:, place]
            counts = _looked_up(table["grams"], table["counts"], keys)
            seen = _looked_up(table["histories"], table["seen"], keys // self.vocab_size)
            followers = _looked_up(table["histories"], table["followers"], keys // self.vocab_size)
            mixed = (counts + followers * found) / np.maximum(seen + followers, 1)
            found = np.where(seen > 0, mixed, found)
        return found

    def nats(self, row: Sequence[int]) -> np.ndarray:
        """-ln p of each token of a sequence that begins after `start`, (T,)."""
        import numpy as np

        padded = np.asarray([self.start] * (self.order - 1) + list(row), np.int64)
        windows = np.lib.stride_tricks.sliding_window_view(padded, self.order)  # (T, order)
        return -np.log(self.probabilities(windows))

    def distribution(self, history: Sequence[int]) -> np.ndarray:
        """p of every token after `history`, (V,): it sums to one."""
        import numpy as np

        before = ([self.start] * (self.order - 1) + list(history))[-(self.order - 1) :] if self.order > 1 else []
        grams: np.ndarray = np.empty((self.vocab_size, self.order), np.int64)
        grams[:, :-1], grams[:, -1] = before, np.arange(self.vocab_size)
        return self.probabilities(grams)

    def continued(self, prompt: Sequence[int], tokens: int, seed: int, end: int) -> list[int]:
        """At most `tokens` tokens drawn after `prompt`, up to `end` (left out)."""
        import numpy as np

        random, out = np.random.default_rng([seed, *prompt]), list[int]()
        while len(out) < tokens:
            share = np.cumsum(self.distribution([*prompt, *out]))
            token = int(np.searchsorted(share, random.random() * share[-1], side="right"))
            if token == end:
                break
            out.append(token)
        return out


def _looked_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> Any:
    """The value of each wanted key in a sorted table, 0 where it has none."""
    import numpy as np

    if not len(keys):
        return np.zeros(len(wanted), np.int64)
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[places] == wanted, values[places], 0)
