"""A recipe on shapes alone: GPT-2 small is planned and sized on any machine."""

from __future__ import annotations

import pytest

from pipelines import dry_run, recipes
from pipelines.execution import Execution
from pipelines.settings import override


def test_gpt2_small_has_the_size_that_it_is_known_for() -> None:
    facts = dry_run.describe(recipes.gpt2_124m(), Execution(ranks=8, micro_batch_size=16))["pretrain"]
    assert facts["parameters"] == 124_439_808
    assert (facts["tokens_per_step"], facts["accumulation_steps"]) == (512 * 1024, 4)
    assert facts["deepspeed"]["zero_optimization"]["stage"] == 2 and facts["deepspeed"]["bf16"]["enabled"]


def test_zero_divides_what_a_rank_holds() -> None:
    held = [
        dry_run.describe(override(recipes.tiny(), {"pretrain.zero_stage": str(stage)}), Execution(ranks=2))["pretrain"][
            "state_bytes_per_rank"
        ]
        for stage in range(4)
    ]
    parameters = dry_run.describe(recipes.tiny(), Execution(ranks=2))["pretrain"]["parameters"]
    assert held == [parameters * 16, parameters * 12, parameters * 10, parameters * 8]


def test_a_batch_that_does_not_divide_is_refused_before_anything_runs() -> None:
    with pytest.raises(ValueError, match="does not divide over 3 ranks"):
        dry_run.describe(recipes.tiny(), Execution(ranks=3))
