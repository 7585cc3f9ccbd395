"""Small real training jobs for the tests: data, job descriptions, and their ranks under torchrun."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from model import durable
from model.examples import write_examples
from model.token_shards import ShardMetadata, flatten, token_dtype, write_token_shard
from tests.model.tiny import write_tokenizer

STEPS = 8
MIDDLE = 4  # the step of the checkpoint that runs are resumed from


class Jobs:
    """A folder of data, and of training jobs that read it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tokenizer = write_tokenizer(folder / "tokenizer")
        self.vocab_size = len(durable.read_json(self.tokenizer / "tokenizer.json")["model"]["vocab"])
        self._write_stream()
        self._write_examples()

    def _write_stream(self) -> None:
        """Three shards of counting sequences: something that a model learns in a few steps."""
        generator, units = np.random.default_rng(0), []
        for index in range(3):
            documents = []
            for _ in range(40):
                counting = generator.integers(1, 20) + np.arange(generator.integers(5, 300))
                documents.append([*(counting % (self.vocab_size - 1) + 1), 0])
            tokens, offsets = flatten(documents, token_dtype(self.vocab_size))
            path = self.folder / f"{index}.arrow"
            ids = [f"{number:032x}" for number in range(len(documents))]
            write_token_shard(path, tokens, offsets, ids, ShardMetadata("t", self.vocab_size, 0, "x"))
            facts = {"sha256": durable.sha256(path), "size": path.stat().st_size, "bytes": len(tokens)}
            unit = {"path": path.name, "documents": len(documents), "tokens": len(tokens), "corpus": "abc"[index]}
            units.append(unit | facts)
        manifest = {"schema": 1, "kind": "token_shards", "tokenizer": "t", "vocab_size": self.vocab_size, "eot": 0}
        durable.write_json(self.folder / "train.json", manifest | {"units": units})

    def _write_examples(self) -> None:
        """Examples of two classes that differ in which half of the vocabulary they use."""
        generator = np.random.default_rng(1)
        labels = generator.integers(0, 2, 64)
        tokens = [1 + label * 100 + generator.integers(0, 100, generator.integers(2, 30)) for label in labels]
        ids = [str(index) for index in range(64)]
        facts: dict[str, Any] = {"tokenizer": "t", "vocab_size": self.vocab_size, "eot": 0}
        write_examples(self.folder / "examples.arrow", tokens, ids, labels=labels.tolist(), **facts)
        masks = [np.arange(len(row)) >= len(row) // 2 for row in tokens]  # the second half of each answers the first
        write_examples(self.folder / "answers.arrow", tokens, ids, loss_masks=masks, **facts)

    def job(
        self, name: str, *, train: dict[str, Any] | None = None, model: dict[str, Any] | None = None, **job: Any
    ) -> dict[str, Any]:
        """A job named `name` with dropout, in folders of its own; the arguments change its fields."""
        home = self.folder / name
        (home / "attempts" / "a").mkdir(parents=True)
        (home / "checkpoints").mkdir()
        shape: dict[str, Any] = {
            "n_positions": 48, "n_embd": 30, "n_layer": 2, "n_head": 3, "n_inner": 71, "embd_pdrop": 0.1,
            "resid_pdrop": 0.1, "vocab_size": self.vocab_size, "eot_token_id": 0,
        }  # fmt: skip
        recipe: dict[str, Any] = {
            "max_steps": STEPS, "global_batch_size": 8, "sequence_length": 32, "learning_rate": 1e-2, "warmup_steps": 2,
        }  # fmt: skip
        return {
            "model": shape | (model or {}),
            "train": recipe | (train or {}),
            "objective": "causal_lm",
            "data": {"manifest": str(self.folder / "train.json"), "root": str(self.folder)},
            "tokenizer": str(self.tokenizer),
            "attempt": str(home / "attempts" / "a"),
            "outputs": str(home / "attempts" / "a" / "outputs"),
            "checkpoints": str(home / "checkpoints"),
            "micro_batch_size": 2,
            "checkpoint_every": MIDDLE,
            "keep_checkpoints": 9,
        } | job

    def classification(self, name: str, *, train: dict[str, Any] | None = None, **job: Any) -> dict[str, Any]:
        """A job that fine-tunes a classifier."""
        model = {"num_labels": 2, "labels": ["no", "yes"], "head_pdrop": 0.1}
        fields = {"objective": "classification", "data": {"examples": str(self.folder / "examples.arrow")}}
        return self.job(name, train=train, model=model, **(fields | job))

    def answers(self, name: str, **job: Any) -> dict[str, Any]:
        """A job that learns the second half of each example from the first."""
        return self.job(name, **({"data": {"examples": str(self.folder / "answers.arrow")}} | job))

    def continuation(self, name: str, source: dict[str, Any], step: int, **job: Any) -> dict[str, Any]:
        """The job `source` as it stood after `step`: its checkpoint there is all that the new one finds."""
        fields = {
            key: value
            for key, value in source.items()
            if key not in ("attempt", "outputs", "checkpoints", "train", "model")
        }
        new = self.job(name, train=source["train"], model=source["model"], **(fields | job))
        checkpoint = f"step-{step:06d}"
        shutil.copytree(Path(source["checkpoints"], checkpoint), Path(new["checkpoints"], checkpoint))
        return new


def start(
    jobs: list[dict[str, Any]], ranks: int, module: str = "model.train", kinds: list[str] | None = None
) -> subprocess.Popen[str]:
    """Start the ranks of `jobs`, which they run one after another, under torchrun (one rank: without).

    Another `module` than the product's own is given a kind before each job.
    """
    files = []
    for job in jobs:
        path = Path(job["attempt"], "job.json")
        path.write_text(json.dumps({"device": "cpu"} | job))
        files.append(str(path))
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"] if ranks > 1 else []
    arguments = [word for pair in zip(kinds, files, strict=True) for word in pair] if kinds else files
    command = [sys.executable, *launcher, "-m", module, *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> tuple[list[dict[str, Any]], str]:
    """What rank 0 returned for each job, and the log of all ranks. AssertionError with the log if a rank failed."""
    out, log = process.communicate(timeout=600)
    assert process.returncode == 0, log[-5000:]
    return [json.loads(line) for line in out.splitlines() if line.startswith("{")], log


def metrics(job: dict[str, Any]) -> list[dict[str, float]]:
    """The lines of a finished job's metrics file."""
    return [json.loads(line) for line in Path(job["outputs"], "metrics.jsonl").read_text().splitlines()]


def weights(job: dict[str, Any]) -> str:
    """SHA-256 of a finished job's exported weights."""
    return durable.sha256(Path(job["outputs"], "export", "model.safetensors"))
