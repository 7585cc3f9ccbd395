"""What pretrain and finetune share: run the ranks of one job, show its progress, stop it when asked.

The one idea: a training step is one JSON job for `model.train:run_rank`. The driver only watches: it reads the
progress file that rank 0 appends to, and asks for a stop by creating a file that rank 0 looks for.
"""

from __future__ import annotations

import contextlib
import json
import logging
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from model import durable
from pipelines.engine.step import Attempt, Damaged
from pipelines.tokenizer_files import tokenizer_facts

_STARTS = 3  # of the ranks, within one run of the step
log = logging.getLogger(__name__)


class Interrupted(RuntimeError):
    """The step was asked to stop (SIGTERM or Ctrl-C); its checkpoint is published and the next run continues."""


def vocabulary(tokenizer: Path) -> dict[str, int]:
    """{"vocab_size", "eot_token_id"} of a tokenizer directory, as a ModelConfig wants them."""
    facts = tokenizer_facts(tokenizer)
    return {"vocab_size": facts.vocab_size, "eot_token_id": facts.eot}


def train(attempt: Attempt, job: dict[str, Any]) -> dict[str, Any]:
    """Run `job` (objective, data, model, train, init, tokenizer) on the execution's ranks; returns its metrics.

    Interrupted after a stop was asked for; RankDied or the job's own error when it failed.
    """
    from cluster import services

    execution = attempt.execution
    services.connect(execution["ray_address"], execution["cpus"])
    job = job | {
        "attempt": str(attempt.scratch),
        "outputs": str(attempt.outputs),
        "checkpoints": str(attempt.checkpoints),
        "micro_batch_size": execution["micro_batch_size"],
        "threads": execution["threads"],
        "device": execution["device"],
        "permanent": str(attempt.folder / "permanent"),
        "permanent_every": execution["permanent_every"],
        "checkpoint_seconds": execution["checkpoint_seconds"],
        "checkpoint_every": execution["checkpoint_every"],
        "keep_checkpoints": execution["keep_checkpoints"],
        "peak_flops": execution["peak_flops"],
        "verify": True,
    }
    durable.write_json(attempt.scratch / "job.json", job)  # to run it again by hand: torchrun -m model.train job.json
    with _stop_on_signal(attempt.scratch / "stop"):
        result = _restarted(attempt, job)
    if result["stopped"]:
        raise Interrupted(
            f"{attempt.name} stopped after step {result['steps']} of {job['train']['max_steps']}; run again to go on"
        )
    attempt.numerics.update(result.pop("numerics"))
    return {name: value for name, value in result.items() if value is not None}


def _restarted(attempt: Attempt, job: dict[str, Any]) -> dict[str, Any]:
    """Rank 0's result. When a rank dies the gang starts again from the last published checkpoint, a few times.

    Damaged if a token shard is not what its manifest says.
    """
    from cluster import gang
    from model.token_shards import DamagedShard

    for start in range(1, _STARTS + 1):
        try:
            return _run_gang(attempt, job)
        except gang.RankDied as death:
            if start == _STARTS:
                raise
            log.warning("%s; starting the ranks again (%d of %d)", death, start + 1, _STARTS)
        except DamagedShard as damage:
            raise Damaged(attempt.inputs["tokens"].record.step, str(damage), "is missing or damaged") from damage
    raise AssertionError("unreachable")


def _run_gang(attempt: Attempt, job: dict[str, Any]) -> dict[str, Any]:
    from cluster import gang

    ranks, threads, gpu = (
        attempt.execution["ranks"],
        attempt.execution["threads"],
        attempt.execution["device"] == "cuda",
    )
    with gang.Gang("model.train:run_rank", job, ranks=ranks, threads=threads, gpu=gpu) as running:
        while not running.wait(0.5):
            _show(attempt, job["train"]["max_steps"])
        return running.results()[0]


@contextlib.contextmanager
def _stop_on_signal(stop: Path) -> Iterator[None]:
    """While inside, SIGTERM and SIGINT ask the ranks to save and stop, instead of ending this process; a second one ends it."""

    def ask(number: int, frame: Any) -> None:
        if stop.exists():
            raise KeyboardInterrupt(f"a second signal {number}: the ranks are not waited for")
        stop.touch()

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _show(attempt: Attempt, steps: int) -> None:
    """Report the newest line of the ranks' progress and metrics files."""
    progress, metrics = _last_line(attempt.scratch / "progress.jsonl"), _last_line(attempt.scratch / "metrics.jsonl")
    if progress and metrics:
        attempt.progress(
            progress["step"],
            steps,
            "steps",
            loss=round(metrics["loss"], 3),
            tokens_per_second=round(progress["tokens_per_second"]),
            MFU=f"{progress['mfu']:.0%}",
        )


def _last_line(path: Path) -> dict[str, Any] | None:
    """The last complete line of a growing JSONL file."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - 4096))
            lines = file.read().split(b"\n")[:-1]
    except FileNotFoundError:
        return None
    return json.loads(lines[-1]) if lines else None
