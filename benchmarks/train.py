"""Training throughput: our loop beside a bare PyTorch loop around the same model and beside Hugging Face's Trainer.

The one idea: contenders take turns, each in a fresh process, and each turn begins with another one, because a
machine is never quiet; what is compared are medians of steps. On the CPU it is the default recipe's model in fp32: one rank
with all threads, then ZeRO 1, 2 and 3 on two ranks that share the same threads. With `--device cuda` it is GPT-2 small's
shape in bf16 with MFU against a matrix product measured in the same run, and needs neither Ray nor MLflow.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import contender
from benchmarks.report import Figure, Options, at_least, median, number, say

SHAPES: dict[str, dict[str, Any]] = {
    "cpu": {"n_positions": 128, "n_embd": 192, "n_layer": 3, "n_head": 6, "vocab_size": 4096, "eot_token_id": 4095},
    "cuda": {
        "n_positions": 1024,
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
        "vocab_size": 50257,
        "eot_token_id": 50256,
    },
}
TRAINING: dict[str, dict[str, Any]] = {
    "cpu": {"global_batch_size": 32, "sequence_length": 128, "precision": "fp32", "compile": False},
    "cuda": {"global_batch_size": 64, "sequence_length": 1024, "precision": "bf16", "compile": True},
}
ALONE = {
    "cpu": 0,
    "cuda": 2,
}  # the ZeRO stage of one rank: it has nothing to share; bf16 has its master weights from ZeRO
STEPS, SMALL_STEPS = {"cpu": 20, "cuda": 40}, 6
TURNS, SMALL_TURNS = {"cpu": 5, "cuda": 2}, 1
OURS, BARE, TRAINER = "ours", "bare", "hugging_face"
BESIDE = {BARE: "bare PyTorch loop, same model", TRAINER: "Hugging Face Trainer, GPT2LMHeadModel"}
GOALS = {BARE: 0.95, TRAINER: 1.0}


def run(options: Options) -> list[Figure]:
    """Measure all contenders on `options.device`; figures in tokens/s."""
    job = _job(options)
    names = [OURS, BARE, *([TRAINER] if _trainer_is_there() else [])]
    square = {"device": options.device, "threads": options.threads}
    peak = contender.run("benchmarks.train_contenders:matmul_peak", square, threads=options.threads)
    steps = job["train"]["max_steps"]
    say(f"matrix products reach {number(peak / 1e12)} TFLOP/s; {steps} steps of {_tokens(job):,} tokens a turn")
    seconds, flops = _measured(job, names, SMALL_TURNS if options.small else TURNS[options.device], options)
    speeds = {name: _tokens(job) / median(found) for name, found in seconds.items()}
    where = "GPU" if options.device == "cuda" else f"{options.threads} threads"
    what = f"training, 1 rank, {where}, {job['train']['precision']}"
    figures = [at_least(what, "tokens/s", speeds[OURS], BESIDE[name], speeds[name], GOALS[name]) for name in names[1:]]
    ours, bare = (100 * speeds[name] * flops / peak for name in (OURS, BARE))
    figures.append(Figure(f"{what}: MFU", "%", ours, "of the bare loop", bare))
    return figures + (list(_zero(job, options, speeds[OURS])) if options.device == "cpu" else [])


def _trainer_is_there() -> bool:
    """Whether transformers and accelerate are installed, and a line about it if not."""
    missing = [name for name in ("transformers", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        say(
            f"no figure for Hugging Face's Trainer: {', '.join(missing)} is not installed here (pip install accelerate)"
        )
    return not missing


def _job(options: Options) -> dict[str, Any]:
    """A rank's job over shards that are made here; `attempt` and the ZeRO stage are still to be set for each run."""
    shape, device = SHAPES[options.device], options.device
    data = options.folder / "tokens"
    contender.run(
        "benchmarks.train_contenders:write_tokens", {"folder": str(data), "tokens": 4_000_000, **shape}, threads=1
    )
    train = {
        "max_steps": SMALL_STEPS if options.small else STEPS[device],
        "learning_rate": 1e-3,
        "warmup_steps": 2,
        "zero_stage": 2,
    }
    return {
        "model": shape, "train": train | TRAINING[device], "objective": "causal_lm",
        "data": {"manifest": str(data / "train.json"), "root": str(data)}, "tokenizer": "", "micro_batch_size": 32,
        "threads": options.threads, "device": device,
    }  # fmt: skip


def _tokens(job: dict[str, Any]) -> int:
    return job["train"]["global_batch_size"] * job["train"]["sequence_length"]


def _fresh(job: dict[str, Any], folder: Path, zero_stage: int, threads: int) -> dict[str, Any]:
    """The job in folders of its own, so that nothing is resumed."""
    folder = folder / f"run-{len(list(folder.iterdir()))}"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "outputs").mkdir()
    places = {"attempt": str(folder), "outputs": str(folder / "outputs"), "checkpoints": str(folder / "checkpoints")}
    return job | places | {"threads": threads, "train": job["train"] | {"zero_stage": zero_stage}}


def _turns(count: int, names: list[str]) -> Iterator[str]:
    """The names `count` times over, each time beginning with another one."""
    for turn in range(count):
        first = turn % len(names)
        yield from names[first:] + names[:first]


def _measured(
    job: dict[str, Any], names: list[str], turns: int, options: Options
) -> tuple[dict[str, list[float]], float]:
    """Seconds of each step by contender, all turns together, and the FLOPs of a token."""
    seconds: dict[str, list[float]] = {name: [] for name in names}
    losses: dict[str, float] = {}
    flops = 0.0
    for name in _turns(turns, names):
        fresh = _fresh(job, options.folder, ALONE[options.device], options.threads)
        answer = contender.run(f"benchmarks.train_contenders:{name}", fresh, threads=options.threads)
        seconds[name] += answer["seconds"]
        losses[name] = answer.get("loss", 0.0)
        flops = answer.get("flops_per_token", flops)
        say(f"  {name:<13} {number(1e3 * median(answer['seconds']))} ms a step")
    say(f"last loss: ours {losses[OURS]:.4f}, the bare loop {losses[BARE]:.4f}")
    return seconds, flops


def _zero(job: dict[str, Any], options: Options, alone: float) -> Iterator[Figure]:
    """ZeRO-2 on one rank, and ZeRO 1, 2 and 3 on two of one thread each, in turn, beside one rank that shares nothing."""
    seconds: dict[tuple[int, int], list[float]] = {(2, 1): [], (1, 2): [], (2, 2): [], (3, 2): []}
    for _ in range(1 if options.small else 2):
        for (stage, ranks), found in seconds.items():
            threads = options.threads // ranks
            fresh = _fresh(job, options.folder, stage, threads)
            answers = contender.run_ranks("benchmarks.train_contenders:ours", fresh, ranks=ranks, threads=threads)
            found += answers[0]["seconds"]
    for (stage, ranks), found in seconds.items():
        what = f"training, ZeRO-{stage}, {ranks} ranks of {options.threads // ranks} thread(s)"
        beside = f"1 rank, {options.threads} threads, ZeRO-{ALONE['cpu']}"
        yield Figure(what, "tokens/s", _tokens(job) / median(found), beside, alone)
