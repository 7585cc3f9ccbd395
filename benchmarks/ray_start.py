"""A Ray is started: how long until a first task has answered.

The one idea: the driver's way (a child of it starts and uses Ray) beside starting and using Ray in one process, turn by
turn, since most of either is Ray's own start and follows the machine's load.
"""

from __future__ import annotations

import subprocess
import sys
import time

from benchmarks import contender
from benchmarks.report import Figure, Options, median, say

GOAL = 1.5  # seconds more
TURNS = 5
CHILD = """
from cluster import apart
apart.connect("local", 2)
print(list(apart.each("cluster.ray_map:map_units", "builtins:str", [1], in_flight=1)), flush=True)
apart.end()
"""
ONE_PROCESS = """
from cluster import ray_map, services
services.connect("local", 2)
print(list(ray_map.map_units("builtins:str", [1], in_flight=1)), flush=True)
services.disconnect()
"""


def run(options: Options) -> list[Figure]:
    """Start each in turn; seconds."""
    found: dict[str, list[float]] = {CHILD: [], ONE_PROCESS: []}
    for _ in range(1 if options.small else TURNS):
        for program, seconds in found.items():
            seconds.append(first_answer(program))
    for name, program in (("by a child", CHILD), ("in one process", ONE_PROCESS)):
        say(f"{name}: " + ", ".join(f"{seconds:.1f} s" for seconds in found[program]))
    ours, theirs = median(found[CHILD]), median(found[ONE_PROCESS])
    return [
        Figure(
            "Ray's start to a first answer", "s", ours, "Ray in the driver itself", theirs, f"<= {GOAL:g} s more",
            ours <= theirs + GOAL,
        )
    ]  # fmt: skip


def first_answer(program: str) -> float:
    """Seconds from the start of a process to its first line; it is waited for. ContenderFailed if it failed."""
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", program], cwd=contender.ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    line, seconds = process.stdout.readline(), time.perf_counter() - began
    process.communicate()
    if line != "[(0, '1')]\n" or process.returncode:
        raise contender.ContenderFailed(f"{program}\nended with {process.returncode} and said {line!r}")
    return seconds
