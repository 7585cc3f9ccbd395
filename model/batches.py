"""Which samples a step trains on, and the arrays it gets (DESIGN rule 5).

The one idea: the data order is a function, not a state. Sample i of a run is f(seed, i), a keyed permutation
with random access; step s takes samples s*B .. s*B + B - 1; a rank takes its slice of them. So the step number is
all that a loader has to remember, and 1, 2 or 16 ranks see the same samples in the same order.

The loss of a step is the sum over its *global* batch divided by that batch's number of loss tokens, which every
rank computes for itself from the data: slicing the batch otherwise cannot change the loss.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch

from model.examples import Examples
from model.objectives import Batch, Objective
from model.token_shards import TokenShards

POOL = 16  # global batches among which examples are sorted by length, where a job does not say
_BLOCK = 4096  # samples whose order is computed at once
_ROUNDS = 6  # Feistel rounds; four give a pseudo-random permutation (Luby and Rackoff, 1988), six leave a margin
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)  # splitmix64's finaliser (Steele, Lea and Flood, 2014)


@dataclass(frozen=True)
class RankBatch:
    """One rank's share of a global batch, and what the share's loss is divided by."""

    rows: Batch  # the rank's sequences, on the host; as wide as the whole global batch needs
    loss_tokens: float  # targets of the *global* batch, or the sum of their weights
    real_tokens: int  # input tokens of the *global* batch, without padding

    def micro_batches(self, size: int) -> Iterator[Batch]:
        """The rows, `size` at a time, as views."""
        for start in range(0, len(self.rows.tokens), size):
            yield self.rows.cut(slice(start, start + size))


class Permutation:
    """A pseudo-random bijection on range(n) with random access, a function of (n, seed, epoch).

    A Feistel network over the smallest even-or-odd number of bits that holds n, walked along its cycle until it
    falls below n (Black and Rogaway, 2002: less than two steps on average). Vectorised; no table is stored.
    """

    def __init__(self, n: int, seed: int | str, epoch: int = 0) -> None:
        if n < 1:
            raise ValueError(f"a permutation of {n} samples; at least one is needed")
        self.n = n
        bits = max(2, (n - 1).bit_length())
        self._halves = (bits // 2, bits - bits // 2)
        key = hashlib.sha256(f"gptline permutation {seed} {epoch}".encode()).digest() * 2
        self._keys = np.frombuffer(key, "<u8")[:_ROUNDS]

    def __call__(self, places: np.ndarray) -> np.ndarray:
        """The samples (int64) at `places`, an array of integers in range(n)."""
        samples = self._feistel(np.asarray(places).astype(np.uint64))
        while (outside := samples >= self.n).any():
            samples[outside] = self._feistel(samples[outside])
        return samples.astype(np.int64)

    def _feistel(self, values: np.ndarray) -> np.ndarray:
        """One pass of the network: a bijection on all numbers of `bits` bits. An even number of rounds keeps the halves' widths."""
        left_bits, right_bits = self._halves
        left, right = values >> np.uint64(right_bits), values & np.uint64((1 << right_bits) - 1)
        for key in self._keys:
            mixed = _mix(right ^ key) & np.uint64((1 << left_bits) - 1)
            left, right = right, left ^ mixed
            left_bits, right_bits = right_bits, left_bits
        return (left << np.uint64(right_bits)) | right


def _mix(values: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser over uint64, modulo 2**64."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(_MULTIPLIERS[0])
    values = (values ^ (values >> np.uint64(27))) * np.uint64(_MULTIPLIERS[1])
    return values ^ (values >> np.uint64(31))


@lru_cache(maxsize=2)
def _block(n: int, seed: int, epoch: int, block: int) -> np.ndarray:
    """A stretch of an epoch's order, at most _BLOCK samples: a few samples at a time cost a hundred times as much each."""
    return Permutation(n, seed, epoch)(np.arange(block * _BLOCK, min(n, (block + 1) * _BLOCK)))


def samples(n: int, seed: int, start: int, count: int) -> np.ndarray:
    """Samples `start` .. `start + count - 1` of a run over n items, (count,) int64: each epoch is another permutation."""
    pieces, place, end = [], start, start + count
    while place < end:
        epoch, within = divmod(place, n)
        block, offset = divmod(within, _BLOCK)
        pieces.append(_block(n, seed, epoch, block)[offset : offset + end - place])
        place += len(pieces[-1])
    return np.concatenate(pieces)


def rank_slice(global_batch_size: int, rank: int, world_size: int) -> range:
    """The places in the global batch that a rank computes. ValueError if they cannot be shared out evenly."""
    per_rank, rest = divmod(global_batch_size, world_size)
    if rest or per_rank == 0:
        raise ValueError(
            f"global_batch_size={global_batch_size} does not divide over {world_size} ranks; choose a multiple of {world_size}"
        )
    return range(rank * per_rank, (rank + 1) * per_rank)


def sequences(shards: TokenShards, length: int) -> int:
    """Training sequences of `length` tokens (and their targets) in the stream. ValueError if there is none."""
    count = (len(shards) - 1) // length
    if count < 1:
        raise ValueError(
            f"{len(shards)} tokens hold no sequence of {length} and its targets; give more data or a shorter sequence_length"
        )
    return count


def stream_batch(shards: TokenShards, chosen: np.ndarray, length: int) -> np.ndarray:
    """Sequences `chosen` of the stream with one token more, (B, length + 1) int64: inputs and targets overlap in it."""
    out: np.ndarray = np.empty((len(chosen), length + 1), np.int64)
    for row, sample in zip(out, chosen.tolist(), strict=True):
        shards.read_into(row, sample * length)
    return out


def pretrain_batch(
    shards: TokenShards,
    step: int,
    *,
    seed: int,
    global_batch_size: int,
    length: int,
    rank: int = 0,
    world_size: int = 1,
) -> RankBatch:
    """A rank's share of step `step` (from 0) over a stream of tokens cut into sequences of `length` tokens."""
    places = rank_slice(global_batch_size, rank, world_size)
    order = samples(sequences(shards, length), seed, step * global_batch_size, global_batch_size)
    rows = stream_batch(shards, order[places.start : places.stop], length)  # (B, T + 1)
    batch = Batch(torch.from_numpy(rows), torch.arange(places.start, places.stop))
    return RankBatch(batch, global_batch_size * length, global_batch_size * length)


@lru_cache(maxsize=2)
def _pool(examples: Examples, seed: int, global_batch_size: int, size: int, pool: int) -> np.ndarray:
    """The examples of one pool of global batches, (size, B): cut by length, then the batches shuffled.

    Examples of a batch are about equally long, so that little of it is padding; which batch comes when stays random. Where
    a pool is more than a third of an epoch, two epochs in it are sorted apart: copies of an example, which are equally long,
    would stand side by side in one batch.
    """
    count, first = size * global_batch_size, pool * size * global_batch_size
    chosen = samples(len(examples), seed, first, count)
    epochs: np.ndarray = np.arange(first, first + count) // len(examples) * (3 * count > len(examples))
    batches = chosen[np.lexsort((examples.lengths[chosen], epochs))].reshape(size, global_batch_size)
    return batches[Permutation(size, seed, pool)(np.arange(size))]


def example_order(examples: Examples, step: int, *, seed: int, global_batch_size: int, pool: int = POOL) -> np.ndarray:
    """The examples of step `step`, (B,) int64, by place in the global batch: each comes once in any len(examples) of a run,
    but for where a pool of batches reaches over the end of an epoch.

    A pool is an epoch at most.
    """
    size = max(1, min(pool, len(examples) // global_batch_size))
    return _pool(examples, seed, global_batch_size, size, step // size)[step % size]


def example_batch(
    examples: Examples,
    step: int,
    *,
    seed: int,
    global_batch_size: int,
    length: int,
    objective: Objective = "classification",
    pool: int = POOL,
    rank: int = 0,
    world_size: int = 1,
) -> RankBatch:
    """A rank's share of step `step` over examples, padded on the right.

    Examples longer than `length` tokens are cut to their first `length`. All ranks pad to the longest of the
    *global* batch, so that their kernels see the same shapes at any world size. Classification gets labels, finding
    spans their places and the segments, any other objective the loss masks; in all cases a rank counts the targets of the
    whole batch from the data.
    """
    places = rank_slice(global_batch_size, rank, world_size)
    order = example_order(examples, step, seed=seed, global_batch_size=global_batch_size, pool=pool)
    lengths = np.minimum(examples.lengths[order], length)  # (global batch,)
    width, share = int(lengths.max()), order[places.start : places.stop]
    tokens: np.ndarray = np.full((len(places), width), examples.pad, np.int64)  # (B, T)
    for row, place in zip(tokens, places, strict=True):
        row[: lengths[place]] = examples.tokens(int(order[place]))[: lengths[place]]
    batch = Batch(torch.from_numpy(tokens), torch.arange(places.start, places.stop))
    if objective == "classification":
        labels = np.array([_label(examples, int(sample)) for sample in share])  # (B,)
        batch = replace(batch, labels=torch.from_numpy(labels))
        if examples.weights is None:
            return RankBatch(batch, global_batch_size, int(lengths.sum()))
        weights = torch.from_numpy(examples.weights[share].astype(np.float32))
        return RankBatch(replace(batch, weights=weights), float(examples.weights[order].sum()), int(lengths.sum()))
    if objective == "span":
        return RankBatch(with_spans(batch, examples, share), global_batch_size, int(lengths.sum()))
    targets = sum(int(examples.loss_mask(int(sample))[1:length].sum()) for sample in order)
    if not targets:
        raise ValueError(
            f"{examples.path}: the batch of step {step} has no token to learn; every loss mask in it is empty"
        )
    masks = torch.from_numpy(_masks(examples, share, width))
    return RankBatch(replace(batch, loss_mask=masks), targets, int(lengths.sum()))


def with_spans(batch: Batch, examples: Examples, chosen: np.ndarray) -> Batch:
    """The batch of the examples `chosen` with where their answers are and with their segments. ValueError if none are known."""
    if examples.spans is None:
        raise ValueError(f"{examples.path}: no example says where its answer is; finding spans needs that of each")
    spans = torch.from_numpy(examples.spans[chosen])  # (B, 3)
    second = torch.arange(batch.tokens.shape[1]) >= spans[:, 2:]  # (B, T)
    types = (second & (batch.tokens != examples.pad)).long()  # (B, T)
    return replace(batch, labels=spans[:, :2].contiguous(), token_types=types)


def _masks(examples: Examples, chosen: np.ndarray, width: int) -> np.ndarray:
    """The loss masks of the examples `chosen`, (B, width) bool: false where there is padding."""
    masks: np.ndarray = np.zeros((len(chosen), width), bool)
    for row, sample in zip(masks, chosen.tolist(), strict=True):
        mask = examples.loss_mask(sample)[:width]
        row[: len(mask)] = mask
    return masks


def padding(
    examples: Examples, steps: int, *, seed: int, global_batch_size: int, length: int, pool: int = POOL
) -> float:
    """The share of padding among the tokens of a run's first `steps` steps: what the batches by length leave of it."""
    real = padded = 0
    for step in range(steps):
        order = example_order(examples, step, seed=seed, global_batch_size=global_batch_size, pool=pool)
        lengths = np.minimum(examples.lengths[order], length)  # (global batch,)
        real, padded = real + int(lengths.sum()), padded + len(lengths) * int(lengths.max())
    return 1 - real / padded


def _label(examples: Examples, sample: int) -> int:
    """The class of an example. ValueError names the example that has none."""
    example = examples[sample]
    if example.label is None:
        raise ValueError(f"{examples.path}: example {example.id} has no label; classification needs one for each")
    return example.label
