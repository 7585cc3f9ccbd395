"""Masked language modelling: which tokens are hidden, and what is put in their place.

The one idea: both are read off a hash of (seed, place in the run, position), as dropout is. There is no state: sample 17
of epoch 3 hides the same tokens however the batch is sliced and however often the run was restarted, and the next time
that its text comes by, others.

After Devlin et al. 2018: of a sequence's tokens, [CLS] and [SEP] counted, a fraction (15 %) are targets; 80 % of these
become [MASK], 10 % a random token, 10 % stay. Special tokens are neither hidden nor put anywhere. How many targets a
sequence has follows from its length alone, so each rank knows the number of the global batch without reading the others'
tokens. Whole words: words are taken in random order while they fit into that number; where none fits, fewer are hidden.

Only numpy, and no loop over tokens or sequences.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from model.cross_entropy import IGNORE_INDEX
from model.dropout import splitmix64
from model.vocabulary import Vocabulary

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_NEVER = np.uint64(2**64 - 1)
_POSITION = np.uint64((1 << 20) - 1)  # low bits of a score, which make it unique in its row
_MASKED, _RANDOM = round(0.8 * 2**16), round(0.9 * 2**16)  # of 2^16: below the first [MASK], below the second random


def keys(seed: int, places: np.ndarray, purpose: str = "") -> np.ndarray:
    """A 64-bit key for each place in the run, (B,) uint64; one purpose's keys say nothing of another's."""
    start = np.array([seed + 1], np.uint64) * _GOLDEN
    for letter in purpose.encode():
        start = splitmix64(start + np.uint64(letter))
    return splitmix64(splitmix64(start) + places.astype(np.uint64) * _GOLDEN)


def draws(row_keys: np.ndarray, count: int) -> np.ndarray:
    """`count` evenly spread 64-bit numbers for each key, (B, count)."""
    return splitmix64(row_keys[:, None] + np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN)


def target_counts(lengths: np.ndarray, fraction: float) -> np.ndarray:
    """How many targets sequences of these lengths (B,) have, (B,) int64: at least one."""
    return np.maximum(np.floor(fraction * lengths + 0.5).astype(np.int64), 1)


@dataclass(frozen=True)
class Masking:
    """What is hidden, as a function of the tokens and of where they stand in the run."""

    vocabulary: Vocabulary
    seed: int
    fraction: float = 0.15
    whole_words: bool = False

    def __call__(self, tokens: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """tokens (B, T), padded with [PAD], at `places` (B,) of the run -> what the model sees, and its targets, (B, T)
        int64 each, IGNORE_INDEX where nothing is asked. A row with too little to hide has fewer targets than its length asks."""
        random = draws(keys(self.seed, places, "mask"), tokens.shape[1])  # (B, T)
        counts = target_counts((tokens != self.vocabulary.pad).sum(1), self.fraction)  # (B,)
        scores = (random & ~_POSITION) | np.arange(tokens.shape[1], dtype=np.uint64)
        scores[self.vocabulary.special[tokens]] = _NEVER
        chosen = self._words(tokens, scores, counts) if self.whole_words else _lowest(scores, counts)
        targets = np.where(chosen, tokens, IGNORE_INDEX)
        seen = tokens.copy()
        seen[chosen] = self._replaced(tokens[chosen], splitmix64(random[chosen] + _GOLDEN))
        return seen, targets

    def _replaced(self, tokens: np.ndarray, random: np.ndarray) -> np.ndarray:
        """What stands in the place of hidden tokens (N,): [MASK], any ordinary token, or themselves."""
        share = random >> np.uint64(48)
        ordinary = self.vocabulary.ordinary
        others = ordinary[(random & np.uint64(0xFFFFFFFF)) % np.uint64(len(ordinary))]
        return np.where(share < _MASKED, self.vocabulary.mask, np.where(share < _RANDOM, others, tokens))

    def _words(self, tokens: np.ndarray, scores: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Whole words in the order of their scores, each taken if it fits into what is left of `counts` (B,): (B, T) bool."""
        begins = self.vocabulary.begins_word[tokens]
        begins[:, 0] = True
        begins[:, 1:] |= self.vocabulary.special[tokens[:, :-1]]
        positions = np.arange(tokens.shape[1])
        first = np.maximum.accumulate(np.where(begins, positions, 0), axis=1)  # (B, T) where each token's word begins
        rows = np.arange(len(tokens))[:, None] * tokens.shape[1]
        sizes = np.bincount((rows + first).ravel(), minlength=tokens.size)[rows + first]  # (B, T) tokens of its word
        scores = np.take_along_axis(scores, first, 1)
        order = np.argsort(scores, axis=1, kind="stable")  # (B, T): a word's tokens stay together, in their order
        scores, sizes, within = (np.take_along_axis(a, order, 1) for a in (scores, sizes, positions - first))
        taken = np.zeros(tokens.shape, bool)
        while True:
            left = (counts - taken.sum(1))[:, None]
            fits = ~taken & (scores != _NEVER) & (sizes <= left)
            if not fits.any():
                break
            ends = np.cumsum(fits, axis=1) - within + sizes - 1  # tokens taken once its word is
            taken |= fits & (ends <= left)  # up to the first that does not fit, which is passed over the next time
        chosen = np.zeros(tokens.shape, bool)
        np.put_along_axis(chosen, order, taken, 1)
        return chosen


def _lowest(scores: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The `counts` (B,) lowest scores of each row, (B, T) bool; never those that are _NEVER."""
    limits = np.sort(scores, axis=1)[np.arange(len(scores)), counts - 1]
    return (scores <= limits[:, None]) & (scores != _NEVER)
