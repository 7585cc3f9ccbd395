"""BERT's objectives under the real engine: killed and continued, on one rank and on two, and exported."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from model.inspection import training_batch
from tests.model.masked_runs import CASES, STEPS, Pairs
from tests.model.training_runs import finish, metrics, start, weights


@dataclass(frozen=True)
class Runs:
    """The jobs by name: undisturbed on one rank, on two, continued from the middle; and one that was killed, and where it went on."""

    whole: dict[str, dict[str, Any]]
    split: dict[str, dict[str, Any]]
    resumed: dict[str, dict[str, Any]]
    killed: dict[str, Any]
    killed_at: int


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    return Pairs(tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="module")
def runs(pairs: Pairs) -> Runs:
    """Every case in one process; then all again from their middle, beside two ranks that learn the same."""
    whole = {name: pairs.job(name, name) for name in CASES}
    split = {name: pairs.job(f"split-{name}", name, zero_stage=2) for name in CASES}
    killed = pairs.job("killed", "both")
    victim = start([killed], 1)
    deadline = time.monotonic() + 120
    while not any(Path(killed["checkpoints"]).glob("step-*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    victim.kill()
    victim.communicate()
    assert not Path(killed["outputs"], "export").exists()
    results, _ = finish(start([*whole.values(), killed], 1))
    resumed = {name: pairs.continuation(job, name) for name, job in whole.items()}
    alone, ranks = start(list(resumed.values()), 1), start(list(split.values()), 2)
    finish(alone)
    finish(ranks)
    return Runs(whole, split, resumed, killed, results[-1]["resumed_from"])


def test_a_killed_run_ends_with_identical_bytes(runs: Runs) -> None:
    assert runs.killed_at, "from a checkpoint"
    assert weights(runs.killed) == weights(runs.whole["both"]) and metrics(runs.killed) == metrics(runs.whole["both"])


@pytest.mark.parametrize("name", CASES)
def test_a_run_that_goes_on_from_its_middle_ends_with_identical_bytes(runs: Runs, name: str) -> None:
    assert weights(runs.resumed[name]) == weights(runs.whole[name])
    assert metrics(runs.resumed[name]) == metrics(runs.whole[name])


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_lose_what_one_does(runs: Runs, name: str) -> None:
    ours, theirs = metrics(runs.whole[name]), metrics(runs.split[name])
    assert len(ours) == len(theirs) == STEPS
    for alone, ranks in zip(ours, theirs, strict=True):
        assert (alone["tokens"], alone["learning_rate"]) == (ranks["tokens"], ranks["learning_rate"])
        assert alone["loss"] == pytest.approx(ranks["loss"], rel=1e-4)


def test_a_batch_is_shown_as_the_model_sees_it_with_what_was_hidden(pairs: Pairs) -> None:
    for name in ("masked_lm", "both", "next_sentence", "mixture"):
        rows = training_batch(pairs.job(f"shown-{name}", name) | {"step": 1})
        assert len(rows) == 8 and all(row["origin"][:16] in ("a.arrow document", "b.arrow document") for row in rows)
        for row in rows:
            hidden = [
                at for at, (seen, said) in enumerate(zip(row["tokens"], row["targets"], strict=True)) if seen != said
            ]
            assert all(row["loss_mask"][at] for at in hidden)
        assert any(any(row["loss_mask"]) for row in rows) == (name != "next_sentence")
