"""Work of a stage as Ray tasks: as many in flight as the execution allows, and what was not finished again where Ray is lost.

The one idea: whoever sends work to a cluster says first, by a fresh stamp in the work directory, what its nodes
have to see there.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cluster import apart
from pipelines.engine.step import Attempt

log = logging.getLogger(__name__)
_IN_LINE = 1  # tasks beyond those at work, so that a worker that is done need not wait for this process to wake up


def connect(attempt: Attempt) -> None:
    """Have the attempt's work done in the execution's Ray. Called early, it gets ready meanwhile."""
    from pipelines.stamps import stamp

    address = attempt.execution["ray_address"]
    shared = None if address == "local" else (str(attempt.root), stamp(attempt.root))
    apart.connect(address, attempt.execution["cpus"], attempt.execution["ray_token"], shared)


def fan_out(attempt: Attempt, function: str, items: Sequence[Any]) -> Iterator[tuple[int, Any]]:
    """Yield (index, result) of "package.module:function" for each item as tasks finish; no Ray if there are none.

    ItemFailed names an item that killed its worker three times, TooManyFailures the budget of the execution that is spent;
    ConnectionError when nothing answers at the execution's address.
    """
    workers, logs = attempt.execution["workers"], attempt.scratch / "logs"
    if items:
        logs.mkdir(exist_ok=True)
        limits = {name: attempt.execution[name] for name in ("max_failures", "max_preemptions")}
        yield from _mapped(attempt, function, items, in_flight=workers and workers + _IN_LINE, logs=logs, **limits)


def one(attempt: Attempt, function: str, item: Any, *, cpus: int, gpus: int, logs: Path) -> Any:
    """The result of "package.module:function" for one item, in one task."""
    ((_, result),) = _mapped(attempt, function, [item], in_flight=1, cpus=cpus, gpus=gpus, logs=logs)
    return result


def _mapped(attempt: Attempt, function: str, items: Sequence[Any], **how: Any) -> Iterator[tuple[int, Any]]:
    """`ray_map.map_units` in the process that uses Ray; again for what has no result yet when that is lost."""
    left = dict(enumerate(items))
    while left:
        connect(attempt)
        numbers = list(left)
        try:
            for position, result in apart.each("cluster.ray_map:map_units", function, list(left.values()), **how):
                del left[numbers[position]]
                yield numbers[position], result
        except apart.Lost as loss:
            log.warning("%s; running what it had not finished again", loss)
