"""A run with nothing to do: how long until it says so.

The one idea: `python -m pipelines run` on a finished work directory, from the start of the process to its end, beside
the imports that it avoids: a run that reached for torch, ray, mlflow, transformers and datasets would pay for them first.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

from benchmarks import contender
from benchmarks.report import Figure, Options, median, number, say

GOAL = 2.0  # seconds
TURNS = 5
HEAVY = ("torch", "ray", "mlflow", "transformers", "datasets")
PLAN = """
import json, sys, time
began = time.perf_counter()
from pipelines.options import configured
from pipelines import run
imported = time.perf_counter()
space = run.open_workspace(*configured("tiny", sys.argv[1], [sys.argv[2]]), fetch=False)
resolved = time.perf_counter()
run.plan(space)
planned = time.perf_counter()
print(json.dumps({"imports": imported - began, "recipe and sources": resolved - imported, "plan": planned - resolved}))
"""


def run(options: Options) -> list[Figure]:
    """Finish the tiny recipe once, then run it again and again; seconds."""
    settings = f"execution.registry={options.folder / 'registry'} execution.cache={options.cache}"
    work = str(options.folder / "work")
    command = [sys.executable, "-m", "pipelines", "run", "--recipe", "tiny", "--work", work, "--set", settings]
    say(f"the first run of the tiny recipe took {seconds_of(command):.1f} s")
    again = [seconds_of(command) for _ in range(TURNS)]
    say("again: " + ", ".join(f"{seconds:.2f} s" for seconds in again))
    _say_split(work, settings)
    imports = median(
        [seconds_of([sys.executable, "-c", f"import {', '.join(HEAVY)}"]) for _ in range(1 if options.small else 3)]
    )
    ours = median(again)
    beside = f"importing {', '.join(HEAVY)}, nothing else"
    return [Figure("run with nothing to do", "s", ours, beside, imports, f"<= {GOAL:g} s", ours <= GOAL)]


def _say_split(work: str, settings: str) -> None:
    """Where the time of such a run goes."""
    empty = median([seconds_of([sys.executable, "-c", ""]) for _ in range(TURNS)])
    command = [sys.executable, "-c", PLAN, work, settings]
    runs = [json.loads(_output(command)) for _ in range(TURNS)]
    parts = {"python's start": empty} | {name: median([found[name] for found in runs]) for name in runs[0]}
    say("of it: " + ", ".join(f"{name} {number(seconds)} s" for name, seconds in parts.items()))


def seconds_of(command: list[str]) -> float:
    """Wall time of a process. ContenderFailed with its output if it failed."""
    began = time.perf_counter()
    _output(command)
    return time.perf_counter() - began


def _output(command: list[str]) -> str:
    environ = contender.environment(len(os.sched_getaffinity(0)))
    done = subprocess.run(command, cwd=contender.ROOT, env=environ, capture_output=True, text=True)
    if done.returncode:
        raise contender.ContenderFailed(
            f"{command[:6]} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-3000:]}"
        )
    return done.stdout
