"""How often the ranks of a training step may be lost before the step gives up, and when losing them is no accident.

The one idea: failures and preemptions are counted apart, since a cluster of cheap machines takes nodes away all the
time; and whoever dies three times at the same point would die there a fourth time. Counts are kept in the attempt's
folder: the process that uses Ray, which counts, may be lost and begun again.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model import durable

_COUNTS = ("failures", "preemptions", "deaths_here")
_AT_ONE_POINT = 3  # deaths without a step or a checkpoint more than before


class GaveUp(RuntimeError):
    """The ranks were lost too often; the message says where, why the last time, and which log to read."""


class Budget:
    """What a training step has used up, in this attempt, of what its execution allows. `attempt` and `checkpoints` are its folders."""

    def __init__(self, name: str, attempt: Path, checkpoints: Path, execution: Mapping[str, Any]) -> None:
        self._name, self._attempt, self._checkpoints = name, attempt, checkpoints
        self._max_failures, self._max_preemptions = execution["max_failures"], execution["max_preemptions"]
        self.failures = self.preemptions = 0
        self._deaths_here = 0
        self._furthest = (-1, -1)
        self._file = attempt / "budget.json"

    def failed(self, death: Exception, log_file: Path | None) -> str:
        """Count ranks that died; what may still happen, in words. GaveUp at the third death at one point, or at too many."""
        self._take_up()
        self.failures += 1
        self._deaths_here = 1 if self._got_further() else self._deaths_here + 1
        self._keep()
        advice = f"read {log_file}" if log_file else "its log says why"
        if self._deaths_here == _AT_ONE_POINT:
            raise GaveUp(
                f"{self._name} died {_AT_ONE_POINT} times after step {self._furthest[1]} without getting further; the "
                f"last time: {death}; {advice}"
            )
        if self.failures > self._max_failures:
            raise GaveUp(
                f"{self._name} lost ranks {self.failures} times, execution.max_failures={self._max_failures} allows no "
                f"more; the last time after step {self._furthest[1]}: {death}; {advice}"
            )
        return f"failure {self.failures} of at most {self._max_failures}"

    def preempted(self, reason: object) -> str:
        """Count nodes that were taken away; what may still happen, in words. GaveUp at too many."""
        self._take_up()
        self.preemptions += 1
        self._keep()
        if self.preemptions > self._max_preemptions:
            raise GaveUp(
                f"{self._name} was preempted {self.preemptions} times, execution.max_preemptions={self._max_preemptions} "
                f"allows no more; the last time: {reason}"
            )
        return f"preemption {self.preemptions} of at most {self._max_preemptions}"

    def _take_up(self) -> None:
        """Go on from what was counted last, here or in a process that is gone."""
        if self._file.exists():
            known = durable.read_json(self._file)
            self.failures, self.preemptions, self._deaths_here = (known[name] for name in _COUNTS)
            self._furthest = tuple(known["furthest"])

    def _keep(self) -> None:
        counts = dict(zip(_COUNTS, (self.failures, self.preemptions, self._deaths_here), strict=True))
        durable.write_json(self._file, counts | {"furthest": self._furthest})

    def _got_further(self) -> bool:
        """Whether a step or a checkpoint was reached that no earlier start had reached."""
        line = last_line(self._attempt / "progress.jsonl")
        here = (newest_checkpoint(self._checkpoints), line["step"] if line else 0)
        further = here[0] > self._furthest[0] or here[1] > self._furthest[1]
        self._furthest = (max(here[0], self._furthest[0]), max(here[1], self._furthest[1]))
        return further


def newest_checkpoint(checkpoints: Path) -> int:
    """The step of the newest published checkpoint, permanent or not; 0 if there is none."""
    folders = (checkpoints, checkpoints.with_name("permanent"))
    steps = (path.name.removeprefix("step-") for folder in folders for path in folder.glob("step-*"))
    return max((int(step) for step in steps if step.isdigit()), default=0)


def last_line(path: Path) -> dict[str, Any] | None:
    """The last line of a growing JSONL file that is whole: a full disk or a kill may have left half of one, and more after it."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - 4096))
            lines = file.read().split(b"\n")[:-1]
    except FileNotFoundError:
        return None
    for line in reversed(lines):
        with contextlib.suppress(ValueError):
            found: dict[str, Any] = json.loads(line)
            return found
    return None
