"""What a training run writes down about itself, read while it is written.

The one idea: the file is the truth and MLflow a mirror of it. A reader takes whole lines only, may look again at any
time, and gives each line once; who mirrors decides what is new to MLflow.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_NOT_METRICS = ("step", "time")


@dataclass(frozen=True)
class Point:
    """One value of one metric. `timestamp` in milliseconds since 1970; `step` None: a reading of the clock."""

    key: str
    value: float
    timestamp: int
    step: int | None


@dataclass
class MetricFile:
    """A JSON-lines file that somebody appends to: one line a step, {"step": 7, "loss": 2.5, ...}."""

    path: Path
    bad_lines: int = 0
    _inode: int = 0
    _offset: int = field(default=0, repr=False)  # bytes read so far, up to the end of a whole line

    def read(self) -> list[Point]:
        """The points in lines that were completed since the last call; none if the file is not there (yet, any more)."""
        try:
            with open(self.path, "rb") as file:
                lines = self._new_lines(file)
        except FileNotFoundError:
            return []
        return [point for line in lines for point in self._points(line)]

    def _new_lines(self, file: Any) -> list[bytes]:
        inode = file.seek(0, 2) and _inode(self.path)
        # A resumed run puts another file in this place, or cuts it back: begin again, the mirror knows what it has.
        if inode != self._inode or file.tell() < self._offset:
            self._inode, self._offset = inode, 0
        file.seek(self._offset)
        whole, newline, _ = file.read().rpartition(b"\n")
        self._offset += len(whole) + len(newline)
        return whole.splitlines()

    def _points(self, line: bytes) -> Iterator[Point]:
        try:
            row = json.loads(line)
            step, moment = int(row["step"]), int(1000 * row.get("time", time.time()))
        except (ValueError, KeyError, TypeError, AttributeError):
            self.bad_lines += 1  # reported by who follows the file
            return
        for key, value in numbers(row):
            if key not in _NOT_METRICS:
                yield Point(key, value, moment, step)


def _inode(path: Path) -> int:
    return path.stat().st_ino


def numbers(values: Any, prefix: str = "") -> Iterator[tuple[str, float]]:
    """The finite numbers in nested mappings, each with its dotted name."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from numbers(value, f"{prefix}{key}.")
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            yield f"{prefix}{key}", float(value)


def flattened(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """The leaves of nested mappings and lists as text, each with its dotted name; empty ones are leaves too."""
    items = list(
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else []
    )
    if not items and prefix:
        yield prefix.rstrip("."), value if isinstance(value, str) else json.dumps(value)
    for key, item in items:
        yield from flattened(item, f"{prefix}{key}.")


def loss_curve(points: Sequence[Point], title: str) -> Any:
    """The loss over the steps as a matplotlib Figure."""
    from matplotlib.figure import Figure

    latest = sorted({point.step or 0: point.value for point in points}.items())
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot([step for step, _ in latest], [value for _, value in latest], linewidth=1)
    axes.set(title=title, xlabel="optimizer step", ylabel="training loss (nats a token)")
    axes.grid(alpha=0.3)
    return figure


def system_points() -> list[Point]:
    """How busy this machine is now, under MLflow's names for it. The first call starts the measurement."""
    import psutil

    now, memory = int(1000 * time.time()), psutil.virtual_memory()
    figures = {
        "system/cpu_utilization_percentage": psutil.cpu_percent(),
        "system/system_memory_usage_percentage": memory.percent,
        "system/system_memory_usage_megabytes": memory.used / 1e6,
    }
    return [Point(key, value, now, None) for key, value in figures.items()]
