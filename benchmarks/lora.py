"""LoRA beside full fine-tuning: peak memory and the time of a step, and how many parameters are trained.

The one idea: the same causal model, the same tokens and one rank; only `tuning` differs. Each runs once in a process of its
own, whose peak resident set is the kernel's own mark, and a step is the median of all but the first.
"""

from __future__ import annotations

import json
import resource
import time
from pathlib import Path
from typing import Any

from benchmarks import contender
from benchmarks.report import Figure, Options, median, number, say

# About 60 M parameters, as in the benchmark of checkpoints: 720 MB of gradients and moments that LoRA does not have.
SHAPE = {"n_positions": 128, "n_embd": 640, "n_layer": 10, "n_head": 10, "vocab_size": 16384, "eot_token_id": 16383}
SMALL_SHAPE = SHAPE | {"n_embd": 80, "n_layer": 2, "vocab_size": 512, "eot_token_id": 511}
TRAINING = {"global_batch_size": 4, "sequence_length": 128, "learning_rate": 1e-4, "zero_stage": 2}
STEPS, SMALL_STEPS = 12, 3
KINDS: dict[str, dict[str, Any]] = {"full": {"tune": "all"}, "lora": {"tune": "lora", "lora": {"rank": 8, "alpha": 16}}}


def run(options: Options) -> list[Figure]:
    """Measure both; memory in MB, steps in ms."""
    job = _job(options)
    found = {name: _measured(name, tuning, job, options) for name, tuning in KINDS.items()}
    for name, answer in found.items():
        say(
            f"  {name:<5} {answer['trained']:,} of {answer['parameters']:,} parameters trained, "
            f"{number(answer['megabytes'])} MB at most ({number(answer['idle_megabytes'])} before training)"
        )
    ours, full = found["lora"], found["full"]
    share = 100 * ours["trained"] / ours["parameters"]
    beside = "full fine-tuning, same model and data"
    return [
        Figure("LoRA of rank 8: peak memory of a rank", "MB", ours["megabytes"], beside, full["megabytes"]),
        Figure("LoRA of rank 8: a step", "ms", 1e3 * median(ours["seconds"]), beside, 1e3 * median(full["seconds"])),
        Figure("LoRA of rank 8: parameters trained", "%", share, beside, 100.0),
    ]


def _job(options: Options) -> dict[str, Any]:
    """A rank's job over random tokens; its folders and its tuning are still to be set."""
    shape, data = SMALL_SHAPE if options.small else SHAPE, options.folder / "tokens"
    tokens = {"folder": str(data), "tokens": 200_000, **shape}
    contender.run("benchmarks.train_contenders:write_tokens", tokens, threads=1)
    return {
        "model": shape, "train": TRAINING | {"max_steps": SMALL_STEPS if options.small else STEPS},
        "objective": "causal_lm", "data": {"manifest": str(data / "train.json"), "root": str(data)}, "tokenizer": "",
        "micro_batch_size": 4, "threads": options.threads, "device": options.device, "peak_flops": 1e12,
    }  # fmt: skip


def _measured(name: str, tuning: dict[str, Any], job: dict[str, Any], options: Options) -> dict[str, Any]:
    folder = options.folder / name
    (folder / "checkpoints").mkdir(parents=True)
    places = {
        "attempt": str(folder),
        "outputs": str(folder / "outputs"),
        "checkpoints": str(folder / "checkpoints"),
    }
    answer = contender.run("benchmarks.lora:trained", job | places | {"tuning": tuning}, threads=options.threads)
    return dict(answer)


def trained(job: dict[str, Any]) -> dict[str, Any]:
    """Train to the last step, without an export: seconds of each step but the first, and the process's peak in MB."""
    import torch

    from model import tuning
    from model.job import RankJob
    from model.rank import Run
    from model.world import join

    parsed = RankJob.parse(job)
    torch.set_num_threads(parsed.threads)
    world, idle = join(parsed.device), _peak()
    running = Run(parsed, world)
    began = time.perf_counter()
    running.steps(lambda: False)
    lines = [json.loads(line) for line in Path(job["attempt"], "progress.jsonl").read_text().splitlines()]
    tokens = parsed.train.global_batch_size * parsed.train.sequence_length
    count, everything = tuning.counts(running.engine.module)
    return {
        "seconds": [tokens / line["tokens_per_second"] for line in lines][1:],
        "megabytes": _peak(),
        "idle_megabytes": idle,
        "trained": count,
        "parameters": everything,
        "wall": time.perf_counter() - began,
    }


def _peak() -> float:
    """The largest resident set that this process ever had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
