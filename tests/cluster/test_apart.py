"""Work in the process that uses Ray: it goes on whoever of that Ray is killed and when, and nothing of it stays behind."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from cluster import apart
from cluster.processes import session
from pipelines.stages import fan_out
from tests.cluster.training_driver import attempt_of

SQUARE = "tests.cluster.jobs:square"
SECONDS = [0.0, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]  # after the beginning of the process that is killed


@pytest.fixture(autouse=True)
def left_behind() -> Iterator[None]:
    yield
    apart.end()


def squares(folder: Path, name: str, numbers: list[int]) -> list[int]:
    """What the stage's own way to hand out work makes of the numbers."""
    found = dict(fan_out.fan_out(attempt_of(folder, {"name": name}, "local"), SQUARE, numbers))
    return [found[index] for index in range(len(numbers))]


def ended(number: int) -> bool:
    """Whether nothing of a session is left within ten seconds."""
    end = time.monotonic() + 10
    while (left := session(number)) and time.monotonic() < end:
        time.sleep(0.05)
    return not left


def test_a_killed_one_is_replaced_its_orphans_are_ended_and_errors_arrive_as_themselves(tmp_path: Path) -> None:
    assert squares(tmp_path, "first", [1, 2, 3]) == [1, 4, 9]
    with pytest.raises(ValueError, match=r"corpus.txt:7: not what it should be"):
        list(apart.each("cluster.ray_map:map_units", "tests.cluster.jobs:refuse", [7], in_flight=1))
    first = apart._children[0].process
    agents = [process for process in session(first.pid) if "Agent" in process.name()]
    assert len(agents) == 2, "what outlived its Ray for minutes"
    [raylet] = [process for process in session(first.pid) if process.name().startswith("raylet")]
    first.kill()
    raylet.kill()
    assert squares(tmp_path, "second", [4]) == [16]
    assert session(first.pid) == [] and apart._children[0].process.pid != first.pid


DRIVER = """
import sys, time
from cluster import apart
from cluster.processes import session
apart.connect("local", 1)
for _ in apart.each("cluster.ray_map:map_units", "tests.cluster.jobs:square", [1], in_flight=1): pass
print(apart._children[0].process.pid, flush=True)
time.sleep(1000)
"""


def test_nothing_of_a_ray_outlives_a_killed_driver() -> None:
    driver = subprocess.Popen([sys.executable, "-c", DRIVER], stdout=subprocess.PIPE, text=True)
    assert driver.stdout
    number = int(driver.stdout.readline())
    assert len(session(number)) > 5
    driver.kill()
    driver.wait()
    assert ended(number), session(number)


def killed(victim: str, after: float) -> float:
    """Kill this process of the child's Ray, when it has lived for so long; when that was. Tests before may have joined another."""
    while True:
        for process in [one for child in list(apart._children) for one in session(child.process.pid)]:
            try:
                if process.name().startswith(victim) and time.time() - process.create_time() >= after:
                    process.kill()
                    return time.time()
            except psutil.NoSuchProcess:
                continue
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("victim", "after"),
    [
        ("raylet", 0.3),
        pytest.param("gcs_server", 0.9, marks=pytest.mark.thorough),
        *(
            pytest.param(victim, after, marks=pytest.mark.thorough)
            for victim in ("gcs_server", "raylet")
            for after in SECONDS
        ),
    ],
)
def test_a_ray_that_is_killed_while_it_starts_is_replaced(victim: str, after: float, tmp_path: Path) -> None:
    apart.connect("local", 2)
    with ThreadPoolExecutor(1) as pool:
        kill = pool.submit(killed, victim, after)
        for number in range(50):  # a kill that comes late finds a Ray at work
            assert squares(tmp_path, f"step-{number}", [3, 4]) == [9, 16]
            if kill.done():
                break
        assert time.time() - kill.result() < 100


@pytest.mark.thorough  # four Rays
def test_one_that_ends_again_and_again_is_a_clear_error() -> None:
    apart.connect("local", 1)
    lost = 0
    with pytest.raises(apart.Hopeless, match=r"it ended with 3\), as were 3 before it"):
        while True:
            try:
                list(apart.each("tests.cluster.jobs:end_this_process", 3))
            except apart.Lost:
                lost += 1
    assert lost == 3
