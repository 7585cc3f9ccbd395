"""The training loop of one rank, a generator of step reports.

The one idea: `train` does optimizer steps and says what each one was; whoever consumes it looks in between two steps.
Metrics, progress, checkpoints, SIGTERM and the stop at a NaN are such consumers and live in `rank.py`.

Everything that a step depends on beside the weights is a pure function of the step's number: the learning rate, the
samples (`batches.py`) and what dropout drops (`dropout.py`). So a run continues from any step without any other state.

    torchrun --nproc_per_node 2 -m model.train job.json      the ranks of one job, or of several one after another
    python -m model.train job.json                           one rank
"""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from model import durable, objectives
from model.dropout import DropoutKey
from model.train_config import TrainConfig
from model.zero import gradient_norm, set_learning_rate

if TYPE_CHECKING:
    from model.batches import RankBatch
    from model.world import World


@dataclass(frozen=True)
class StepReport:
    """One optimizer step over the global batch, the same on all ranks but for the time."""

    step: int  # optimizer steps done, this one included
    loss: float  # nats per target, over the global batch, before the step
    learning_rate: float
    grad_norm: float  # global L2 norm before clipping
    tokens: int  # input tokens of the global batch, without padding
    seconds: float  # wall time of the step, loading included


def learning_rate(train: TrainConfig, step: int) -> float:
    """The rate of step `step` (from 0): a linear warm-up to the peak, then half a cosine to the minimum.

    Loshchilov and Hutter 2017 (SGDR) without restarts. Warm-up starts above 0, so that no step is wasted.
    """
    if step < train.warmup_steps:
        return train.learning_rate * (step + 1) / train.warmup_steps
    done = (step - train.warmup_steps) / max(1, train.max_steps - train.warmup_steps)
    return (
        train.min_learning_rate + (train.learning_rate - train.min_learning_rate) * (1 + math.cos(math.pi * done)) / 2
    )


def _optimizer_step(
    engine: Any, share: RankBatch, objective: objectives.Objective, train: TrainConfig, step: int, world: World
) -> tuple[float, float]:
    """One optimizer step from a rank's share of the global batch: the global loss and the gradient norm.

    Each micro-batch's loss is a sum. It is divided by the *global* batch's targets, and multiplied by the number
    of ranks because DeepSpeed averages gradients over them: so the gradient is that of the global mean, however
    the targets are spread over ranks and micro-batches.
    """
    total = torch.zeros((), dtype=torch.float64, device=world.device)
    norm = 0.0
    size = engine.train_micro_batch_size_per_gpu()
    micro_batches = list(share.micro_batches(size))
    for number, batch in enumerate(micro_batches, start=1):
        last = number == len(micro_batches)
        key = DropoutKey(train.seed, step, batch.indices)
        loss, _ = objectives.loss(engine, objective, batch.to(world.device), key)
        engine.set_gradient_accumulation_boundary(last)
        engine.backward(loss * (world.size / share.loss_tokens), scale_wrt_gas=False)
        total += loss.detach()
        if last and train.zero_stage == 0:
            norm = gradient_norm(engine)  # its gradients are freed by the step, and nobody else measures them
        engine.step()
    dist.all_reduce(total)
    return float(total) / share.loss_tokens, norm if train.zero_stage == 0 else gradient_norm(engine)


def train(
    engine: Any,
    load: Callable[[int], RankBatch],
    objective: objectives.Objective,
    config: TrainConfig,
    world: World,
    start: int = 0,
) -> Iterator[StepReport]:
    """Run optimizer steps `start` .. max_steps - 1 and yield a report after each. Every rank has to consume it alike.

    `load(step)` gives this rank's share of a step's global batch.
    """
    engine.train()
    for step in range(start, config.max_steps):
        began = time.perf_counter()
        rate = learning_rate(config, step)
        set_learning_rate(engine, rate)
        share = load(step)
        loss, norm = _optimizer_step(engine, share, objective, config, step, world)
        yield StepReport(step + 1, loss, rate, norm, share.real_tokens, time.perf_counter() - began)


def run_rank(job: dict[str, Any]) -> dict[str, Any]:
    """Run one rank of a training job, as `job.RankJob` describes it; what it returns is described at `rank.run`."""
    from model.job import RankJob
    from model.rank import run

    return run(RankJob.parse(job))


def warm_up(item: Any) -> None:
    """Import all that a rank needs before its first step, and nothing more: a process that waits for a job starts it in no time.

    No process group is joined and no device touched. `item` is not looked at but for a job's "device".
    """
    import model.rank  # noqa: F401
    from model.world import import_deepspeed

    import_deepspeed(item.get("device", "cpu") if isinstance(item, dict) else "cpu")


def main(arguments: list[str]) -> None:
    """Run the jobs of some JSON files one after another; rank 0 prints what each returns."""
    import json

    from model.job import RankJob
    from model.world import join, leave

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    jobs = [durable.read_json(Path(argument)) for argument in arguments]
    world = join(RankJob.parse(jobs[0]).device)
    for job in jobs:
        result = run_rank(job)
        if world.is_first:
            print(json.dumps(result), flush=True)
    dist.destroy_process_group()
    leave()


if __name__ == "__main__":
    main(sys.argv[1:])
