"""Map a function over work items with Ray tasks: bounded in flight, retried, results as they come.

The one idea: work reaches a task as a dotted name and JSON, and comes back as small JSON; data stays in files.
A task may run twice (a worker can die after its work and before its answer), so the functions are such that
both times give the same bytes under the same name.

Retries are counted here, not by Ray, because an item that kills its worker each time has to be named. What dies with
its node, or with Ray itself, is no fault of the item and is counted apart.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ray

from cluster import nodes, services
from cluster.nodes import NodeRefused, Shared

log = logging.getLogger(__name__)
_SETTLING = 0.1  # seconds in which a raylet is dead after its workers are
_LOOK = 2.0  # seconds between two looks at how many nodes there are
_IN_LINE = 1  # tasks beyond those at work, so that a worker that is done need not wait for this process to wake up
_DEATHS = 3  # of one item, after which it is poison
# An exception of the function itself is final, since equal work fails equally; these may pass.
_PASSING = (ConnectionError, TimeoutError, MemoryError)


class ItemFailed(RuntimeError):
    """An item whose worker died, or that failed in passing, too often; the message names it."""


class TooManyFailures(RuntimeError):
    """The tasks of one map died more often, or lost their nodes more often, than was allowed."""


def call(dotted: str, item: Any) -> Any:
    """Call the function "package.module:function" with one item."""
    module, _, name = dotted.partition(":")
    return getattr(importlib.import_module(module), name)(item)


def _logged_call(dotted: str, item: Any, path: str | None, shared: Shared | None) -> Any:
    """`call`, with what this worker prints, and its last words in a crash, at the end of the file `path`.

    NodeRefused if this node does not see the shared folder.
    """
    nodes.admit(shared)
    if path is None:
        return call(dotted, item)
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    before = [os.dup(stream) for stream in (1, 2)]
    faulthandler.enable(file)
    os.write(file, f"process {os.getpid()} begins {dotted} {json.dumps(item)}\n".encode())
    try:
        for stream in (1, 2):
            os.dup2(file, stream)
        return call(dotted, item)
    finally:
        sys.stdout.flush()
        for stream, kept in zip((1, 2), before, strict=True):
            os.dup2(kept, stream)
            os.close(kept)
        faulthandler.disable()
        os.close(file)


class _Slots:
    """How many tasks there may be at a time: a number, or what the nodes have room for."""

    def __init__(self, fixed: int | None) -> None:
        self._fixed, self._found, self._looked_at = fixed, 0, -_LOOK

    def now(self) -> int:
        """The number; nodes are counted again now and then."""
        if self._fixed is None and time.monotonic() - self._looked_at >= _LOOK:
            with services.losses_noticed():
                self._found = sum(int(node["Resources"]["CPU"]) for node in nodes.alive())
            self._looked_at = time.monotonic()
        return self._fixed or max(1, self._found) + _IN_LINE


class _Map:
    """The tasks of one call of `map_units`, and what has become of those that failed."""

    def __init__(self, function: str, items: Sequence[Any], logs: Path | None, limits: tuple[int, int]) -> None:
        self.function, self.items, self.logs = function, items, logs
        self.max_failures, self.max_preemptions = limits
        self.deaths: Counter[int] = Counter()
        self.preemptions = 0

    def log_of(self, index: int) -> Path | None:
        """Where an item that has failed before writes its log: one for each item would be ten thousand empty files."""
        return self.logs / f"task-{index}.log" if self.logs and self.deaths[index] else None

    def failed(self, index: int, reason: str) -> None:
        """Count a failure of an item. ItemFailed at the third of the same, TooManyFailures at more than are allowed of all."""
        path = self.log_of(index)
        self.deaths[index] += 1
        what = f"{self.function}, item {index} of {len(self.items)} ({json.dumps(self.items[index])[:300]})"
        if self.deaths[index] == _DEATHS:
            raise ItemFailed(
                f"{what} failed {_DEATHS} times; the last time: {reason}" + (f"; read {path}" if path else "")
            )
        if self.deaths.total() > self.max_failures:
            raise TooManyFailures(
                f"{self.deaths.total()} tasks failed, execution.max_failures={self.max_failures} allows no more; "
                f"the last: {what}: {reason}"
            )
        log.warning("%s: %s; running it again", what, reason)

    def preempted(self, reason: str) -> None:
        """Count a loss that is no item's fault. TooManyFailures at more than are allowed."""
        self.preemptions += 1
        if self.preemptions > self.max_preemptions:
            raise TooManyFailures(
                f"tasks of {self.function} lost their node or their Ray {self.preemptions} times, "
                f"execution.max_preemptions={self.max_preemptions} allows no more; the last: {reason}"
            )
        log.warning("%s; running what it had not finished again", reason)


def map_units(
    function: str,
    items: Sequence[Any],
    *,
    in_flight: int | None,
    max_failures: int = 10,
    max_preemptions: int = 100,
    logs: Path | None = None,
    cpus: float = 1,
    gpus: float = 0,
    max_calls: int = 64,
) -> Iterator[tuple[int, Any]]:
    """Yield (index, result) in the order of completion.

    At most `in_flight` tasks exist at a time, so memory and the object store do not grow with `items`; if None, as many as
    the nodes have CPUs, also while nodes come and go, and one in line. An item whose
    worker died is run again, with a log in the folder `logs`; ItemFailed names the one whose third worker died. When
    the Ray of this process was lost, it is started again for what has no result yet. An exception of the function itself is
    final, and is raised here as itself. Workers are replaced after `max_calls` tasks, because tokenizers keep memory.
    """
    state = _Map(function, items, logs, (max_failures, max_preemptions))
    waiting = list(range(len(items)))[::-1]
    while waiting:
        remote = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0, max_calls=max_calls)(_logged_call)
        running: dict[Any, int] = {}
        try:
            slots = _Slots(in_flight)
            while waiting or running:
                while len(running) < slots.now() and waiting:
                    path = state.log_of(waiting[-1])
                    reference = remote.options(label_selector=nodes.selector()).remote(
                        function, items[waiting[-1]], str(path) if path else None, nodes.required()
                    )
                    running[reference] = waiting.pop()
                services.check()
                with services.losses_noticed():
                    ended = ray.wait(list(running), num_returns=1, timeout=0.5)[0]
                for reference in ended:
                    waiting.append(running.pop(reference))  # to be run again, unless it has answered
                    with services.losses_noticed():
                        answered, result = _result(reference, waiting[-1], state)
                    if answered:
                        yield waiting.pop(), result
        except services.RayLost as loss:
            waiting += running.values()
            running.clear()
            state.preempted(str(loss))
            services.reconnect()
        finally:
            for reference in running:
                ray.cancel(reference, force=True)


def _result(reference: Any, index: int, state: _Map) -> tuple[bool, Any]:
    """(True, result) of a task that has ended, or (False, None) if its item is to be run again."""
    try:
        return True, ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, NodeRefused):
            nodes.refuse(error.cause)
            return False, None
        if not isinstance(error.cause, _PASSING):
            # The function's own exception, with the remote traceback as its cause, rather than a wrapper's text.
            raise error.cause if isinstance(error.cause, Exception) else error from error
        state.failed(index, f"{type(error.cause).__name__}: {error.cause}")
    except (ray.exceptions.NodeDiedError, ray.exceptions.ObjectLostError) as error:
        services.check(_SETTLING)
        state.preempted(f"the node that ran item {index} of {state.function} was lost ({error})")
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
        services.check(_SETTLING)
        state.failed(
            index, "its worker " + ("ran out of memory" if "OutOfMemory" in type(error).__name__ else "was killed")
        )
    return False, None
