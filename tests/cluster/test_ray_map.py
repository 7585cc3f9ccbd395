"""Ray tasks over items: every result once, bounded in flight, retried after a death, errors as they were raised."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

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


@pytest.mark.parametrize("trouble", ["die_once", "fail_once"])
def test_a_task_whose_worker_is_killed_or_whose_error_may_pass_is_run_again(tmp_path: Path, trouble: str) -> None:
    assert list(ray_map.map_units(f"tests.cluster.jobs:{trouble}", [str(tmp_path)], in_flight=1)) == [(0, "second")]


def test_the_functions_own_error_arrives_as_itself() -> None:
    with pytest.raises(ValueError, match=r"corpus.txt:7: not what it should be"):
        list(ray_map.map_units("tests.cluster.jobs:refuse", [7], in_flight=1))


def test_an_item_that_kills_three_workers_is_named_with_its_log_and_the_others_are_done(tmp_path: Path) -> None:
    items: list[Any] = [{"shard": 7}]
    with pytest.raises(ray_map.ItemFailed, match=r'item 0 of 1 \({"shard": 7}\) failed 3 times.*task-0\.log'):
        list(ray_map.map_units("tests.cluster.jobs:die_always", items, in_flight=2, logs=tmp_path))
    text = (tmp_path / "task-0.log").read_text()
    assert text.count("begins tests.cluster.jobs:die_always") == 2, "its second and third run"
    assert "reading {'shard': 7}" in text


def test_more_deaths_than_are_allowed_end_the_map(tmp_path: Path) -> None:
    with pytest.raises(ray_map.TooManyFailures, match=r"1 tasks failed, execution.max_failures=0"):
        list(ray_map.map_units("tests.cluster.jobs:die_once", [str(tmp_path)], in_flight=1, max_failures=0))


LOSES_ITS_RAY = """
import json, os, sys, psutil
from cluster import processes, ray_map, services

folder = sys.argv[1]
services.lead_session()
services.connect("local", 2)
items = [{"folder": folder, "number": number} for number in range(8)]
found, starts = {}, 0
for index, result in ray_map.map_units("tests.cluster.jobs:slow_square", items, in_flight=2):
    assert index not in found
    found[index] = result
    if len(found) == 3:
        [raylet] = [child for child in psutil.Process().children() if child.name().startswith("raylet")]
        raylet.kill()
services.disconnect()
left = [process.name() for process in processes.session(os.getpid()) if process.pid != os.getpid()]
print(json.dumps({"found": [found[index] for index in range(8)], "left": left}))
"""


def test_a_map_outlives_the_ray_under_it_and_leaves_no_processes_behind(tmp_path: Path) -> None:
    command = [sys.executable, "-c", LOSES_ITS_RAY, str(tmp_path)]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False, start_new_session=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert said == {"found": [number**2 for number in range(8)], "left": []}
