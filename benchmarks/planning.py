"""Planning a pipeline of many finished units: how long until it is known that nothing is to do.

The one idea: a work directory made by the engine itself, then planned in fresh processes: the digests cache is loaded,
each record read and checked, every output that one lists looked up by one stat. Beside it, what planning would cost if it
asked each unit: reading one small JSON file a unit.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks import contender
from benchmarks.report import Figure, Options, median, number, say
from model import durable
from pipelines import recipes
from pipelines import run as runs
from pipelines.engine.digests import Digests
from pipelines.engine.step import Attempt, Input, Stage, Step
from pipelines.engine.units import UnitFile, unit_key
from pipelines.execution import Execution

GOAL = 1.0  # seconds
UNITS, STEPS, TURNS = 10_000, 2, 5
MAKE, READ = Stage("make", 1, "benchmarks.planning:make"), Stage("read", 1, "benchmarks.planning:read")
PROBE = """
import json, sys, time
from pathlib import Path
from benchmarks import planning
began = time.perf_counter()
planned = planning.planned(Path(sys.argv[1]), int(sys.argv[2]))
seconds = time.perf_counter() - began
assert all(step.done for step in planned.values()), planned
print(json.dumps({"seconds": seconds}))
"""
READ_ALL = """
import json, sys, time
from pathlib import Path
began = time.perf_counter()
read = [json.loads(path.read_bytes()) for path in Path(sys.argv[1]).glob("units/*/*/*.json")]
print(json.dumps({"seconds": time.perf_counter() - began, "files": len(read)}))
"""


def make(attempt: Attempt) -> dict[str, Any]:
    """One unit of a few bytes for each number of the configuration, and a manifest of them."""
    files: list[UnitFile] = []
    for index in range(attempt.config["units"]):
        draft = attempt.scratch / "unit.draft"
        draft.write_text(f"{attempt.config['part']} {index}")
        key = unit_key("make", 1, {"part": attempt.config["part"]}, index)
        files += attempt.units.publish("units", key, {"txt": draft}, {"index": index}).files.values()
    attempt.add_outputs(files)
    durable.write_json(attempt.outputs / "manifest.json", [file.path for file in files])
    return {"units": len(files)}


def read(attempt: Attempt) -> dict[str, Any]:
    """What a later step does with a manifest."""
    units = durable.read_json(attempt.inputs["manifest"].path("manifest.json"))
    durable.write_json(attempt.outputs / "count.json", len(units))
    return {"units": len(units)}


def flow(units: int) -> list[Step]:
    """The units in two steps, as text shards and token shards are, and three readers of each."""
    makers = [Step(f"make-{part}", MAKE, {"units": units // STEPS, "part": part}) for part in range(STEPS)]
    readers = [
        Step(f"read-{part}-{reader}", READ, {"reader": reader}, {"manifest": Input(f"make-{part}", "manifest.json")})
        for part in range(STEPS)
        for reader in range(3)
    ]
    return [*makers, *readers]


def workspace(root: Path, units: int) -> runs.Workspace:
    """The flow in `root`, with what is known of its files."""
    execution = {"lease_seconds": 10.0}
    return runs.Workspace(recipes.tiny(), Execution(), root, flow(units), Digests(root / "digests.json"), execution)


def planned(root: Path, units: int) -> dict[str, Any]:
    """The plan of the flow, as `python -m pipelines plan` makes it."""
    return runs.plan(workspace(root, units))


def run(options: Options) -> list[Figure]:
    """Make the units once, plan them again and again; seconds."""
    units, root = 500 if options.small else UNITS, options.folder / "work"
    root.mkdir()
    began = time.perf_counter()
    with patch.object(durable, "fsync", lambda path: None):  # making them is not measured, and flushing takes minutes
        list(runs.run(workspace(root, units), runs.unwatched, lambda owner: None, lambda damage: None))
    say(f"making {units} units took {time.perf_counter() - began:.1f} s")
    _asked(PROBE, root, units)  # remembers the files that were too young to be remembered when they were made
    ours = [_asked(PROBE, root, units) for _ in range(TURNS)]
    other = [_asked(READ_ALL, root, units) for _ in range(TURNS)]
    say("plan: " + ", ".join(f"{number(seconds)} s" for seconds in ours))
    seconds = median(ours)
    beside = f"reading one small JSON file for each of {units} units"
    return [
        Figure(
            f"plan of {units} finished units", "s", seconds, beside, median(other), f"<= {GOAL:g} s", seconds <= GOAL
        )
    ]


def _asked(code: str, root: Path, units: int) -> float:
    """The seconds that a fresh process has measured. ContenderFailed with its output if it failed."""
    command = [sys.executable, "-c", code, str(root), str(units)]
    done = subprocess.run(command, cwd=contender.ROOT, capture_output=True, text=True)
    if done.returncode:
        raise contender.ContenderFailed(f"planning ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return float(json.loads(done.stdout)["seconds"])
