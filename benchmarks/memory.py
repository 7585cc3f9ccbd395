"""Memory of sharding and tokenizing at 10 MB, 100 MB and 1 GB of corpus: it must not grow with the corpus.

The one idea: the real steps run in a process of their own with their own Ray, and the kernel's own mark of each
process's peak (VmHWM) is read until it ends. Two figures for each size: the driver's peak, and the largest peak of any
one Ray worker. How many workers there are is the execution's choice, not the corpus's.
"""

from __future__ import annotations

import contextlib
import subprocess
import time
from pathlib import Path
from typing import Any

from benchmarks import contender, corpus, data_line
from benchmarks.report import Figure, Options, say

FULL, SMALL = (10_000_000, 100_000_000, 1_000_000_000), (2_000_000, 6_000_000)  # bytes of corpus
SHARD_BYTES = 4 << 20  # so that the smallest corpus already has more shards than there are workers
GOAL = 1.25  # how much more the largest corpus may take than the smallest


def run(options: Options) -> list[Figure]:
    """Measure all sizes; figures in MB."""
    sizes = SMALL if options.small else FULL
    peaks = {size: _peaks(size, options) for size in sizes}
    figures = []
    for role in ("driver", "worker"):
        for size in sizes[1:]:
            ours, first = peaks[size][role], peaks[sizes[0]][role]
            goal = f"<= {GOAL:g} x"
            what = (
                f"peak memory of {'the driver' if role == 'driver' else 'a Ray worker'}, {size / 1e6:,.0f} MB of corpus"
            )
            figures.append(
                Figure(what, "MB", ours, f"{sizes[0] / 1e6:,.0f} MB of corpus", first, goal, ours <= GOAL * first)
            )
    return figures


def _peaks(size: int, options: Options) -> dict[str, float]:
    """Peaks of driver and workers in MB while a corpus of `size` bytes is sharded and tokenized."""
    folder = corpus.write(options.folder / f"corpus-{size}", size, options.cache, seed=size)
    item = {"work": str(options.folder / f"work-{size}"), "corpus": str(folder), "cache": str(options.cache)}
    began = time.perf_counter()
    process = contender.start("benchmarks.memory:data_line_of", item, contender.environment(1))
    found = _watched(process)
    answer = contender.finish(process)
    say(
        f"{size / 1e6:,.0f} MB: {answer['shards']} shards, {answer['tokens']:,} tokens in {time.perf_counter() - began:.0f} s; driver "
        f"{found['driver']:.0f} MB, largest worker {found['worker']:.0f} MB (an idle one {found['idle']:.0f} MB), {found['workers']} workers in all"
    )
    return found


def data_line_of(item: dict[str, Any]) -> dict[str, Any]:
    """Shard and tokenize the corpus; how many shards and tokens came of it."""
    space = data_line.workspace(Path(item["work"]), Path(item["corpus"]), Path(item["cache"]), "tokenize", SHARD_BYTES)
    data_line.connect(space)
    done = data_line.do(space)["tokenize"]["metrics"]
    return {"shards": done["shards"], "tokens": done["train_tokens"] + done["heldout_tokens"]}


def _watched(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Peaks in MB of a driver and of its Ray workers, looked at ten times a second until the driver ends."""
    import psutil

    peaks: dict[int, float] = {}
    driver = psutil.Process(process.pid)
    own = 0.0
    while process.poll() is None:
        own = max(own, _high_water_mark(driver.pid))
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in driver.children(recursive=True):
                # Workers call themselves ray::IDLE or ray::call; the rest are Ray's own servers.
                if child.name().startswith("ray::"):
                    peaks[child.pid] = max(peaks.get(child.pid, 0.0), _high_water_mark(child.pid))
        time.sleep(0.1)
    values = sorted(peaks.values()) or [0.0]
    return {"driver": own, "worker": values[-1], "idle": values[0], "workers": len(peaks)}


def _high_water_mark(pid: int) -> float:
    """The largest resident set that a process ever had, in MB; 0 if it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    lines = dict(line.split(":", 1) for line in status.splitlines())
    return int(lines["VmHWM"].split()[0]) / 1e3 if "VmHWM" in lines else 0.0
