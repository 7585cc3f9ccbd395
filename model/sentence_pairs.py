"""Next-sentence prediction: two pieces of text, of which the second follows the first, or comes from another document.

The one idea: a sample is a boundary between two sentences of one document. Before it stands A, as many whole sentences
as fit into half of the room; after it stands B, as many as fit into the rest. In half of the samples B is what stands
after a boundary of *another* document. So both kinds of B are made by one rule and come from the same places, and only
what they say tells them apart. Each boundary comes once in an epoch.

Truncation: a sentence longer than the room loses its far end: A's its beginning, B's its end; what touches the boundary
stays. [CLS] and [SEP] are put around the pieces when a batch is made, and the documents' own ends are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from model.masking import draws, keys
from model.token_shards import TokenShards

_TRIES = 64  # random boundaries that are tried before those of other documents are counted off


@dataclass(frozen=True)
class Pairs:
    """Where the pieces of some samples stand in the stream of tokens, (B,) int64 each."""

    a_start: np.ndarray
    a_end: np.ndarray
    b_start: np.ndarray
    b_end: np.ndarray
    follows: np.ndarray  # bool, whether B is what follows A

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of [CLS] A [SEP] B [SEP]."""
        return self.a_end - self.a_start + self.b_end - self.b_start + 3


@dataclass(frozen=True)
class _Boundaries:
    """Some boundaries: the place in the stream, where the document begins and ends (its EOT left out), its first boundary
    and how many it has, (B,) each."""

    place: np.ndarray
    start: np.ndarray
    end: np.ndarray
    first: np.ndarray
    count: np.ndarray


class SentencePairs:
    """The boundaries between sentences of a corpus, over all of its shards, each shard mapped when it is first needed."""

    def __init__(self, shards: TokenShards) -> None:
        counts = [unit.sentences - unit.documents for unit in shards.units]
        if any(unit.sentences == 0 for unit in shards.units):
            raise ValueError(
                "the token shards do not say where sentences begin; tokenize for an objective that needs them"
            )
        if sum(counts) < 2:
            raise ValueError("no document has two sentences, so there are no pairs; give documents that are longer")
        self.shards = shards
        self._before = np.concatenate([[0], np.cumsum(counts)])  # (shards + 1,) boundaries before each shard
        self._starts = shards.ends - np.array([unit.tokens for unit in shards.units])  # (shards,) in the stream
        self._marks: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}

    def __len__(self) -> int:
        """Boundaries between two sentences of one document."""
        return int(self._before[-1])

    def choose(self, boundaries: np.ndarray, places: np.ndarray, seed: int, room: int) -> Pairs:
        """The pairs of some boundaries (B,) at `places` (B,) of the run, of at most `room` tokens without [CLS] and [SEP]."""
        row_keys = keys(seed, places, "pair")
        follows = (row_keys >> np.uint64(63)).astype(bool)
        here = self._found(boundaries)
        there = self._found(np.where(follows, boundaries, self._elsewhere(here, row_keys, ~follows)))
        a_start = self._first_sentence(here, room // 2)
        b_end = self._last_sentence(there, room - (here.place - a_start))
        return Pairs(a_start, here.place, there.place, b_end, follows)

    def _elsewhere(self, here: _Boundaries, row_keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """A random boundary of another document for each row that is `wanted` (B,): (B,) int64."""
        found: np.ndarray = np.zeros(len(row_keys), np.int64)
        random = draws(row_keys, _TRIES + 1)  # (B, tries + 1)
        missing = np.flatnonzero(wanted)
        for attempt in range(_TRIES):
            if not len(missing):
                return found
            found[missing] = (random[missing, attempt] % np.uint64(len(self))).astype(np.int64)
            missing = missing[self._found(found[missing]).start == here.start[missing]]
        # One document has nearly all boundaries: what is left is counted off.
        first, inside = here.first[missing], here.count[missing]
        others: np.ndarray = len(self) - inside
        if not others.all():
            raise ValueError(
                "next-sentence prediction needs two documents of several sentences at least; the corpus has one"
            )
        place = (random[missing, _TRIES] % others.astype(np.uint64)).astype(np.int64)
        found[missing] = place + np.where(place < first, 0, inside)
        return found

    def _found(self, boundaries: np.ndarray) -> _Boundaries:
        """Where boundaries are. A document's k-th boundary is before its sentence k + 1."""
        out = _Boundaries(*(np.empty(len(boundaries), np.int64) for _ in range(5)))
        shards = np.searchsorted(self._before, boundaries, "right") - 1
        for shard in np.unique(shards).tolist():
            rows = np.flatnonzero(shards == shard)
            sentences, offsets, inner = self._mark(shard)
            local = boundaries[rows] - self._before[shard]
            documents = np.searchsorted(inner, local, "right") - 1
            out.place[rows] = self._starts[shard] + sentences[local + documents + 1]
            out.start[rows] = self._starts[shard] + offsets[documents]
            out.end[rows] = self._starts[shard] + offsets[documents + 1] - 1
            out.first[rows] = self._before[shard] + inner[documents]
            out.count[rows] = inner[documents + 1] - inner[documents]
        return out

    def _first_sentence(self, found: _Boundaries, room: int) -> np.ndarray:
        """Where A begins: the earliest sentence of its document that is at most `room` before the boundary, or there."""
        lowest = np.maximum(found.place - room, found.start)
        sentence = self._near(lowest, found.start, "left", 0)
        return np.where(sentence < found.place, sentence, lowest)

    def _last_sentence(self, found: _Boundaries, room: np.ndarray) -> np.ndarray:
        """Where B ends: the latest end of a sentence of its document at most `room` (B,) after the boundary, or there."""
        limit = np.minimum(found.place + room, found.end)
        sentence = self._near(limit, found.start, "right", -1)
        return np.where((limit < found.end) & (sentence > found.place), sentence, limit)

    def _near(self, places: np.ndarray, inside: np.ndarray, side: str, step: int) -> np.ndarray:
        """The beginning of a sentence next to each place, in the shard in which `inside` is: at or after it ("left", 0),
        or at or before it ("right", -1)."""
        found: np.ndarray = np.empty(len(places), np.int64)
        shards = np.searchsorted(self.shards.ends, inside, "right")
        for shard in np.unique(shards).tolist():
            rows = np.flatnonzero(shards == shard)
            sentences = self._mark(shard)[0]
            where = np.searchsorted(sentences, places[rows] - self._starts[shard], side) + step  # type: ignore[call-overload]
            found[rows] = self._starts[shard] + sentences[where]
        return found

    def _mark(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of a shard where sentences begin, where documents begin, and how many boundaries come before each document."""
        if index not in self._marks:
            shard = self.shards.shard(index)
            assert shard.sentences is not None and shard.sentence_offsets is not None  # its manifest counts them
            inner = shard.sentence_offsets - np.arange(len(shard) + 1)
            self._marks[index] = (shard.sentences, shard.offsets, inner)
        return self._marks[index]
