"""Work of a stage as Ray tasks: connected when there is some, as many in flight as the execution allows.

The one idea: whoever sends work to a cluster says first, by a fresh stamp in the work directory, what its nodes
have to see there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from pipelines.engine.step import Attempt

_IN_LINE = 1  # tasks beyond those at work, so that a worker that is done need not wait for this process to wake up


def connect(attempt: Attempt) -> None:
    """Start or join the execution's Ray, for work on the attempt. ConnectionError when nothing answers there."""
    from cluster import nodes, services
    from pipelines.stamps import stamp

    address = attempt.execution["ray_address"]
    services.connect(address, attempt.execution["cpus"], attempt.execution["ray_token"])
    nodes.require(None if address == "local" else nodes.Shared(str(attempt.root), stamp(attempt.root)))


def fan_out(attempt: Attempt, function: str, items: Sequence[Any]) -> Iterator[tuple[int, Any]]:
    """Yield (index, result) of "package.module:function" for each item as tasks finish; no Ray if there are none.

    ItemFailed names an item that killed its worker three times, TooManyFailures the budget of the execution that is spent.
    """
    if not items:
        return
    from cluster import ray_map

    execution, logs = attempt.execution, attempt.scratch / "logs"
    logs.mkdir(exist_ok=True)
    connect(attempt)
    yield from ray_map.map_units(
        function,
        items,
        in_flight=execution["workers"] and execution["workers"] + _IN_LINE,
        max_failures=execution["max_failures"],
        max_preemptions=execution["max_preemptions"],
        logs=logs,
    )
