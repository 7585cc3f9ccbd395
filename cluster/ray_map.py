"""Map a function over work items with Ray tasks: bounded in flight, retried, results as they come.

The one idea: work reaches a task as a dotted name and JSON, and comes back as small JSON; data stays in files.
A task may run twice (a worker can die after its work and before its answer), so the functions are such that
both times give the same bytes under the same name.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from typing import Any

import ray


def call(dotted: str, item: Any) -> Any:
    """Call the function "package.module:function" with one item."""
    module, _, name = dotted.partition(":")
    return getattr(importlib.import_module(module), name)(item)


def map_units(
    function: str,
    items: Sequence[Any],
    *,
    in_flight: int,
    retries: int = 3,
    cpus: float = 1,
    gpus: float = 0,
    max_calls: int = 64,
) -> Iterator[tuple[int, Any]]:
    """Yield (index, result) in the order of completion.

    At most `in_flight` tasks exist at a time, so memory and the object store do not grow with `items`. A task whose
    worker died is tried `retries` times more; an exception of the function itself is final, since equal work
    fails equally, and is raised here as itself. Workers are replaced after `max_calls` tasks, because tokenizers
    keep memory.
    """
    remote = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=retries, max_calls=max_calls)(call)
    waiting = iter(enumerate(items))
    running: dict[Any, int] = {}
    try:
        while True:
            while len(running) < in_flight and (following := next(waiting, None)) is not None:
                running[remote.remote(function, following[1])] = following[0]
            if not running:
                return
            finished, _ = ray.wait(list(running), num_returns=1)
            for reference in finished:
                yield running.pop(reference), _result(reference)
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


def run_one(function: str, item: Any, *, cpus: float = 1, gpus: float = 0, retries: int = 3) -> Any:
    """Run one function in one task and return its result."""
    return next(result for _, result in map_units(function, [item], in_flight=1, cpus=cpus, gpus=gpus, retries=retries))


def _result(reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        # The function's own exception, with the remote traceback as its cause, rather than a wrapper's text.
        raise error.cause if isinstance(error.cause, Exception) else error from error
