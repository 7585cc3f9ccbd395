"""Ray tasks over items: every result once, bounded in flight, retried after a death, errors as they were raised."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster import ray_map

pytestmark = pytest.mark.usefixtures("local_ray")


def test_every_item_gives_its_result_once() -> None:
    results = dict(ray_map.map_units("tests.cluster.jobs:square", list(range(20)), in_flight=3))
    assert results == {number: number * number for number in range(20)}


def test_no_items_need_no_tasks() -> None:
    assert list(ray_map.map_units("tests.cluster.jobs:square", [], in_flight=3)) == []


def test_no_more_than_the_allowed_number_run_at_once(tmp_path: Path) -> None:
    seen = [
        result for _, result in ray_map.map_units("tests.cluster.jobs:in_flight", [str(tmp_path)] * 12, in_flight=2)
    ]
    assert max(seen) <= 2


def test_a_task_whose_worker_is_killed_is_run_again(tmp_path: Path) -> None:
    assert ray_map.run_one("tests.cluster.jobs:die_once", str(tmp_path)) == "second"


def test_the_functions_own_error_arrives_as_itself() -> None:
    with pytest.raises(ValueError, match=r"corpus.txt:7: not what it should be"):
        list(ray_map.map_units("tests.cluster.jobs:refuse", [7], in_flight=1))
