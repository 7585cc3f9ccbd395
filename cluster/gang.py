"""Place and supervise the ranks of one training job: all of them, or none.

The one idea: ranks are plain Ray actors in a placement group, started by a dotted name with the environment that
torchrun would give (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT), so the same function runs under both.
If one rank dies the others are killed, because a collective never returns without it; the caller starts
the gang again and the function resumes from its own checkpoint.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.ray_map import call

_GRACE = 5.0  # seconds in which a death that made another rank fail becomes known


class RankDied(RuntimeError):
    """A rank's process ended without an answer: killed, out of memory, or its node lost."""


class _Rank:
    """One rank: a process that tells its address, then runs the job once, in its main thread."""

    def address(self) -> tuple[str, int, str]:
        """(host address, a free port, node id)."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return ray.util.get_node_ip_address(), probe.getsockname()[1], ray.get_runtime_context().get_node_id()

    def run(self, function: str, job: Any, environment: Mapping[str, str]) -> Any:
        """Run the job's function under `environment`."""
        os.environ.update(environment)
        return call(function, job)


class Gang:
    """The running ranks of one job. Leaving the `with` block ends them all.

        with Gang("model.train:run_rank", job, ranks=2, threads=1) as gang:
            while not gang.wait(0.5):
                ...look at the job's progress files...
            results = gang.results()

    Each rank reserves `threads` CPUs, and one GPU if `gpu`. TimeoutError if they are not there in `ready_seconds`.
    """

    def __init__(
        self, function: str, job: Any, *, ranks: int, threads: int, gpu: bool = False, ready_seconds: float = 120
    ) -> None:
        self._function, self._job, self._ranks, self._threads, self._gpu = function, job, ranks, threads, gpu
        self._ready_seconds = ready_seconds
        self._actors: list[Any] = []
        self._running: list[Any] = []

    def __enter__(self) -> Gang:
        bundle = {"CPU": self._threads} | ({"GPU": 1} if self._gpu else {})
        self._group = placement_group([bundle] * self._ranks, strategy="PACK")
        try:
            self._wait_for_room(bundle)
            self._start()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def wait(self, seconds: float) -> bool:
        """Whether all ranks have answered, after at most `seconds`. RankDied, or the function's own exception."""
        finished, remaining = ray.wait(self._running, num_returns=self._ranks, timeout=seconds)
        failures = self._failures(finished)
        if failures and remaining and not any(isinstance(failure, RankDied) for failure in failures):
            # A death reaches the survivors, as a broken connection, sooner than it reaches us.
            late, _ = ray.wait(remaining, num_returns=len(remaining), timeout=_GRACE)
            failures += self._failures(late)
        if failures:
            raise next((failure for failure in failures if isinstance(failure, RankDied)), failures[0])
        return not remaining

    def results(self) -> list[Any]:
        """What the function returned, by rank."""
        return ray.get(self._running)

    def _start(self) -> None:
        rank = ray.remote(_Rank)
        self._actors = [
            rank.options(
                num_cpus=self._threads,
                num_gpus=1 if self._gpu else 0,
                scheduling_strategy=PlacementGroupSchedulingStrategy(self._group, index),
            ).remote()
            for index in range(self._ranks)
        ]
        addresses = ray.get([actor.address.remote() for actor in self._actors])
        self._running = [
            actor.run.remote(self._function, self._job, environment)
            for actor, environment in zip(self._actors, self._environments(addresses), strict=True)
        ]

    def _end(self) -> None:
        for actor in self._actors:
            ray.kill(actor)
        remove_placement_group(self._group)

    def _wait_for_room(self, bundle: Mapping[str, float]) -> None:
        if not self._group.wait(timeout_seconds=self._ready_seconds):
            raise TimeoutError(
                f"no room for {self._ranks} ranks of {dict(bundle)} after {self._ready_seconds:.0f} s; the cluster has "
                f"{ray.cluster_resources()}, free are {ray.available_resources()}: lower execution.ranks or "
                "execution.threads, or add nodes"
            )

    def _environments(self, addresses: list[tuple[str, int, str]]) -> list[dict[str, str]]:
        """The variables of each rank. The master is rank 0's host, at a port that was free there a moment ago."""
        host, port, _ = addresses[0]
        before: dict[str, int] = {}  # ranks placed so far, by node
        environments = []
        for rank, (_, _, node) in enumerate(addresses):
            environments.append(
                {
                    "RANK": str(rank),
                    "WORLD_SIZE": str(len(addresses)),
                    # A Ray actor sees only its own GPU, as number 0.
                    "LOCAL_RANK": "0" if self._gpu else str(before.get(node, 0)),
                    "MASTER_ADDR": host,
                    "MASTER_PORT": str(port),
                    "OMP_NUM_THREADS": str(self._threads),
                }
            )
            before[node] = before.get(node, 0) + 1
        return environments

    def _failures(self, references: list[Any]) -> list[Exception]:
        """What went wrong in the ranks that have answered: their own exceptions, or RankDied."""
        found: list[Exception] = []
        for reference in references:
            try:
                ray.get(reference)
            except ray.exceptions.RayActorError as error:
                found.append(RankDied(f"rank {self._running.index(reference)} died: {error}"))
            except ray.exceptions.RayTaskError as error:
                found.append(error.cause if isinstance(error.cause, Exception) else error)
        return found
