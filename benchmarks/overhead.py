"""What the mechanism costs: records, leases, hashing and flushing, as a share of a whole run.

The one idea: the run is an ordinary one, in processes of its own; every Python process of it (driver, Ray's workers, the
ranks) finds a `sitecustomize` that wraps the engine's functions from outside and writes down how long each outermost
call took. The seconds of all processes are added up and divided by the time that the run took, which overstates the
share where they worked side by side. What a rank hashes and flushes is part of its checkpoints and exports: told apart.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from benchmarks import contender, nothing_to_do
from benchmarks.report import Figure, Options, number, say

GOAL = 2.0  # percent of the run
_FILE = "GPTLINE_OVERHEAD"  # where the wrapped functions write their lines
_RANKS = "checkpoints and exports, by the ranks"
# Module or class -> functions, and what their time is spent for. An inner one counts for the outermost.
_WRAPPED: dict[str, dict[str, str]] = {
    "model.durable:": dict.fromkeys(
        ("sha256", "fsync", "fsync_tree", "rename", "link", "write_bytes", "create_bytes", "publish_folder", "remove_tree"),
        "hashing and flushing, elsewhere",
    ),
    "pipelines.engine.lease:": {"acquire": "leases"},
    "pipelines.engine.lease:Lease": {"release": "leases"},
    "pipelines.engine.plan:": {"plan": "planning"},
    "pipelines.engine.digests:Digests": dict.fromkeys(("of", "save"), "planning"),
    "pipelines.engine.units:UnitStore": dict.fromkeys(("find", "publish"), "units"),
    "pipelines.engine.record:": dict.fromkeys(("read", "code_version", "library_versions", "to_json"), "records"),
    "pipelines.engine.step:": {"_outputs": "records", "_commit": "records", "_verified": "verifying inputs", "_attempt": "records"},
    "pipelines.engine.step:StepInput": {"check_units": "verifying inputs"},
    "pipelines.engine.owning:": dict.fromkeys(("sweep", "let_go"), "leases"),
}  # fmt: skip
_inside = threading.local()


def install() -> None:
    """Wrap the engine's functions in this process. Called by `sitecustomize`, before anything else is imported."""
    for place, functions in _WRAPPED.items():
        module, _, name = place.partition(":")
        owner = importlib.import_module(module)
        owner = getattr(owner, name) if name else owner
        for function, label in functions.items():
            setattr(owner, function, _timed(getattr(owner, function), label))


def _timed(function: Callable[..., Any], label: str) -> Callable[..., Any]:
    @functools.wraps(function)
    def timed(*arguments: Any, **named: Any) -> Any:
        if getattr(_inside, "call", False):
            return function(*arguments, **named)
        _inside.call, began = True, time.perf_counter()
        try:
            return function(*arguments, **named)
        finally:
            _inside.call = False
            _write(label, time.perf_counter() - began)

    return timed


def _write(label: str, seconds: float) -> None:
    """One line, in one write: many processes append to the file."""
    told = _RANKS if "deepspeed" in sys.modules else label
    descriptor = os.open(os.environ[_FILE], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{seconds:.7f} {told}\n".encode())
    os.close(descriptor)


def run(options: Options) -> list[Figure]:
    """Run a recipe once under watch; percent of its time."""
    recipe, lines = "tiny" if options.small else "default", options.folder / "seconds"
    (options.folder / "sitecustomize.py").write_text("from benchmarks import overhead\n\noverhead.install()\n")
    path = os.pathsep.join([str(options.folder), str(contender.ROOT)])
    settings = f"execution.registry={options.folder / 'registry'} execution.cache={options.cache}"
    command = [sys.executable, "-m", "pipelines", "run", "--recipe", recipe, "--work", str(options.folder / "work")]
    before = os.environ.copy()
    os.environ |= {"PYTHONPATH": path, _FILE: str(lines)}
    try:
        whole = nothing_to_do.seconds_of([*command, "--set", settings])
    finally:
        os.environ.clear()
        os.environ.update(before)
    spent: dict[str, float] = {}
    for line in lines.read_text().splitlines():
        seconds, _, label = line.partition(" ")
        spent[label] = spent.get(label, 0.0) + float(seconds)
    ranks = spent.pop(_RANKS, 0.0)
    say(f"the {recipe} recipe took {whole:.1f} s; seconds of all processes, added up:")
    for label, total in sorted(spent.items(), key=lambda item: -item[1]):
        say(f"  {label}: {number(total)} s")
    say(f"  and {_RANKS}: {number(ranks)} s, {number(100 * ranks / whole)} %")
    share = 100 * sum(spent.values()) / whole
    what = f"record, lease and hashing machinery in the {recipe} recipe"
    return [Figure(what, "% of its time", share, f"the run took {whole:.0f} s", None, f"<= {GOAL:g} %", share <= GOAL)]
