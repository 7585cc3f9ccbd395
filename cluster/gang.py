"""Run and supervise the ranks of one training job: all of them, or none.

The one idea: ranks are plain Ray actors in a placement group, started by a dotted name with the environment that
torchrun would give (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT), so the same function runs under both.
If one rank dies the others are killed, because a collective never returns without it; `restart` starts all of
them again and the function resumes from its own checkpoint. Standbys, which have imported everything beside the running
ranks, make that quick: Python's, torch's and DeepSpeed's start is most of a restart.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import ray

from cluster import interfaces, nodes, services
from cluster import room as rooms
from cluster.nodes import NodeRefused
from cluster.rank_process import Place, Preempted, _Rank
from cluster.room import Room

log = logging.getLogger(__name__)
_GRACE = 5.0  # seconds in which a death that made another rank fail becomes known
_SETTLING = 0.1  # seconds in which a raylet is dead after its workers noticed
_DYING = 10.0  # seconds in which a killed rank's process ends
_STARTING = 120.0  # seconds in which a rank's process starts
# What Ray calls the end of a rank's process. One that it ended itself, for want of memory, is of another kind than the rest.
_ENDED = (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError)
# What torch calls a broken connection between ranks, by the names of its exceptions and in gloo's own words.
_LINK_ERRORS = {"DistBackendError", "DistNetworkError", "DistStoreError"}


class RankDied(RuntimeError):
    """A rank's process ended without an answer: killed, out of memory, or its node lost."""

    def __init__(self, rank: int, reason: str, log_file: Path | None = None) -> None:
        super().__init__(f"rank {rank} died: {reason}" + (f" (its log is {log_file})" if log_file else ""))
        self.rank, self.log_file = rank, log_file


class NodeLost(RuntimeError):
    """A node that ranks ran on is gone, or may not be used: there is nothing to restart in its place."""


class Gang:
    """The running ranks of one job. Leaving the `with` block ends them all.

        with Room(2, threads=1) as room, Gang("model.train:run_rank", job, room) as gang:
            while not gang.wait(0.5):
                ...look at the job's progress files...
            results = gang.results()

    `standby` ("package.module:function", called with the job) is what a standby does to be ready. `interface` is what the
    ranks talk over, found by itself if None. Each rank's output goes to `logs`/rank-N.log. TimeoutError if the room is
    not there in `ready_seconds`. `look` is called every second while the ranks are being placed: what it raises ends that.
    """

    def __init__(
        self,
        function: str,
        job: Any,
        room: Room,
        *,
        standby: str | None = None,
        interface: str | None = None,
        logs: Path | None = None,
        ready_seconds: float = 120,
        look: Callable[[], None] = lambda: None,
    ) -> None:
        self._function, self._job, self._room, self._standby, self._logs = function, job, room, standby, logs
        self._interface, self._ready_seconds, self._look = interface, ready_seconds, look
        self._actors: list[Any] = []
        self._running: list[Any] = []
        self._waiting: list[Any] = []
        self._standbys: dict[int, Any] = {}
        self._places: list[Place] = []
        self._gpus: dict[int, str] = {}  # which one Ray gave to each place; a standby asks for none, and is told

    def __enter__(self) -> Gang:
        end = time.monotonic() + self._ready_seconds
        while not self._room.wait(1.0):
            self._look()
            if time.monotonic() > end:
                raise TimeoutError(rooms.refusal(self._room.ranks, self._room.bundle, self._ready_seconds))
        try:
            with services.losses_noticed():
                self._start()
        except BaseException:
            self._kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._kill()

    def wait(self, seconds: float) -> bool:
        """Whether all ranks have answered, after at most `seconds`. RankDied, NodeLost, RayLost, Preempted, or the function's own exception."""
        services.check()
        with services.losses_noticed():
            finished, self._waiting = ray.wait(self._waiting, num_returns=1, timeout=seconds)
            failures = self._failures(finished)
            if failures and self._waiting and not any(_precedence(failure) == 0 for failure in failures):
                # A death reaches the survivors, as a broken connection, sooner than it reaches us.
                late, self._waiting = ray.wait(self._waiting, num_returns=len(self._waiting), timeout=_GRACE)
                failures += self._failures(late)
        if failures:
            services.check(_SETTLING)
            raise min(failures, key=_precedence)
        return not self._waiting

    def results(self) -> list[Any]:
        """What the function returned, by rank."""
        return ray.get(self._running)

    def prepare(self) -> None:
        """Start standbys where there are none. They cost the ranks little, but let these make their first steps before."""
        for index in range(self._room.ranks if self._standby else 0):
            if index not in self._standbys:
                actor = self._actor(index, reserve=False)
                actor.warm_up.remote(self._standby, self._job, self._devices(index))
                self._standbys[index] = actor

    def restart(self) -> None:
        """Kill what is left of the ranks, and start all of them again: standbys where there are some.

        NodeLost if a node is gone, RayLost, TimeoutError.
        """
        for actor in self._actors:
            ray.kill(actor)
        ray.wait(
            self._running, num_returns=len(self._running), timeout=_DYING
        )  # two rank 0s would write the same files
        self._check_nodes()  # Ray may have found another place by now: it is a loss all the same, and no failure
        self._start()

    def _start(self) -> None:
        standbys, self._standbys = self._standbys, {}
        self._actors = [standbys.get(index) or self._actor(index, reserve=True) for index in range(self._room.ranks)]
        asked = [self._asked(actor) for actor in self._actors]
        self._places = [self._placed(index, reference) for index, reference in enumerate(asked)]
        self._gpus |= {index: place.gpus for index, place in enumerate(self._places) if index not in standbys}
        self._running = [
            actor.run.remote(
                self._function, self._job, environment, interface, str(self._log(index)) if self._logs else None
            )
            for index, (actor, (environment, interface)) in enumerate(
                zip(self._actors, self._environments(), strict=True)
            )
        ]
        self._waiting = list(self._running)
        log.log(logging.WARNING if nodes.required() else logging.INFO, "%s", self.whereabouts())

    def _hosts(self) -> int:
        return len({place.node for place in self._places})

    def whereabouts(self) -> str:
        """Which rank is where, in one line."""
        ranks: dict[str, list[str]] = {}
        for rank, place in enumerate(self._places):
            ranks.setdefault(f"{place.name} ({place.address}, {place.interface})", []).append(str(rank))
        where = "; ".join(f"{', '.join(numbers)} on {host}" for host, numbers in ranks.items())
        counts = [
            f"{n} {what}{'s' if n > 1 else ''}" for n, what in ((len(self._places), "rank"), (len(ranks), "host"))
        ]
        return f"{counts[0]} on {counts[1]}: {where}"

    def _asked(self, actor: Any) -> Any:
        return actor.place.remote(self._interface, nodes.required())

    def _actor(self, index: int, *, reserve: bool) -> Any:
        """A new process at the place of rank `index`. Only one that starts as a rank reserves what the place has."""
        cpus, gpus = (self._room.threads, int(self._room.gpu)) if reserve else (0, 0)
        return (
            ray.remote(_Rank)
            .options(num_cpus=cpus, num_gpus=gpus, scheduling_strategy=self._room.place(index))
            .remote()
        )

    def _placed(self, index: int, asked: Any) -> Place:
        """Where the process of rank `index` is, when it is up; a standby that died meanwhile is replaced by a new process."""
        for _ in range(int(_STARTING)):
            services.check()
            self._look()
            if not ray.wait([asked], timeout=1.0)[0]:
                self._check_nodes()
                continue
            try:
                return ray.get(asked)
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, NodeRefused):
                    nodes.refuse(error.cause)
                    raise NodeLost(f"the node for rank {index} was refused") from error
                raise error.cause if isinstance(error.cause, Exception) else error from error
            except _ENDED as error:
                log.warning("the process for rank %d ended before it began: %s", index, _reason(error))
                self._check_nodes()
                self._actors[index] = self._actor(index, reserve=True)
                asked = self._asked(self._actors[index])
        raise TimeoutError(f"rank {index} has no running process after {_STARTING:.0f} s, though there is room for it")

    def _check_nodes(self) -> None:
        """NodeLost if one of the nodes that the ranks were last placed on is gone."""
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        for rank, place in enumerate(self._places):
            if place.node not in alive:
                raise NodeLost(f"the node of rank {rank}, {place.name} ({place.address}), is gone")

    def _kill(self) -> None:
        for actor in [*self._actors, *self._standbys.values()] if not services.lost() else []:
            ray.kill(actor)

    def _log(self, rank: int) -> Path | None:
        return self._logs / f"rank-{rank}.log" if self._logs else None

    def _environments(self) -> list[tuple[dict[str, str], str | None]]:
        """The variables of each rank, and its interface. The master is rank 0's host, at a port that was free there a moment ago.

        Ranks that are all on one host talk over its loopback, and nobody else can listen.
        """
        master = self._places[0]
        alone = self._hosts() == 1 and not self._interface
        address = interfaces.LOOPBACK if alone else master.address
        before: dict[str, int] = {}  # ranks placed so far, by node
        environments = []
        for rank, place in enumerate(self._places):
            environment = {
                "RANK": str(rank),
                "WORLD_SIZE": str(len(self._places)),
                # A Ray actor sees only its own GPU, as number 0.
                "LOCAL_RANK": "0" if self._room.gpu else str(before.get(place.node, 0)),
                "MASTER_ADDR": address,
                "MASTER_PORT": str(master.port),
            }
            interface = interfaces.interface_of(interfaces.LOOPBACK) if alone else place.interface
            environments.append((environment | self._devices(rank), interface))
            before[place.node] = before.get(place.node, 0) + 1
        return environments

    def _devices(self, rank: int) -> dict[str, str]:
        """The variables that say what a rank may compute on; they count from the first import of torch on."""
        gpus = {"CUDA_VISIBLE_DEVICES": self._gpus[rank]} if self._room.gpu else {}
        return {"OMP_NUM_THREADS": str(self._room.threads)} | gpus

    def _failures(self, references: list[Any]) -> list[Exception]:
        """What went wrong in the ranks that have answered: their own exceptions, or RankDied."""
        found: list[Exception] = []
        for reference in references:
            rank = self._running.index(reference)
            try:
                ray.get(reference)
            except _ENDED as error:
                found.append(RankDied(rank, _reason(error), self._log(rank)))
            except ray.exceptions.RayTaskError as error:
                cause = error.cause if isinstance(error.cause, Exception) else error
                found.append(_LostPeers(rank, _first_line(cause), self._log(rank)) if _is_link_error(cause) else cause)
        return found


class _LostPeers(RankDied):
    """A rank that lives but has lost its connection to another, of whose death nothing is known."""


def _precedence(failure: Exception) -> int:
    """Which of several failures is the cause: a death, then SIGTERM, then an error that says something, then one that tells of another."""
    if isinstance(failure, RankDied):
        return 1 if isinstance(failure, _LostPeers) else 0
    return 2 if isinstance(failure, Preempted) else 4 if type(failure).__name__ == "RankZeroFailed" else 3


def _is_link_error(error: Exception) -> bool:
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & _LINK_ERRORS) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _reason(error: Exception) -> str:
    """Ray's explanation of a death, without its general advice."""
    detail = str(error).partition("Worker exit detail:")[2] or str(error).replace("\n", " ")
    detail = detail.partition("Ray killed this worker")[0]
    return detail.partition("Some common causes")[0].partition("To troubleshoot")[0].strip().rstrip(".")
