"""The loader: batches of 1,024-token sequences from memory-mapped shards, at 1 and at 1,000 shards.

The one idea: `model.batches.pretrain_batch`, as training calls it, over a stream that is read at random, against what a
user would write: one flat file under `np.memmap`, random offsets, one `torch.stack` (nanoGPT's get_batch; from a file
it can neither tell documents nor go on after a restart). Memory is the process's own (anonymous) memory; the mapped
file's pages belong to the page cache.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import contender
from benchmarks.report import Figure, Options, at_least, say

LENGTH, BATCH = 1024, 256  # tokens in a sequence, sequences in a batch
VOCABULARY = 50257
FULL, SMALL = 256_000_000, 8_000_000  # tokens in all shards together
GOAL = 50e6  # tokens/s
TURNS = 5


def run(options: Options) -> list[Figure]:
    """Measure one shard and a thousand, and the flat file; figures in million tokens/s and MB."""
    tokens = SMALL if options.small else FULL
    figures = []
    for count in (1, 1000):
        item = {"folder": str(options.folder / f"{count}"), "shards": count, "tokens": tokens}
        contender.run("benchmarks.loader:write", item, threads=1)
        figures += _compared(count, contender.run("benchmarks.loader:read", item, threads=1))
    return figures


def _compared(count: int, found: dict[str, Any]) -> list[Figure]:
    name = f"loader, {count:,} shard{'s' if count > 1 else ''}"
    say(
        f"{name}: own memory {found['before']:.0f} MB before, {found['early']:.1f} MB after 10 % of the batches, {found['late']:.1f} MB after all"
    )
    speed = at_least(name, "M tokens/s", found["ours"], "nanoGPT's get_batch on one flat file", found["flat"], 0)
    return [
        Figure(
            name, speed.unit, speed.ours, speed.beside, speed.other, f">= {GOAL / 1e6:.0f}", found["ours"] * 1e6 >= GOAL
        ),
        Figure(
            f"{name}: own memory",
            "MB",
            found["late"],
            "the same after 10 % of the batches",
            found["early"],
            "<= + 8 MB",
            found["late"] - found["early"] <= 8,
        ),
    ]


def write(item: dict[str, Any]) -> None:
    """Shards of random tokens in documents of 1,000, their manifest, and the same tokens as one flat file."""
    import numpy as np

    from model import durable
    from model.token_shards import ShardMetadata, write_token_shard

    folder, each = Path(item["folder"]), item["tokens"] // item["shards"]
    folder.mkdir(parents=True)
    chance, units = np.random.default_rng(0), []
    metadata = ShardMetadata("0" * 64, VOCABULARY, VOCABULARY - 1, "0" * 64)
    offsets = np.unique(np.append(np.arange(0, each, 1000), each)).astype(np.int64)
    with open(folder / "flat.bin", "ab") as flat:
        for index in range(item["shards"]):
            tokens = chance.integers(0, VOCABULARY - 1, each, np.uint16)
            tokens[offsets[1:] - 1] = metadata.eot
            path = folder / f"{index:04d}.arrow"
            write_token_shard(path, tokens, offsets, [str(document) for document in range(len(offsets) - 1)], metadata)
            tokens.tofile(flat)
            units.append(
                {
                    "path": path.name,
                    "sha256": durable.sha256(path),
                    "documents": len(offsets) - 1,
                    "tokens": each,
                    "bytes": each * 4,
                }
            )
    head = {
        "schema": 1,
        "kind": "token_shards",
        "tokenizer": metadata.tokenizer,
        "vocab_size": VOCABULARY,
        "eot": metadata.eot,
    }
    durable.write_json(folder / "train.json", head | {"units": units})


def read(item: dict[str, Any]) -> dict[str, Any]:
    """Speeds of both in million tokens/s, in turns over an equal number of batches, and our memory on the way in MB."""
    ours, flat = _ours(Path(item["folder"])), _flat(Path(item["folder"]) / "flat.bin")
    batches = max(10, item["tokens"] // (LENGTH * BATCH) // TURNS)  # all turns together are about one epoch
    steps = itertools.count()
    before, seconds = own_memory(), {"ours": [], "flat": []}  # type: ignore[var-annotated]
    _timed(ours, steps, max(1, batches // 2))
    early = own_memory()
    for _ in range(TURNS):
        seconds["ours"].append(_timed(ours, steps, batches))
        seconds["flat"].append(_timed(flat, steps, batches))
    late = own_memory()
    speeds = {name: batches * BATCH * LENGTH / 1e6 / sorted(times)[TURNS // 2] for name, times in seconds.items()}
    return speeds | {"before": before, "early": early, "late": late}


def _timed(batch: Callable[[int], Any], steps: Any, count: int) -> float:
    began = time.perf_counter()
    for step in itertools.islice(steps, count):
        batch(step)
    return time.perf_counter() - began


def _ours(folder: Path) -> Callable[[int], Any]:
    from model.batches import pretrain_batch
    from model.token_shards import TokenShards

    shards = TokenShards.from_manifest(folder / "train.json", folder)
    return lambda step: pretrain_batch(shards, step, seed=0, global_batch_size=BATCH, length=LENGTH)


def _flat(path: Path) -> Callable[[int], Any]:
    """nanoGPT's get_batch, as it stands in its train.py."""
    import numpy as np
    import torch

    def get_batch(step: int) -> Any:
        data = np.memmap(path, np.uint16, mode="r")  # anew for each batch, as there: against a leak of memory
        places = torch.randint(len(data) - LENGTH, (BATCH,))
        x = torch.stack([torch.from_numpy(data[i : i + LENGTH].astype(np.int64)) for i in places])  # (B, T)
        y = torch.stack([torch.from_numpy(data[i + 1 : i + 1 + LENGTH].astype(np.int64)) for i in places])  # (B, T)
        return x, y

    return get_batch


def own_memory() -> float:
    """The anonymous memory of this process in MB: what it allocated, without the pages of mapped files."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1e3
    raise RuntimeError("/proc/self/status has no RssAnon; Linux 4.5 or newer is needed")
