"""A gang is all of its ranks or none: placed together, torchrun's environment, ended when one is lost."""

from __future__ import annotations

import time
from typing import Any

import pytest

from cluster import gang

pytestmark = pytest.mark.usefixtures("local_ray")


def run(function: str, job: dict[str, Any], ranks: int) -> list[Any]:
    with gang.Gang(f"tests.cluster.jobs:{function}", job, ranks=ranks, threads=1) as running:
        while not running.wait(0.5):
            pass
        return running.results()


def test_ranks_get_the_environment_that_torchrun_gives() -> None:
    first, second = run("environment", {}, 2)
    assert (first["RANK"], second["RANK"], first["WORLD_SIZE"], second["LOCAL_RANK"]) == ("0", "1", "2", "1")
    assert first["MASTER_PORT"] == second["MASTER_PORT"] and first["OMP_NUM_THREADS"] == "1"


def test_ranks_can_talk() -> None:
    assert run("all_reduce", {"plus": 10}, 2) == [21.0, 21.0]


def test_a_killed_rank_ends_the_gang_and_is_named() -> None:
    started = time.monotonic()
    with pytest.raises(gang.RankDied, match="rank 1 died"):
        run("one_rank_dies", {}, 2)
    assert time.monotonic() - started < 60


def test_a_death_that_the_peer_noticed_first_is_told_as_the_death_it_is() -> None:
    with pytest.raises(gang.RankDied, match="rank 1 died"):
        run("one_rank_dies_after_its_peer_noticed", {}, 2)


def test_a_ranks_own_error_ends_the_gang_and_arrives_as_itself() -> None:
    with pytest.raises(ValueError, match="shard 7 is damaged"):
        run("one_rank_raises", {}, 2)


def test_a_gang_that_does_not_fit_says_what_to_lower() -> None:
    with pytest.raises(TimeoutError, match=r"no room for 64 ranks .* lower execution.ranks"):
        with gang.Gang("tests.cluster.jobs:environment", {}, ranks=64, threads=1, ready_seconds=1):
            pass
