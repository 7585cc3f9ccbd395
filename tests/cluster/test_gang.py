"""A gang is all of its ranks or none: placed together, torchrun's environment, ended when one is lost, and started again."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from cluster import gang, interfaces, rank_process
from cluster.room import Room

pytestmark = pytest.mark.usefixtures("local_ray")


def run(function: str, job: dict[str, Any], ranks: int, **how: Any) -> list[Any]:
    with Room(ranks, threads=1) as room, gang.Gang(f"tests.cluster.jobs:{function}", job, room, **how) as running:
        while not running.wait(0.5):
            pass
        return running.results()


def test_ranks_get_the_environment_that_torchrun_gives() -> None:
    first, second = run("environment", {}, 2)
    assert (first["RANK"], second["RANK"], first["WORLD_SIZE"], second["LOCAL_RANK"]) == ("0", "1", "2", "1")
    assert first["MASTER_PORT"] == second["MASTER_PORT"] and first["OMP_NUM_THREADS"] == "1"


def test_ranks_can_talk() -> None:
    assert run("all_reduce", {"plus": 10}, 2) == [21.0, 21.0]


def test_an_interface_that_a_node_does_not_have_is_refused_with_those_it_has() -> None:
    with pytest.raises(
        interfaces.NoInterface, match=r"execution.network_interface=ib7: host .* it has .*lo \(127.0.0.1"
    ):
        run("environment", {}, 1, interface="ib7")


def test_ranks_talk_over_the_interface_that_was_asked_for() -> None:
    (first,) = run("network", {}, 1, interface="lo")
    assert first == {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo", "MASTER_ADDR": "127.0.0.1"}


def test_a_killed_rank_ends_the_gang_and_is_named_with_its_log(tmp_path: Path) -> None:
    with pytest.raises(gang.RankDied, match=r"rank 1 died.*rank-1\.log"):
        run("one_rank_dies", {}, 2, logs=tmp_path)
    assert "rank 1 of 2 is process" in (tmp_path / "rank-1.log").read_text()


def test_what_ranks_print_and_log_is_in_their_logs(tmp_path: Path) -> None:
    run("speak", {}, 2, logs=tmp_path)
    for rank in range(2):
        text = (tmp_path / f"rank-{rank}.log").read_text()
        assert f"printed by {rank}" in text and f"logged by {rank}" in text


def test_a_death_that_the_peer_noticed_first_is_told_as_the_death_it_is() -> None:
    with pytest.raises(gang.RankDied, match="rank 1 died"):
        run("one_rank_dies_after_its_peer_noticed", {}, 2)


def test_a_broken_connection_without_a_death_is_one_all_the_same() -> None:
    with pytest.raises(
        gang.RankDied, match=r"rank 0 died: .*(Connection closed by peer|Connection reset by peer|Broken pipe)"
    ):
        run("one_rank_loses_the_other", {}, 2)


def test_a_ranks_own_error_ends_the_gang_and_arrives_as_itself() -> None:
    with pytest.raises(ValueError, match="shard 7 is damaged"):
        run("one_rank_raises", {}, 2)


def test_sigterm_to_a_rank_that_does_not_look_for_it_is_a_preemption() -> None:
    with pytest.raises(rank_process.Preempted):
        run("one_rank_is_told_to_go", {}, 2)


def test_a_gang_that_does_not_fit_says_what_to_lower() -> None:
    with pytest.raises(TimeoutError, match=r"no room for 64 ranks .* lower execution.ranks"):
        run("environment", {}, 64, ready_seconds=1)


def killed(running: gang.Gang, tmp_path: Path) -> None:
    """Kill rank 1 when it has written its process number, and wait until the gang has noticed."""
    while not (tmp_path / "rank-1").exists():
        running.wait(0.1)
    os.kill(int((tmp_path / "rank-1").read_text()), signal.SIGKILL)
    (tmp_path / "rank-1").unlink()
    with pytest.raises(gang.RankDied):
        while not running.wait(0.5):
            pass


@pytest.mark.parametrize("standby", ["tests.cluster.jobs:warm_up", None])
def test_after_a_death_all_ranks_run_again_on_standbys_where_there_are_some(
    tmp_path: Path, standby: str | None
) -> None:
    job = {"folder": str(tmp_path)}
    with (
        Room(2, threads=1) as room,
        gang.Gang("tests.cluster.jobs:wait_for_the_end", job, room, standby=standby) as running,
    ):
        running.prepare()
        running.prepare()  # again and again while the ranks run: there is one standby a rank
        killed(running, tmp_path)
        running.restart()
        killed(running, tmp_path)  # the new ranks have no standbys yet, and are started from nothing
        running.restart()
        (tmp_path / "end").touch()
        while not running.wait(0.5):
            pass
        assert [result["rank"] for result in running.results()] == ["0", "1"]
    warm = sorted(int(path.name.removeprefix("warm-")) for path in tmp_path.glob("warm-*"))
    ran = [int(line) for line in (tmp_path / "ran").read_text().split()]
    assert len(warm) == (2 if standby else 0) and len(ran) == 6 == len(set(ran))
    assert sorted(ran[2:4]) == warm or not standby


def test_a_standby_that_died_before_it_was_needed_is_replaced(tmp_path: Path) -> None:
    job = {"folder": str(tmp_path)}
    with (
        Room(1, threads=1) as room,
        gang.Gang("tests.cluster.jobs:wait_for_the_end", job, room, standby="tests.cluster.jobs:warm_up") as running,
    ):
        running.prepare()
        while not (warm := list(tmp_path.glob("warm-*"))):
            time.sleep(0.05)
        os.kill(int(warm[0].name.removeprefix("warm-")), signal.SIGKILL)
        running.restart()
        (tmp_path / "end").touch()
        while not running.wait(0.5):
            pass
