"""Failures and preemptions are counted apart, a point where ranks die three times is named, batches are shared out."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from model.train_config import accumulation_steps
from pipelines.stages.budget import Budget, GaveUp, newest_checkpoint
from pipelines.stages.ranks import micro_batch_size, sizes

LOG = Path("attempts/a/logs/rank-1.log")


@pytest.fixture
def budget(tmp_path: Path) -> Budget:
    (tmp_path / "checkpoints").mkdir()
    return Budget("pretrain", tmp_path, tmp_path / "checkpoints", {"max_failures": 4, "max_preemptions": 2})


def reach(folder: Path, step: int) -> None:
    with (folder / "progress.jsonl").open("a") as file:
        file.write(json.dumps({"step": step}) + "\n")


def die(budget: Budget) -> str:
    return budget.failed(RuntimeError("rank 1 died: killed"), LOG)


def test_the_third_death_at_one_step_names_the_step_the_reason_and_the_log(budget: Budget, tmp_path: Path) -> None:
    reach(tmp_path, 107)
    die(budget)
    reach(tmp_path, 101)  # started again, and died before it came as far
    die(budget)
    with pytest.raises(GaveUp, match=r"pretrain died 3 times after step 107 .*rank 1 died: killed.*read .*rank-1\.log"):
        die(budget)


def test_deaths_of_ranks_that_get_further_each_time_are_no_point_but_use_up_failures(
    budget: Budget, tmp_path: Path
) -> None:
    for step in range(1, 5):
        reach(tmp_path, step)
        assert f"failure {step} of at most 4" == die(budget)
    reach(tmp_path, 5)
    with pytest.raises(GaveUp, match=r"lost ranks 5 times, execution.max_failures=4 .*after step 5"):
        die(budget)


def test_a_checkpoint_published_since_is_progress_too(budget: Budget, tmp_path: Path) -> None:
    reach(tmp_path, 107)
    for step in (100, 103, 104, 105):
        (tmp_path / "checkpoints" / f"step-{step:06d}").mkdir()
        die(budget)
    assert budget.failures == 4
    (tmp_path / "permanent" / "step-000110").mkdir(parents=True)
    assert newest_checkpoint(tmp_path / "checkpoints") == 110, "one that stays for good is one as well"


def test_preemptions_use_up_no_failures(budget: Budget) -> None:
    budget.preempted("a node is gone")
    budget.preempted("a node is gone")
    assert (budget.failures, budget.preemptions) == (0, 2)
    with pytest.raises(GaveUp, match=r"preempted 3 times, execution.max_preemptions=2.*a node is gone"):
        budget.preempted("a node is gone")


def test_what_was_counted_outlives_the_process_that_counted(budget: Budget, tmp_path: Path) -> None:
    """The driver counts the loss of a process that uses Ray, the process those of its ranks; another one goes on from there."""
    limits = {"max_failures": 4, "max_preemptions": 2}
    processes = [Budget("pretrain", tmp_path, tmp_path / "checkpoints", limits) for _ in range(2)]
    reach(tmp_path, 107)
    assert die(processes[0]) == "failure 1 of at most 4"
    assert processes[0].preempted("Ray is gone") == "preemption 1 of at most 2"
    assert die(processes[0]) == "failure 2 of at most 4"
    assert budget.preempted("the process that used Ray is gone") == "preemption 2 of at most 2"
    with pytest.raises(GaveUp, match="died 3 times after step 107"):
        die(processes[1])
    with pytest.raises(GaveUp, match="preempted 3 times"):
        processes[1].preempted("Ray is gone")


def job(global_batch_size: int, micro: int) -> dict[str, Any]:
    return {"train": {"global_batch_size": global_batch_size}, "micro_batch_size": micro}


def test_ranks_are_the_wanted_number_or_smaller_divisors_of_the_batch() -> None:
    attempt: Any = SimpleNamespace(execution={"ranks": 6, "min_ranks": 2})
    assert sizes(attempt, job(12, 4)) == [6, 4, 3, 2]


@pytest.mark.parametrize(("batch", "micro"), [(12, 4), (48, 32), (30, 7), (16, 1)])
def test_every_possible_number_of_ranks_has_a_micro_batch_that_divides(batch: int, micro: int) -> None:
    for ranks in (ranks for ranks in range(1, batch + 1) if batch % ranks == 0):
        size = micro_batch_size(job(batch, micro), ranks)
        assert size <= micro and accumulation_steps(batch, ranks, size) * size * ranks == batch
