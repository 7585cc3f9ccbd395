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


def test_only_what_is_asked_about_goes_through_the_output_layer() -> None:
    def flops(objective: str) -> float:
        made = override(recipes.bert(), {"pretrain.objective": objective, "register_as.base_gates": "[]"})
        return float(dry_run.describe(made, Execution())["pretrain"]["flops_per_token"])

    output_layer = 6 * 4096 * 128
    assert flops("masked_lm") - flops("next_sentence") == pytest.approx(0.15 * output_layer)
    assert flops("masked_lm_next_sentence") == flops("masked_lm")
    gpt2 = dry_run.describe(recipes.gpt2_124m(), Execution())["pretrain"]
    assert gpt2["flops_per_token"] == 6 * (124_439_808 - 1024 * 768) + 12 * 12 * 768 * 1024  # all are asked about


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
