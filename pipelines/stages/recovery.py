"""Keep the ranks of a training step going, whatever of them is lost.

The one idea: three nested lives. A Ray lasts until its raylet is killed, a room in it until a node is lost or the
number of ranks changes, a start of the gang in the room until a rank dies. Each ends with an exception that names it,
and the next one begins with the last published checkpoint. All of it happens in the process that uses Ray, which may be
lost too: `training.py` begins another one.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

from cluster import services
from cluster.gang import Gang, NodeLost, Preempted, RankDied
from cluster.room import Room
from model import durable
from pipelines.engine.step import Attempt
from pipelines.stages.budget import Budget, last_line
from pipelines.stages.ranks import Growth, found_room, micro_batch_size
from pipelines.stages.stop import STOP, Interrupted, Stop

log = logging.getLogger(__name__)
Told = tuple[str, dict[str, Any]]  # "progress" or "result", and which
Work = Generator[Told, None, dict[str, Any]]  # ends with rank 0's result
STANDBY = "model.train:warm_up"
_STANDBY_AFTER = 5.0  # seconds of training after which standbys are worth their start; shorter steps go without


def supervised(attempt: Attempt, job: dict[str, Any]) -> Iterator[Told]:
    """Run the job, after as many starts as it takes and the execution allows: its progress, and last rank 0's result.

    Interrupted, GaveUp, the job's own error.
    """
    budget = Budget(attempt.name, attempt.scratch, attempt.checkpoints, attempt.execution)
    stop = Stop(attempt.scratch / STOP, attempt.execution["grace_seconds"])
    (attempt.scratch / "logs").mkdir(exist_ok=True)
    while True:
        stop.resume()  # ranks that were lost while they paused for more room, or before this process was, paused for nothing
        try:
            with found_room(attempt, job, stop) as room:
                result = yield from _trained(room, attempt, job, stop, budget)
        except services.RayLost as loss:
            _again(attempt, stop, loss, f"starting Ray and the ranks again ({budget.preempted(loss)})")
            services.reconnect()
        except NodeLost as loss:
            _again(attempt, stop, loss, f"placing the ranks again ({budget.preempted(loss)})")
        else:
            if stop.asked or not result["stopped"]:
                yield "result", result
                return


def _again(attempt: Attempt, stop: Stop, loss: Exception | str, then: str) -> None:
    """Say what is done about a loss; Interrupted if the step was asked to stop anyway."""
    if stop.asked:
        raise Interrupted(f"{attempt.name} lost its ranks while it stopped ({loss}); run again to go on")
    log.warning("%s; %s", loss, then)


def _interrupted_if_asked(attempt: Attempt, stop: Stop) -> None:
    """Interrupted if the step was asked to stop while none of its ranks is at work: there is nothing to save."""
    if stop.asked:
        raise Interrupted(f"{attempt.name} stopped while its ranks were being started; run again to go on")


def _trained(room: Room, attempt: Attempt, job: dict[str, Any], stop: Stop, budget: Budget) -> Work:
    """Rank 0's result in one room; or its result so far, where there is more room now. NodeLost, RayLost, GaveUp."""
    sliced = job | {"micro_batch_size": micro_batch_size(job, room.ranks)}
    how: dict[str, Any] = {
        "standby": STANDBY if attempt.execution["standby"] else None,
        "interface": attempt.execution["network_interface"],
        "logs": attempt.scratch / "logs",
        "look": lambda: _interrupted_if_asked(attempt, stop),
    }
    with Growth(room, attempt, job) as growth, Gang("model.train:run_rank", sliced, room, **how) as gang:
        while True:
            try:
                result = yield from _watched(gang, attempt, job, stop, growth)
                if not result["stopped"] or stop.asked or growth.used:
                    return result
                told = f"a rank was told to go (SIGTERM) and step {result['steps']} was saved"
                _again(attempt, stop, told, f"starting the ranks again ({budget.preempted(told)})")
                gang.restart()
            except Preempted as loss:
                _again(attempt, stop, loss, f"starting the ranks again ({budget.preempted(loss)})")
                gang.restart()
            except RankDied as death:
                _again(attempt, stop, death, "starting the ranks again")
                gang.restart()  # where this is not possible the node is lost, and the death was no failure
                log.warning("that was %s", budget.failed(death, death.log_file))


def _watched(gang: Gang, attempt: Attempt, job: dict[str, Any], stop: Stop, growth: Growth) -> Work:
    """Rank 0's result when all ranks have ended; meanwhile it is shown what they do, and seen to standbys and growth."""
    progress = attempt.scratch / "progress.jsonl"
    before = _size(progress)  # of what earlier starts wrote; times in it are those of another host's clock
    first: float | None = None  # when the ranks' first step since they were started was seen
    try:
        while not gang.wait(0.5):
            stop.check(attempt.name)
            _tell_damage(attempt)
            if _size(progress) > before and (line := last_line(progress)):
                first = first or time.monotonic()
                yield from _shown(attempt, line, job["train"]["max_steps"])
                if time.monotonic() - first > _STANDBY_AFTER:
                    gang.prepare()
            if growth.due():
                stop.pause()
    finally:
        _tell_damage(attempt)
    return gang.results()[0]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _tell_damage(attempt: Attempt) -> None:
    """Warn of the checkpoints that ranks passed over when they began, of each once."""
    for file in sorted(attempt.scratch.glob("damaged-*.json")):
        told = durable.read_json(file)
        log.warning(
            "%s: checkpoint %s is damaged and passed over: %s", attempt.name, told["checkpoint"], told["damage"]
        )
        durable.remove(file)


def _shown(attempt: Attempt, progress: dict[str, Any], steps: int) -> Iterator[Told]:
    """What the newest lines of the ranks' progress and metrics files say."""
    if metrics := last_line(attempt.scratch / "metrics.jsonl"):
        figures = {
            "loss": round(metrics["loss"], 3),
            "tokens_per_second": round(progress["tokens_per_second"]),
            "MFU": f"{progress['mfu']:.0%}",
        }
        yield "progress", {"done": progress["step"], "total": steps, "unit": "steps"} | figures
