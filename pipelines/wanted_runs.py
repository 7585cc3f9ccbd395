"""What MLflow runs should say: plain data, so that it can wait in a file while MLflow is away.

The one idea: what is wanted is kept apart from what the store is known to have. The first is written to the outbox
and read by another process; the second that process finds out by asking the store.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pipelines.metric_files import Point, flattened

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]

_PARAMETER = 6000  # characters, MLflow's limit


@dataclass
class Outcome:
    """How a run ended: its true status, figures that have no step, paths of files to keep with it."""

    status: Status
    ended: int  # milliseconds since 1970
    figures: dict[str, float]
    artifacts: list[str]


@dataclass
class WantedRun:
    """What one MLflow run should say, and how much of it the store is known to have."""

    name: str
    identity: dict[str, str]  # tags that find it again
    params: dict[str, str]
    tags: dict[str, str]
    parent: str | None = None  # the identity of the parent run: its key
    points: deque[Point] = field(default_factory=deque)  # not in the store yet, in order
    curve: list[Point] = field(default_factory=list)  # the losses, for the picture
    outcome: Outcome | None = None
    # What the store has. Of no meaning to another process: it asks again.
    run_id: str | None = None
    started: int = 0
    told: dict[str, str] = field(default_factory=dict)
    steps: dict[str, set[int]] = field(default_factory=dict)
    filed: set[str] = field(default_factory=set)  # figures and files of the outcome
    refusals: int = 0
    closed: bool = False

    def doubt(self) -> None:
        """After a lost answer: what was confirmed stands, which points have arrived is asked again."""
        self.steps.clear()

    def forget(self) -> None:
        """Believe nothing about the store: it is asked again."""
        self.run_id = None
        self.told.clear()
        self.steps.clear()
        self.filed.clear()

    def as_json(self) -> dict[str, Any]:
        """The wanted part, for the outbox."""
        known = ("run_id", "started", "told", "steps", "filed", "refusals", "closed")
        plain = {item.name: getattr(self, item.name) for item in dataclasses.fields(self) if item.name not in known}
        # Copied at one go: the mirror's thread may be taking points away meanwhile.
        lists = {name: [dataclasses.astuple(point) for point in list(plain[name])] for name in ("points", "curve")}
        return plain | lists | {"outcome": self.outcome and dataclasses.asdict(self.outcome)}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> WantedRun:
        """The inverse of `as_json`."""
        points = {name: [Point(*values) for values in content[name]] for name in ("points", "curve")}
        outcome = content["outcome"] and Outcome(**content["outcome"])
        return cls(**{**content, "points": deque(points["points"]), "curve": points["curve"], "outcome": outcome})


def params(values: Mapping[str, Any]) -> dict[str, str]:
    """Nested values as MLflow parameters: dotted names, long texts cut into numbered parts."""
    found: dict[str, str] = {}
    for key, text in flattened(dict(values)):
        parts = [text[start : start + _PARAMETER] for start in range(0, len(text), _PARAMETER)] or [""]
        found |= {key if number == 0 else f"{key}.part{number + 1}": part for number, part in enumerate(parts)}
    return found
