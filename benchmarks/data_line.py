"""The data half of the line over a corpus: shard, train_tokenizer and tokenize, as `make run` does them.

The one idea: benchmarks run the real steps through the real engine, with the real Ray, and look at the clock.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from model import durable
from model.config import ModelShape
from pipelines import run
from pipelines.config import PretrainConfig, Recipe, ShardConfig, Source, TokenizerConfig
from pipelines.execution import Execution

VOCABULARY = 16384


def recipe(corpus: Path, shard_bytes: int) -> Recipe:
    """The corpus in shards, a tokenizer of 16,384 tokens learned from the samples; what comes after is never run."""
    samples = (Source(sample="shakespeare", label="shakespeare"), Source(sample="conversations", label="conversations"))
    return Recipe(
        name="benchmark",
        shard=ShardConfig(
            sources=(Source(path=str(corpus), label="corpus"),), shard_bytes=shard_bytes, heldout_fraction=0.002
        ),
        tokenizer=TokenizerConfig(sources=samples, vocab_size=VOCABULARY),
        model=ModelShape(n_positions=64, n_embd=32, n_layer=1, n_head=1),
        pretrain=PretrainConfig(max_steps=1, global_batch_size=2, sequence_length=64, learning_rate=1e-3),
    )


def workspace(work: Path, corpus: Path, cache: Path, last: str, shard_bytes: int = 32 << 20) -> run.Workspace:
    """The steps up to `last` in the work directory `work`."""
    execution = Execution(work=str(work), cache=str(cache))
    return run.until(run.open_workspace(recipe(corpus, shard_bytes), execution, fetch=True), last)


def connect(space: run.Workspace) -> float:
    """Start the local Ray that the steps will use; the seconds until each of its workers had answered a first task."""
    from cluster import apart

    cpus, began = space.settings["cpus"], time.perf_counter()
    apart.connect("local", cpus, space.settings["ray_token"])
    for _ in apart.each("cluster.ray_map:map_units", "builtins:str", range(cpus), in_flight=cpus):
        pass
    return time.perf_counter() - began


def do(space: run.Workspace) -> dict[str, dict[str, Any]]:
    """Do what is not done, by step: its record's `metrics`, and `seconds` of wall time from planning to commit."""
    found = {}
    began = time.perf_counter()
    for outcome in run.run(space, run.unwatched, on_wait=lambda owner: None, on_damage=print):
        seconds, began = time.perf_counter() - began, time.perf_counter()
        found[outcome.record.step] = {"seconds": seconds, "metrics": outcome.record.metrics}
    return found


def outputs(space: run.Workspace, step: str) -> Path:
    """The folder of a finished step's outputs."""
    folder = run.plan(space)[step].folder
    assert folder is not None
    return folder / "outputs"


def shards(space: run.Workspace, step: str) -> list[dict[str, Any]]:
    """The units that a finished step's two manifests list: `path` made absolute, `sha256`, `size` and counts."""
    units = [
        unit
        for split in ("train", "heldout")
        for unit in durable.read_json(outputs(space, step) / f"{split}.json")["units"]
    ]
    return [unit | {"path": str(space.root / unit["path"])} for unit in units]
