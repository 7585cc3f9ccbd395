"""Training runs that several tests look at: two real ranks over gloo, started once for all of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.model.training_runs import Jobs, finish, start


@dataclass(frozen=True)
class Trained:
    """Jobs that two ranks ran to the end, undisturbed, and what rank 0 returned for each."""

    jobs: Jobs
    job: dict[str, dict[str, Any]]
    result: dict[str, dict[str, Any]]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """`zero0` .. `zero3`, `bf16`, and from the export of `zero2` the classifier `finetuned` and `answers`, with loss masks."""
    jobs = Jobs(tmp_path_factory.mktemp("trained"))
    job = {f"zero{stage}": jobs.job(f"zero{stage}", train={"zero_stage": stage}) for stage in range(4)}
    job["bf16"] = jobs.job("bf16", train={"zero_stage": 2, "precision": "bf16"})
    base = str(Path(job["zero2"]["outputs"], "export"))
    job["finetuned"] = jobs.classification("finetuned", init=base, train={"max_steps": 24, "zero_stage": 1})
    job["answers"] = jobs.answers("answers", init=base, train={"zero_stage": 2})
    results, _ = finish(start(list(job.values()), ranks=2))
    return Trained(jobs, job, dict(zip(job, results, strict=True)))
