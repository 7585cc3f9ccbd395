"""A mixture of corpora: which corpus each sample of a run comes from, and which of its items it is.

The one idea: every stretch of BLOCK samples holds the same number of each corpus, in a keyed order. So the n-th sample
of the run is a function of n, the number of a corpus's samples before it is known without counting, and the weights hold
in every stretch, not only in the long run. Weights are rounded to 1/BLOCK.

A corpus whose items have all been seen begins again, in the order of its next epoch; the others are not affected, and
the weights stay what they are.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from model.batches import Permutation
from model.mixture_quotas import BLOCK


@lru_cache(maxsize=4)
def _block(counts: tuple[int, ...], seed: int, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Of a block's samples the corpus (BLOCK,), and how many of that corpus come before it in the block (BLOCK,)."""
    slots: np.ndarray = np.repeat(np.arange(len(counts)), counts)
    corpora = slots[Permutation(BLOCK, f"{seed} mixture", block)(np.arange(BLOCK))]
    before: np.ndarray = np.empty(BLOCK, np.int64)
    for corpus in range(len(counts)):
        before[corpora == corpus] = np.arange(counts[corpus])
    return corpora, before


def mixed(counts: tuple[int, ...], seed: int, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Samples `start` .. `start + count - 1`: the corpus of each (count,), and its number among that corpus's samples."""
    corpora, numbers, place = [], [], start
    while place < start + count:
        block, offset = divmod(place, BLOCK)
        cut = slice(offset, offset + start + count - place)
        which, before = (part[cut] for part in _block(counts, seed, block))
        corpora.append(which)
        numbers.append(before + block * np.array(counts)[which])
        place += len(which)
    return np.concatenate(corpora), np.concatenate(numbers)


def items(size: int, seed: str, numbers: np.ndarray) -> np.ndarray:
    """The items of a corpus of `size` that its samples `numbers` (n,) are, (n,) int64: each epoch is another permutation."""
    found: np.ndarray = np.empty(len(numbers), np.int64)
    epochs: np.ndarray = numbers // size
    for epoch in np.unique(epochs).tolist():
        found[epochs == epoch] = Permutation(size, seed, epoch)(numbers[epochs == epoch] % size)
    return found
