"""Run benchmarks: all of them, or those that are named.

The one idea: every figure that this project claims is printed by this command, beside what a user would pick
instead, on the machine that it runs on.

    python -m benchmarks                                  all, in full size: about 25 minutes on 2 cores
    python -m benchmarks tokenize loader                  some
    python -m benchmarks pulls                            27 GB of disk: not among all
    python -m benchmarks --small                          all in small, to see that they work; their figures mean nothing
    python -m benchmarks train --device cuda              the GPU half: needs torch, deepspeed and what model/ imports

The results are also written as JSON below `--folder` (git-ignored).
"""

from __future__ import annotations

import argparse
import importlib
import os
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from benchmarks.report import Figure, Options, machine, save, say, table, versions

NAMES = (
    "nothing_to_do",
    "planning",
    "overhead",
    "loader",
    "masking",
    "tokenize",
    "train",
    "checkpoint",
    "ray_start",
    "recovery",
    "memory",
    "lora",
    "pulls",
)

APART = ("pulls",)  # only where it is named: it wants 27 GB of disk


def parsed() -> tuple[list[str], Options]:
    """The names and the options of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="each figure we claim, beside its alternative"
    )
    parser.add_argument(
        "names", nargs="*", metavar="name", help=f"of {', '.join(NAMES)}; all but {', '.join(APART)} if none is given"
    )
    parser.add_argument("--small", action="store_true", help="small sizes, to see that it works")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where training is measured")
    parser.add_argument(
        "--threads", type=int, default=len(os.sched_getaffinity(0)), help="of the CPU kernels of one rank"
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path(".cache/benchmarks"),
        help="results, samples, and scratch data that is removed",
    )
    parser.add_argument("--cache", type=Path, default=Path(".cache/gptline"), help="fetched sample data")
    given = parser.parse_args()
    unknown = set(given.names) - set(NAMES)
    if unknown:
        parser.error(f"no benchmark is called {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    return given.names or [name for name in NAMES if name not in APART], Options(
        given.folder.absolute(), given.cache.absolute(), given.small, given.device, given.threads
    )


def measured(name: str, options: Options) -> list[Figure]:
    """The figures of one benchmark; what it wrote on the way is removed."""
    say(f"\n## {name}\n")
    began = time.perf_counter()
    scratch = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=options.folder))
    try:
        figures = importlib.import_module(f"benchmarks.{name}").run(replace(options, folder=scratch))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    say(f"\n{table(figures)}\n\n({time.perf_counter() - began:.0f} s)")
    return figures


def main() -> None:
    """Measure, print, and keep the results."""
    names, options = parsed()
    options.folder.mkdir(parents=True, exist_ok=True)
    say("# gptline benchmarks" + (" (SMALL: these figures mean nothing)" if options.small else ""))
    say("machine: " + ", ".join(f"{name} {value}" for name, value in machine(options.device).items()))
    say("versions: " + ", ".join(f"{name} {value}" for name, value in versions().items()))
    found = {name: measured(name, options) for name in names}
    say(f"kept in {save(options.folder, options, found)}")


if __name__ == "__main__":
    main()
