"""A pre-training step's batch under each objective, as a pure function of the recipe and the step's number.

The one idea: which items a step takes, where they come from and what is hidden in them all follow from (seed, place in
the run). Every rank knows the whole global batch's places and lengths, so what the loss is divided by is known to all
without a word between them; it reads the tokens of its own share only.

    causal_lm                   T + 1 tokens of the stream: inputs and targets overlap
    masked_lm                   [CLS], T - 2 tokens of the stream, [SEP]; documents end with their [SEP] within it
    next_sentence               [CLS] A [SEP] B [SEP], padded to the longest of the global batch
    masked_lm_next_sentence     the same, with tokens hidden in it

`attention: within_documents` numbers the documents of a sequence, and attention stays between equal numbers. In a causal
model an EOT *opens* the next document: its first token is predicted from the EOT alone, as when a text is generated. In a
bidirectional one a [SEP] closes its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model.batches import RankBatch, rank_slice, samples, sequences, stream_batch
from model.job import StreamData
from model.masking import Masking, target_counts
from model.mixture import items, mixed
from model.mixture_quotas import quotas
from model.objectives import Batch
from model.sentence_pairs import Pairs, SentencePairs
from model.token_shards import TokenShards
from model.train_config import ObjectiveConfig
from model.vocabulary import Vocabulary, load


@dataclass(frozen=True)
class Order:
    """Which share of which steps: what `TrainConfig` and the world say."""

    seed: int
    global_batch_size: int
    length: int  # tokens in a sequence
    rank: int = 0
    world_size: int = 1

    @property
    def rows(self) -> slice:
        """The rank's places in the global batch."""
        places = rank_slice(self.global_batch_size, self.rank, self.world_size)
        return slice(places.start, places.stop)


def streams(data: StreamData, objective: str, options: ObjectiveConfig, tokenizer: Path, order: Order) -> Pretraining:
    """The batches of token shards; `tokenizer` is the folder of the one that made them."""
    manifest, root = Path(data.manifest), Path(data.root)
    names: list[str | None] = [*sorted(options.mixture)] or [None]  # no fingerprint tells in which order they came
    corpora = {name or "": TokenShards.from_manifest(manifest, root, name) for name in names}
    vocabulary = None if objective == "causal_lm" else load(tokenizer)
    return Pretraining(corpora, objective, options, order, vocabulary)


@dataclass(frozen=True)
class Pretraining:
    """The function from a step's number to a rank's share of its global batch.

    `corpora` are several where they are mixed; their order decides who gets which sample.
    """

    corpora: Mapping[str, TokenShards]
    objective: str
    config: ObjectiveConfig
    order: Order
    vocabulary: Vocabulary | None = None  # of bidirectional models
    _pairs: dict[str, SentencePairs] = field(default_factory=dict)

    def __call__(self, step: int) -> RankBatch:
        """A rank's share of step `step` (from 0)."""
        make = {"causal_lm": self._causal, "masked_lm": self._masked}.get(self.objective, self._paired)
        return make(step)

    def drawn(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Of the global batch's samples the corpus, by its place in `corpora`, and the item of it: (B,) int64 each."""
        size = self.order.global_batch_size
        if not self.config.mixture:
            (only,) = self.sizes
            return np.zeros(size, np.int64), samples(only, self.order.seed, step * size, size)
        counts = quotas({name: self.config.mixture[name] for name in self.corpora})
        which, numbers = mixed(tuple(counts.values()), self.order.seed, step * size, size)
        found: np.ndarray = np.empty(size, np.int64)
        for index, name in enumerate(self.corpora):
            rows = which == index
            found[rows] = items(self.sizes[index], f"{self.order.seed} {name}", numbers[rows])
        return which, found

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Items of each corpus in an epoch: sequences of the stream, or boundaries between sentences."""
        if self.objective in ("causal_lm", "masked_lm"):
            return tuple(sequences(shards, self._stretch) for shards in self.corpora.values())
        self._pairs.update({name: SentencePairs(shards) for name, shards in self.corpora.items()})
        return tuple(len(pairs) for pairs in self._pairs.values())

    def beginnings(self, step: int) -> list[tuple[TokenShards, int]]:
        """Where each row of the global batch begins in the stream of its corpus."""
        which, chosen = self.drawn(step)
        places = self._chosen(step)[1].a_start if self._pairs else chosen * self._stretch
        shards = list(self.corpora.values())
        return [(shards[corpus], int(place)) for corpus, place in zip(which, places, strict=True)]

    @property
    def _stretch(self) -> int:
        """Tokens of the stream in a sequence."""
        return self.order.length if self.objective == "causal_lm" else self.order.length - 2

    def _places(self, step: int) -> np.ndarray:
        """Where the global batch's samples stand in the run, (B,)."""
        return np.arange(step * self.order.global_batch_size, (step + 1) * self.order.global_batch_size)

    def _stream(self, step: int) -> np.ndarray:
        """The rank's stretches of the stream, (b, stretch + 1) int64."""
        which, chosen = (part[self.order.rows] for part in self.drawn(step))
        rows: np.ndarray = np.empty((len(chosen), self._stretch + 1), np.int64)
        for index, shards in enumerate(self.corpora.values()):
            mine = which == index
            rows[mine] = stream_batch(shards, chosen[mine], self._stretch)
        return rows

    def _batch(self, rows: dict[str, np.ndarray], loss_tokens: int, real_tokens: int, **weights: float) -> RankBatch:
        rank = self.order.rows
        tensors: dict[str, Any] = {name: torch.from_numpy(array) for name, array in rows.items()}
        tensors |= {name: torch.tensor(value) for name, value in weights.items()}
        return RankBatch(Batch(indices=torch.arange(rank.start, rank.stop), **tensors), loss_tokens, real_tokens)

    def _causal(self, step: int) -> RankBatch:
        rows = {"tokens": self._stream(step)}  # (b, T + 1)
        if self.config.attention == "within_documents":
            eot = next(iter(self.corpora.values())).eot
            rows["documents"] = np.cumsum(rows["tokens"][:, :-1] == eot, axis=1)
        count = self.order.global_batch_size * self.order.length
        return self._batch(rows, count, count)

    def _masking(self) -> Masking:
        assert self.vocabulary is not None
        return Masking(self.vocabulary, self.order.seed, self.config.mask_fraction, self.config.whole_words)

    def _masked(self, step: int) -> RankBatch:
        assert self.vocabulary is not None
        size, length = self.order.global_batch_size, self.order.length
        stream = self._stream(step)  # (b, T - 1): the token after the stretch makes room for [SEP]
        tokens = np.concatenate([np.full((len(stream), 1), self.vocabulary.cls), stream], axis=1)  # (b, T)
        tokens[:, -1] = self.vocabulary.sep
        seen, targets = self._masking()(tokens, self._places(step)[self.order.rows])
        rows = {"tokens": seen, "targets": targets}
        if self.config.attention == "within_documents":
            closed = np.cumsum(tokens == self.vocabulary.sep, axis=1)
            rows["documents"] = closed - (tokens == self.vocabulary.sep)
        loss_tokens = size * int(target_counts(np.array(length), self.config.mask_fraction))
        return self._batch(rows, loss_tokens, size * length)

    def _paired(self, step: int) -> RankBatch:
        size = self.order.global_batch_size
        which, pairs = self._chosen(step)
        tokens, types = self._read(which, pairs)  # (b, T')
        assert self.vocabulary is not None
        rows = {"tokens": tokens, "token_types": types, "padding": tokens != self.vocabulary.pad}
        rows["labels"] = np.where(pairs.follows, 0, 1)[self.order.rows]  # as BertForPreTraining counts them
        real = int(pairs.lengths.sum())
        if self.objective == "next_sentence":
            return self._batch(rows, size, real)
        rows["tokens"], rows["targets"] = self._masking()(tokens, self._places(step)[self.order.rows])
        hidden = int(target_counts(pairs.lengths, self.config.mask_fraction).sum())
        # The mean over hidden tokens plus the mean over pairs: the sum is divided by `hidden` afterwards.
        return self._batch(rows, hidden, real, sentence_weight=hidden / size)

    def _chosen(self, step: int) -> tuple[np.ndarray, Pairs]:
        """The corpus (B,) and the pair of each sample of the global batch."""
        which, chosen = self.drawn(step)
        places = self._places(step)
        found: list[np.ndarray] = [np.empty(len(which), np.int64) for _ in range(5)]  # a column for each field of Pairs
        for index, pairs in enumerate(self._pairs.values()):
            rows = np.flatnonzero(which == index)
            if len(rows):
                some = pairs.choose(chosen[rows], places[rows], self.order.seed, self.order.length - 3)
                for whole, part in zip(found, vars(some).values(), strict=True):
                    whole[rows] = part
        a_start, a_end, b_start, b_end, follows = found
        return which, Pairs(a_start, a_end, b_start, b_end, follows.astype(bool))

    def _read(self, which: np.ndarray, pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
        """The rank's rows as tokens and token types, (b, T') each, T' the longest of the global batch."""
        assert self.vocabulary is not None
        shards, rank = list(self.corpora.values()), range(*self.order.rows.indices(len(which)))
        tokens: np.ndarray = np.full((len(rank), int(pairs.lengths.max())), self.vocabulary.pad, np.int64)
        types = np.zeros_like(tokens)
        for row, kinds, place in zip(tokens, types, rank, strict=True):
            a, b = int(pairs.a_end[place] - pairs.a_start[place]), int(pairs.b_end[place] - pairs.b_start[place])
            row[0], row[a + 1], row[a + b + 2] = self.vocabulary.cls, self.vocabulary.sep, self.vocabulary.sep
            shards[which[place]].read_into(row[1 : a + 1], int(pairs.a_start[place]))
            shards[which[place]].read_into(row[a + 2 : a + b + 2], int(pairs.b_start[place]))
            kinds[a + 2 : a + b + 3] = 1
        return tokens, types
