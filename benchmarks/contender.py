"""One contender at a time, each in a process of its own.

The one idea: what is compared must not share a process. A fork after Ray, a thread pool that was sized for another,
or a peak of memory that somebody else left behind would decide a figure. So a contender is a dotted name and JSON, and
its answer is the last line that it prints.

    python -m benchmarks.contender benchmarks.tokenize:gigatoken_alone '{"...": ...}'
"""

from __future__ import annotations

import importlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
MARK = "CONTENDER "


class ContenderFailed(RuntimeError):
    """A contender's process ended without an answer; the message has the end of what it printed."""


def environment(threads: int, **more: str) -> dict[str, str]:
    """The environment of a contender: `threads` for every library that keeps a pool, nothing fetched, nobody told."""
    count = str(threads)
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])),
        "OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "RAYON_NUM_THREADS": count,
        "HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "RAY_USAGE_STATS_ENABLED": "0",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    } | more  # fmt: skip


def start(function: str, item: Any, environ: Mapping[str, str]) -> subprocess.Popen[str]:
    """Begin a contender: its process, whose output is still to be read."""
    command = [sys.executable, "-m", "benchmarks.contender", function, json.dumps(item)]
    return subprocess.Popen(
        command, cwd=ROOT, env=dict(environ), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process: subprocess.Popen[str]) -> Any:
    """Wait for a contender and return its answer. ContenderFailed if it gave none."""
    printed, _ = process.communicate()
    answers = [line for line in printed.splitlines() if line.startswith(MARK)]
    if process.returncode or not answers:
        raise ContenderFailed(f"{process.args!r} ended with {process.returncode}:\n{printed[-3000:]}")
    return json.loads(answers[-1].removeprefix(MARK))


def run(function: str, item: Any, *, threads: int) -> Any:
    """Run "package.module:function" with `item` in a fresh process and return what it returned."""
    return finish(start(function, item, environment(threads)))


def run_ranks(function: str, item: Any, *, ranks: int, threads: int) -> list[Any]:
    """The same as `ranks` processes that find each other as torchrun's would; the answers by rank."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    world = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = [
        start(function, item, environment(threads, RANK=str(rank), LOCAL_RANK=str(rank), **world))
        for rank in range(ranks)
    ]
    with ThreadPoolExecutor(ranks) as pool:
        answers = [pool.submit(finish, process) for process in processes]
        try:
            for answer in as_completed(answers):
                answer.result()  # of the first that failed: the others would wait for it for half an hour
        finally:
            for process in processes:
                process.kill()
    return [answer.result() for answer in answers]


def main(arguments: Sequence[str]) -> None:
    """Call the function that the command line names and print its answer."""
    module, _, name = arguments[0].partition(":")
    answer = getattr(importlib.import_module(module), name)(json.loads(arguments[1]))
    print(MARK + json.dumps(answer), flush=True)
    # As `model.world.leave` does: threads of gloo abort one ending interpreter in five, and nothing is left to be done.
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
