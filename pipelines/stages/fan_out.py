"""Work of a stage as Ray tasks: connected when there is some, as many in flight as the execution allows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from pipelines.engine.step import Attempt

_IN_LINE = 1  # tasks beyond those at work, so that a worker that is done need not wait for this process to wake up


def fan_out(attempt: Attempt, function: str, items: Sequence[Any]) -> Iterator[tuple[int, Any]]:
    """Yield (index, result) of "package.module:function" for each item as tasks finish; no Ray if there are none.

    ItemFailed names an item that killed its worker three times, TooManyFailures the budget of the execution that is spent.
    """
    if not items:
        return
    from cluster import ray_map, services

    execution, logs = attempt.execution, attempt.scratch / "logs"
    logs.mkdir(exist_ok=True)
    services.connect(execution["ray_address"], execution["cpus"], execution["ray_token"])
    yield from ray_map.map_units(
        function,
        items,
        in_flight=execution["workers"] + _IN_LINE,
        max_failures=execution["max_failures"],
        max_preemptions=execution["max_preemptions"],
        logs=logs,
    )
