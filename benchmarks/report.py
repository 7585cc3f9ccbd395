"""What a benchmark found, beside the machine it was found on: printed as a table, kept as JSON.

The one idea: a figure is never alone. It stands beside what a user would pick instead, measured in the same run,
and beside the goal that the project set itself; a goal that is missed is printed as missed.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from model import durable

LIBRARIES = (
    "torch",
    "deepspeed",
    "ray",
    "pyarrow",
    "numpy",
    "gigatoken",
    "tokenizers",
    "datasets",
    "transformers",
    "accelerate",
)


@dataclass(frozen=True)
class Options:
    """How benchmarks are run: `small` sizes only prove that they work; `folder` holds what they write, `cache` the samples."""

    folder: Path
    cache: Path
    small: bool = False
    device: str = "cpu"
    threads: int = 2


@dataclass(frozen=True)
class Figure:
    """One figure: `ours` and, where there is an alternative, `other`, both in `unit`. `met` is none without a goal."""

    what: str
    unit: str
    ours: float
    beside: str = ""
    other: float | None = None
    goal: str = ""
    met: bool | None = None

    @property
    def ratio(self) -> float | None:
        """Ours divided by the other."""
        return self.ours / self.other if self.other else None


def at_least(what: str, unit: str, ours: float, beside: str, other: float, ratio: float) -> Figure:
    """A figure whose goal is a ratio to the other that is at least `ratio`."""
    return Figure(what, unit, ours, beside, other, f">= {ratio:g} x", ours / other >= ratio)


def say(text: str) -> None:
    """A line about what is being measured, at once."""
    print(text, flush=True)


def machine(device: str) -> dict[str, Any]:
    """Cores, processor, memory and, where one is used, the GPU."""
    found: dict[str, Any] = {"cores": len(os.sched_getaffinity(0)), "cpu": _cpu(), "memory_gb": _memory_gb()}
    if device == "cuda":
        import torch

        found["gpu"] = torch.cuda.get_device_name()
    return found | {"system": f"{platform.system()} {platform.release()}", "load": os.getloadavg()[0]}


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _memory_gb() -> float:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)


def versions() -> dict[str, str]:
    """Python's and the libraries' versions, of those that are installed."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def number(value: float | None) -> str:
    """A figure to three significant digits, without exponents."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def table(figures: Sequence[Figure]) -> str:
    """The figures as a Markdown table."""
    rows = [("figure", "unit", "ours", "other", "ours / other", "beside", "goal")]
    rows.append(tuple("---" for _ in rows[0]))  # type: ignore[arg-type]
    for figure in figures:
        verdict = "" if figure.met is None else ": met" if figure.met else ": MISSED"
        cells = (
            figure.what,
            figure.unit,
            number(figure.ours),
            number(figure.other),
            number(figure.ratio),
            figure.beside,
        )
        rows.append((*cells, figure.goal + verdict))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = (" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(f"| {line} |" for line in lines)


def save(folder: Path, options: Options, found: Mapping[str, Sequence[Figure]]) -> Path:
    """Write all figures, the machine and the versions to a file named by the time; its path."""
    now = datetime.now(UTC)
    path = folder / f"{now:%Y%m%dT%H%M%SZ}.json"
    content = {
        "schema": 1,
        "time": now.isoformat(timespec="seconds"),
        "small": options.small,
        "command": sys.argv[1:],
        "machine": machine(options.device),
        "versions": versions(),
        "figures": {
            name: [asdict(figure) | {"ratio": figure.ratio} for figure in figures] for name, figures in found.items()
        },
    }
    durable.write_json(path, content)
    return path


def median(values: Sequence[float]) -> float:
    """The middle value: a machine's pauses do not move it."""
    return statistics.median(values)
