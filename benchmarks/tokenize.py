"""Tokenizing: Parquet in, verified token shards on disk out, with Ray already up.

The one idea: ours is the real step, run by the real engine: it hashes what it reads, compares a sample of every shard
with `tokenizers`, hashes and flushes what it writes. The others do none of that. Ours and gigatoken alone take
turns, and each turn is a fresh process, for ours with a fresh Ray: what its workers have to import counts.

- `datasets.map(num_proc=2)` to disk, with the same tokenizer as a fast `tokenizers` one, on a slice: it would take minutes;
- gigatoken alone, 2 threads, the same Parquet files in, flat files of 16-bit ids and of lengths out.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from benchmarks import contender, corpus, data_line
from benchmarks.report import Figure, Options, at_least, median, say

THREADS = 2
FULL, SMALL = 1_000_000_000, 30_000_000  # bytes of corpus
SLICE_FULL, SLICE_SMALL = 50_000_000, 3_000_000  # bytes for datasets.map
TURNS_FULL, TURNS_SMALL = 3, 1


def run(options: Options) -> list[Figure]:
    """Measure all three; figures in MB/s of UTF-8 text."""
    size, slice_bytes, turns = (SMALL, SLICE_SMALL, TURNS_SMALL) if options.small else (FULL, SLICE_FULL, TURNS_FULL)
    folder = corpus.write(options.folder / "corpus", size, options.cache)
    item: dict[str, Any] = {"work": str(options.folder / "work"), "corpus": str(folder), "cache": str(options.cache)}
    made = contender.run("benchmarks.tokenize:prepare", item, threads=THREADS)
    text = sum(shard["bytes"] for shard in made["shards"]) / 1e6
    say(
        f"{text:.0f} MB of text in {len(made['shards'])} Parquet shards, sharded at {text / made['shard_seconds']:.0f} MB/s"
    )
    item |= {
        "shards": made["shards"],
        "tokenizer": made["tokenizer"],
        "out": str(options.folder / "out"),
        "slice_bytes": slice_bytes,
    }
    ours, alone = _turns(item, turns)
    _same_tokens(ours[0], alone[0])
    mapped = contender.run("benchmarks.tokenize:datasets_map", item, threads=1)
    say(
        f"datasets.map on {mapped['bytes'] / 1e6:.0f} MB of it: {mapped['seconds']:.1f} s ({mapped['load_seconds']:.1f} s to load)"
    )
    speed, flat = (text / median([turn["seconds"] for turn in found]) for found in (ours, alone))
    slow = mapped["bytes"] / 1e6 / mapped["seconds"]
    return [
        at_least("tokenize step", "MB/s", speed, "datasets.map(num_proc=2) to disk", slow, 20),
        at_least("tokenize step", "MB/s", speed, "gigatoken alone, 2 threads, flat files", flat, 0.75),
    ]


def _turns(item: dict[str, Any], turns: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Ours and gigatoken alone, in turn."""
    ours, alone = [], []
    for turn in range(turns):
        ours.append(contender.run("benchmarks.tokenize:ours", item, threads=THREADS))
        alone.append(contender.run("benchmarks.tokenize:gigatoken_alone", item, threads=THREADS))
        say(
            f"turn {turn + 1}: ours {ours[-1]['seconds']:.2f} s (Ray's start, {ours[-1]['ray_seconds']:.1f} s, apart; "
            f"{ours[-1]['fallback_shards']} shards by the fallback), gigatoken alone {alone[-1]['seconds']:.2f} s"
        )
    return ours, alone


def _same_tokens(ours: dict[str, Any], alone: dict[str, Any]) -> None:
    """ValueError unless both made the same number of tokens: then both did the same work."""
    if ours["tokens"] - ours["documents"] != alone["tokens"]:
        raise ValueError(
            f"ours made {ours['tokens'] - ours['documents']} tokens beside the ends of text, gigatoken alone {alone['tokens']}"
        )


def prepare(item: dict[str, Any]) -> dict[str, Any]:
    """Shard the corpus and train the tokenizer: the shards, the tokenizer's folder, and the time of sharding."""
    space = data_line.workspace(Path(item["work"]), Path(item["corpus"]), Path(item["cache"]), "train_tokenizer")
    data_line.connect(space)
    done = data_line.do(space)
    return {
        "shards": data_line.shards(space, "shard"),
        "tokenizer": str(data_line.outputs(space, "train_tokenizer") / "tokenizer"),
        "shard_seconds": done["shard"]["seconds"],
    }


def ours(item: dict[str, Any]) -> dict[str, Any]:
    """The tokenize step from nothing, in a fresh Ray."""
    work = Path(item["work"])
    for old in [work / "units" / "tokens", *(work / "steps").glob("tokenize-*")]:
        shutil.rmtree(old, ignore_errors=True)
    space = data_line.workspace(work, Path(item["corpus"]), Path(item["cache"]), "tokenize")
    ray_seconds = data_line.connect(space)
    done = data_line.do(space)["tokenize"]
    found = {
        name: sum(done["metrics"][f"{split}_{name}"] for split in ("train", "heldout"))
        for name in ("tokens", "documents")
    }
    return found | {
        "seconds": done["seconds"],
        "ray_seconds": ray_seconds,
        "fallback_shards": done["metrics"]["fallback_shards"],
    }


def gigatoken_alone(item: dict[str, Any]) -> dict[str, Any]:
    """gigatoken's own Parquet reader and thread pool, one shard after another, ids and lengths to flat files."""
    import gigatoken
    import numpy as np

    out = _emptied(item)
    began, tokens = time.perf_counter(), 0
    tokenizer = gigatoken.Tokenizer.from_json((Path(item["tokenizer"]) / "tokenizer.json").read_text("utf-8"))
    for index, shard in enumerate(item["shards"]):
        rows = tokenizer.encode_files(gigatoken.ParquetFileSource([shard["path"]], "text"), parallel=True).layout
        offsets = np.asarray(rows.offsets.data)
        ids = np.asarray(rows.content.data)[offsets[0] : offsets[-1]].astype(np.uint16)
        ids.tofile(out / f"{index}.ids")
        np.diff(offsets).tofile(out / f"{index}.lengths")
        tokens += len(ids)
    return {"seconds": time.perf_counter() - began, "tokens": tokens}


def datasets_map(item: dict[str, Any]) -> dict[str, Any]:
    """`load_dataset` of a slice of the shards and `map` in two processes; the result is in the cache on disk."""
    import datasets
    from tokenizers import Tokenizer

    out = _emptied(item)
    sliced = str(_slice(item, out / "slice.parquet"))
    tokenizer = Tokenizer.from_file(str(Path(item["tokenizer"]) / "tokenizer.json"))

    def encode(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        return {"tokens": [row.ids for row in tokenizer.encode_batch_fast(batch["text"], add_special_tokens=False)]}

    began = time.perf_counter()
    text = datasets.load_dataset("parquet", data_files=sliced, split="train", cache_dir=str(out / "cache"))
    loaded = time.perf_counter()
    features = datasets.Features({"id": datasets.Value("string"), "tokens": datasets.List(datasets.Value("uint16"))})
    text.map(
        encode,
        batched=True,
        num_proc=2,
        remove_columns=["text", "source"],
        features=features,
        load_from_cache_file=False,
    )
    ended = time.perf_counter()
    return {
        "seconds": ended - began,
        "load_seconds": loaded - began,
        "bytes": sum(map(len, map(str.encode, text["text"]))),
    }


def _slice(item: dict[str, Any], path: Path) -> Path:
    """The first `slice_bytes` of text of the largest shards, as one Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables, filled = [], 0
    for shard in sorted(item["shards"], key=lambda shard: -shard["bytes"]):
        if filled < item["slice_bytes"]:
            tables.append(pq.read_table(shard["path"]))
            filled += shard["bytes"]
    table = pa.concat_tables(tables)
    pq.write_table(table.slice(0, int(len(table) * min(1.0, item["slice_bytes"] / filled))), path)
    return path


def _emptied(item: dict[str, Any]) -> Path:
    """The folder that contenders write to, empty."""
    out = Path(item["out"])
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    return out
