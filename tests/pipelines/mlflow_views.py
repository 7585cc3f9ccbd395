"""What tests see of MLflow, asked of the store itself: runs by their tags, points of a metric in order."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from pipelines import registry

RECIPE = {"name": "tiny", "pretrain": {"max_steps": 5, "sources": ["a", "b"]}, "note": "x" * 13_000}


def line(step: int, **figures: float) -> str:
    return json.dumps({"step": step, "loss": 10.0 / step, **figures}) + "\n"


def runs(store: Any, identity: dict[str, str]) -> list[Any]:
    client = registry.connect(store)
    where = " and ".join(f"tags.`{key}` = '{value}'" for key, value in identity.items())
    return list(client.search_runs([registry.experiment_id(client)], where))


def history(store: Any, run: Any, key: str = "loss") -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in registry.connect(store).get_metric_history(run.info.run_id, key)]


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not happen within a minute"
        time.sleep(0.2)
