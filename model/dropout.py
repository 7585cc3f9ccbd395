"""Dropout as a pure function of (seed, step, index in the global batch, site).

The one idea: whether an activation is dropped is read off a hash, not drawn from a generator. There is no
state, so it does not matter how the global batch is cut into micro-batches or over ranks, in which order
sites run, whether a block is run twice (activation checkpointing) or on which device: sample 17 of step 300
loses the same activations. A resumed run needs no random state either.

The hash has two parts. Each row of the batch gets a 64-bit key from (seed, step, index), made on the host in
exact arithmetic (splitmix64). Each activation's position in its row is mixed with that key and the site's
constant by two rounds of a 32-bit multiply-xorshift hash on the device, which gives 16 bits for each of two
neighbouring activations. An activation (t, c) of a row has position t * C + c: padding on the right, which
differs between micro-batches, does not move it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio, the increment of splitmix64
_LEVELS = 1 << 16  # a 16-bit number decides, so probabilities are multiples of 2^-16


def splitmix64(value: np.ndarray) -> np.ndarray:
    """The 64-bit finaliser of splitmix64 (Steele, Lea, Flood 2014), elementwise on uint64: a bijection."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def _halves(keys: np.ndarray) -> Tensor:
    """64-bit keys (n,) as two int32 numbers each, (n, 2)."""
    return torch.from_numpy(keys.astype("<u8").view(np.int32).reshape(-1, 2))


@dataclass(frozen=True)
class DropoutKey:
    """What dropout depends on, beside the site: `indices` (B,) say where each row stands in the global batch."""

    seed: int
    step: int
    indices: Tensor

    def row_keys(self, device: torch.device | str = "cpu") -> Tensor:
        """The rows' keys (B, 2) int32 on `device`, as the models take them."""
        # One-element arrays, not numbers: their overflow wraps without a warning.
        golden = np.uint64(_GOLDEN)
        key = splitmix64(np.array([self.seed], np.uint64) + golden) + np.array([self.step], np.uint64)
        keys = splitmix64(key + golden) + self.indices.cpu().numpy().astype(np.uint64)  # (B,)
        return _halves(splitmix64(keys + golden)).to(device, non_blocking=True)


def site_constants(site: int) -> tuple[int, int]:
    """The two 32-bit constants of one place in the network, xored into the rows' keys there."""
    low, high = _halves(splitmix64(np.array([site + 1], np.uint64) * np.uint64(_GOLDEN)))[0].tolist()
    return low, high


def _hash(row_keys: Tensor, site: tuple[int, int], numbers: int) -> Tensor:
    """Evenly spread int32 numbers (B, numbers). All arithmetic wraps modulo 2^32.

    int32 shifts keep the sign, so `x ^ (x >> s)` clears the top bit; the odd multiplication after it spreads
    the others over it again, and the hash ends with one.
    """
    low, high = row_keys[:, :1] ^ site[0], row_keys[:, 1:] ^ site[1]  # (B, 1)
    position = torch.arange(numbers, dtype=torch.int32, device=row_keys.device) * -1640531535  # 0x9E3779B1, odd
    x = low + position  # (B, numbers)
    x ^= x >> 16
    x *= -2048144789  # 0x85EBCA6B, murmur3's
    x += high
    x ^= x >> 13
    x *= -1028477387  # 0xC2B2AE35, murmur3's
    x ^= x >> 16
    x *= -1640531535
    return x


def keep_mask(row_keys: Tensor, site: tuple[int, int], row_size: int, probability: float) -> Tensor:
    """True (B, row_size) where an activation is kept. `probability` of dropping is rounded to 2^-16."""
    bits = _hash(row_keys, site, (row_size + 1) // 2).view(torch.int16)[:, :row_size]  # (B, row_size)
    return bits >= round(probability * _LEVELS) - _LEVELS // 2


def dropout(x: Tensor, probability: float, row_keys: Tensor | None, site: tuple[int, int]) -> Tensor:
    """Zero activations of x (B, ...) with `probability` and scale the others up; x itself without keys.

    Whether a model is in train or eval mode plays no part: dropout is on where keys are given.
    """
    if row_keys is None or probability == 0:
        return x
    keep = keep_mask(row_keys, site, x[0].numel(), probability).view(x.shape)
    scale = _LEVELS / (_LEVELS - round(probability * _LEVELS))
    return x * (keep.to(x.dtype) * scale)
