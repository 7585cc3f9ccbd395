"""One run on 2, 1, 3, 4 and again 2 ranks: each change converts the checkpoint by itself, and the loss does not notice.

That one rank continues what two began, and two what one began, is in test_train.py; here changes follow each other, as on a cluster that breathes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.model.training_runs import Jobs, finish, metrics, start

STAGES = (pytest.param(1, marks=pytest.mark.thorough), 2, pytest.param(3, marks=pytest.mark.thorough))  # of ZeRO
CHANGES = (1, 3, 4, 2)  # the numbers of ranks after the first 2, each from two steps later
STEPS, EVERY = 12, 2
# Another slicing of the batch sums float32 numbers in another order: 1e-7 relative a sum, grown by AdamW's division by
# tiny second moments in the first steps. A wrong sample, dropout mask or learning rate moves a loss by 1e-2 and more.
TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def chains(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[int, list[list[dict[str, float]]]]:
    """By ZeRO stage that is asked for: the metrics of the run on two ranks, and of its continuation after each change."""
    own: list[Any] = [item for item in request.session.items if item.path == request.path]
    stages = sorted({item.callspec.params["stage"] for item in own})
    jobs = Jobs(tmp_path_factory.mktemp("chains"))
    train = {"global_batch_size": 12, "max_steps": STEPS}
    last = [
        jobs.job(f"zero{stage}", train=train | {"zero_stage": stage}, checkpoint_every=EVERY, micro_batch_size=1)
        for stage in stages
    ]
    finish(start(last, ranks=2))
    chains = {stage: [metrics(job)] for stage, job in zip(stages, last, strict=True)}
    for number, ranks in enumerate(CHANGES, start=1):
        last = [
            jobs.continuation(f"{Path(job['attempt']).parents[1].name}-{ranks}", job, number * EVERY) for job in last
        ]
        results, _ = finish(start(last, ranks=ranks))
        assert [(result["resumed_from"], result["numerics"]["ranks"]) for result in results] == [
            (number * EVERY, ranks)
        ] * len(stages)
        assert [len(result["numerics"]["earlier"]) for result in results] == [number] * len(stages)
        for stage, job in zip(stages, last, strict=True):
            chains[stage].append(metrics(job))
    return chains


@pytest.mark.parametrize("stage", STAGES)
def test_five_worlds_in_a_row_have_the_losses_of_one(
    chains: dict[int, list[list[dict[str, float]]]], stage: int
) -> None:
    undisturbed, *_, last = chains[stage]
    assert [line["step"] for line in last] == list(range(1, STEPS + 1))
    assert [line["tokens"] for line in last] == [line["tokens"] for line in undisturbed]
    assert [line["loss"] for line in last] == pytest.approx([line["loss"] for line in undisturbed], abs=TOLERANCE)
