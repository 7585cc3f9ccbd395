"""Checkpoints: how long training stands still for one, beside DeepSpeed's own save, and what the writing costs the steps meanwhile.

The one idea: two real ranks train a model whose state is large enough to matter, each contender in fresh processes:
`ours` goes on while its files are written, `deepspeed` calls `save_checkpoint` as its documentation does, which neither
flushes to the disk nor hashes, and `waiting` is ours when it waits until the checkpoint is published.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from benchmarks import contender
from benchmarks.report import Figure, Options, median, number, say

# About 60 M parameters: 240 MB of weights, 720 MB with what AdamW knows of them.
SHAPE = {"n_positions": 64, "n_embd": 640, "n_layer": 10, "n_head": 10, "vocab_size": 16384, "eot_token_id": 16383}
SMALL_SHAPE = SHAPE | {"n_embd": 80, "n_layer": 2, "vocab_size": 512, "eot_token_id": 511}
TRAINING = {"global_batch_size": 4, "sequence_length": 64, "learning_rate": 1e-3, "zero_stage": 2}
WARM_UP, EVERY, SAVES = 3, 12, 4  # steps before anything counts, steps from one checkpoint to the next, checkpoints
GOAL = 0.10  # of the time of a blocking save
RANKS = 2


def run(options: Options) -> list[Figure]:
    """Measure all contenders; figures in ms."""
    job = _job(options)
    found = {
        name: contender.run_ranks(f"benchmarks.checkpoint:{name}", _fresh(job, options, name), ranks=RANKS, threads=1)[
            0
        ]
        for name in ("deepspeed", "ours", "waiting")
    }
    for name, answer in found.items():
        say(f"  {name:<10} stood still " + ", ".join(number(1e3 * each) for each in answer["stood_still"]) + " ms")
    ours, others = found["ours"], {name: median(found[name]["stood_still"][1:]) for name in ("deepspeed", "waiting")}
    megabytes = found["waiting"]["megabytes"]
    what = f"training stands still at a checkpoint of {megabytes:,.0f} MB, 2 ranks, ZeRO-2"
    beside = {"deepspeed": "DeepSpeed's save_checkpoint", "waiting": "ours, waiting until it is published"}
    figures = [_figure(what, median(ours["stood_still"][1:]), beside[name], others[name]) for name in others]
    first = ours["stood_still"][0]
    figures.append(
        _figure("the same, the first of a run (fresh memory)", first, beside["deepspeed"], others["deepspeed"])
    )
    busy, idle = median(ours["busy"]), median(ours["idle"])
    figures.append(Figure("a step while a checkpoint is written", "ms", 1e3 * busy, "a step otherwise", 1e3 * idle))
    each = len(ours["busy"]) / SAVES
    lost = 1e3 * each * (busy - idle)
    figures.append(
        Figure(f"lost to a checkpoint in all, {each:.1f} slower steps", "ms", 1e3 * median(ours["stood_still"][1:]) + lost,
               beside["deepspeed"], 1e3 * others["deepspeed"])
    )  # fmt: skip
    return figures


def _figure(what: str, ours: float, beside: str, other: float) -> Figure:
    return Figure(what, "ms", 1e3 * ours, beside, 1e3 * other, f"<= {GOAL:g} x", ours <= GOAL * other)


def _job(options: Options) -> dict[str, Any]:
    """A rank's job over random tokens; its folders are still to be set."""
    shape, data = SMALL_SHAPE if options.small else SHAPE, options.folder / "tokens"
    tokens = {"folder": str(data), "tokens": 200_000, **shape}
    contender.run("benchmarks.train_contenders:write_tokens", tokens, threads=1)
    return {
        "model": shape, "train": TRAINING | {"max_steps": WARM_UP + SAVES * EVERY}, "objective": "causal_lm",
        "data": {"manifest": str(data / "train.json"), "root": str(data)}, "tokenizer": "", "micro_batch_size": 2,
        "threads": 1, "device": options.device, "keep_checkpoints": 1, "peak_flops": 1e12,
    }  # fmt: skip


def _fresh(job: dict[str, Any], options: Options, name: str) -> dict[str, Any]:
    """The job in folders of its own."""
    folder = options.folder / name
    (folder / "checkpoints").mkdir(parents=True)
    return job | {
        "attempt": str(folder),
        "outputs": str(folder / "outputs"),
        "checkpoints": str(folder / "checkpoints"),
    }


def _start(job: dict[str, Any]) -> Any:
    """This rank's run of the job, after the steps that warm it up."""
    import torch

    from model.job import RankJob
    from model.rank import Run
    from model.world import join

    parsed = RankJob.parse(job)
    torch.set_num_threads(parsed.threads)
    running = Run(parsed, join(parsed.device))
    running.steps(lambda: running.step == WARM_UP)
    return running


def ours(job: dict[str, Any]) -> dict[str, Any]:
    """Train on while checkpoints are written: seconds stood still for each, and of the steps while one was written and others."""
    running = _start(job)
    load, ends, writing = running.load, [], []

    def noted(step: int) -> Any:
        ends.append(time.perf_counter())  # a step begins with its data
        writing.append(running.saver.busy)
        return load(step)

    running.load = noted
    for number_of_save in range(SAVES):
        running.begin_save()
        running.steps(lambda end=WARM_UP + (number_of_save + 1) * EVERY: running.step == end)
        running.saver.finish()
        ends.append(time.perf_counter())
        writing.append(False)
    _end(running)
    return _sorted(ends, writing) | {"stood_still": running.saver.stood_still}


def _sorted(ends: list[float], writing: list[bool]) -> dict[str, list[float]]:
    """Seconds of steps by whether a checkpoint was being written when they began; EVERY steps follow one another each time."""
    seconds: dict[str, list[float]] = {"busy": [], "idle": []}
    for index in range(len(ends) - 1):
        if index % (EVERY + 1) < EVERY - 1:  # after the last step of a turn comes the waiting
            seconds["busy" if writing[index] else "idle"].append(ends[index + 1] - ends[index])
    return seconds


def deepspeed(job: dict[str, Any]) -> dict[str, Any]:
    """Save with DeepSpeed's own call between two steps: seconds that it takes."""
    from model import durable

    running, seconds = _start(job), []
    for _ in range(SAVES):
        folder = Path(job["attempt"], f"deepspeed-{running.step}")
        if running.world.is_first:
            folder.mkdir()
        running.world.barrier()
        began = time.perf_counter()
        running.engine.save_checkpoint(str(folder))
        seconds.append(time.perf_counter() - began)
        if running.world.is_first:
            durable.remove_tree(folder)
        _one_step(running)
    _end(running)
    return {"stood_still": seconds}


def waiting(job: dict[str, Any]) -> dict[str, Any]:
    """Save and wait until the checkpoint is published: seconds that it takes, and its size."""
    running, seconds = _start(job), []
    for _ in range(SAVES):
        began = time.perf_counter()
        running.save()
        seconds.append(time.perf_counter() - began)
        _one_step(running)
    size = sum(path.stat().st_size for path in running.shelf.newest.folder.rglob("*") if path.is_file())
    _end(running)
    return {"stood_still": seconds, "megabytes": size / 1e6}


def _one_step(running: Any) -> None:
    end = running.step + 1
    running.steps(lambda: running.step == end)


def _end(running: Any) -> None:
    """Leave together: a rank whose peer is gone ends with a crash."""
    import torch.distributed

    running.world.barrier()
    torch.distributed.destroy_process_group()
