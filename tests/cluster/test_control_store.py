"""When Ray's control store alone is killed: the process that uses Ray goes on with another one, or ends itself and says so."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import sys, threading, time
import psutil
import ray
from cluster import services

services._HANGING = 3.0 if sys.argv[1] == "main" else 30.0
services.connect("local", 1)
next(child for child in psutil.Process().children() if child.name().startswith("gcs_server")).kill()
if sys.argv[1] == "main":
    ray.nodes()  # is never answered
threading.Thread(target=ray.nodes, daemon=True).start()
while not services.lost():
    time.sleep(0.1)
services.reconnect()
time.sleep(float(sys.argv[2]))
print("alive", len(ray.nodes()), flush=True)
services.disconnect()
"""


def ran(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, timeout=150)


def test_a_process_that_waits_for_a_killed_control_store_ends_itself_and_says_why() -> None:
    ended = ran("main", "0")
    assert ended.returncode == 75, ended.stderr
    assert "what was asked of it will never be answered" in ended.stderr


@pytest.mark.thorough
def test_a_process_that_works_on_another_ray_is_not_ended_by_a_question_to_the_first() -> None:
    ended = ran("thread", "70")  # Ray itself would end it after 60
    assert (ended.returncode, ended.stdout) == (0, "alive 1\n"), ended.stderr
