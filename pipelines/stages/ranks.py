"""With how many ranks a training step runs: as many as asked for, fewer where they do not fit, more when they do.

The one idea: the global batch is the recipe's and the ranks share it out, so any divisor of it is a possible number
of ranks, and only the slicing changes.
"""

from __future__ import annotations

import logging
import time
from types import TracebackType
from typing import Any

from cluster import room as rooms
from cluster.room import Room
from pipelines.engine.step import Attempt
from pipelines.stages.budget import newest_checkpoint
from pipelines.stages.stop import Interrupted, Stop

log = logging.getLogger(__name__)
_TRY = 10.0  # seconds in which room that ought to be there is found


def micro_batch_size(job: dict[str, Any], ranks: int) -> int:
    """The most sequences in one forward pass, at most the execution's, that divide what each of `ranks` ranks has."""
    share = job["train"]["global_batch_size"] // ranks
    return max(size for size in range(1, min(share, job["micro_batch_size"]) + 1) if share % size == 0)


def sizes(attempt: Attempt, job: dict[str, Any]) -> list[int]:
    """The possible numbers of ranks, largest first: what was asked for, and its smaller divisors of the global batch."""
    wanted, least = attempt.execution["ranks"], attempt.execution["min_ranks"]
    fewer = [ranks for ranks in range(least, wanted) if job["train"]["global_batch_size"] % ranks == 0]
    return [wanted, *reversed(fewer)]


def found_room(attempt: Attempt, job: dict[str, Any], stop: Stop) -> Room:
    """Room for as many ranks as there is room for, all of them if it comes within `execution.wait_for_ranks`.

    TimeoutError if there is none for the fewest; Interrupted if a stop was asked for meanwhile; RayLost.
    """
    threads, gpu = attempt.execution["threads"], attempt.execution["device"] == "cuda"
    patience, placement = attempt.execution["wait_for_ranks"], attempt.execution["placement"]
    wanted, *fewer = sizes(attempt, job)
    if room := _waited(Room(wanted, threads, gpu, placement), patience, attempt, stop):
        return room
    for ranks in fewer:
        if ranks > rooms.fitting(threads, gpu, placement):
            continue
        if room := _waited(Room(ranks, threads, gpu, placement), _TRY, attempt, stop):
            log.warning("%s: no room for %d ranks after %g s, going on with %d", attempt.name, wanted, patience, ranks)
            return room
    raise TimeoutError(rooms.refusal(min([wanted, *fewer]), rooms.bundle(threads, gpu), patience))


def _waited(room: Room, seconds: float, attempt: Attempt, stop: Stop) -> Room | None:
    """`room` when it is there, None after `seconds` without it. Interrupted if a stop was asked for meanwhile."""
    end = time.monotonic() + seconds
    try:
        while not room.wait(0.5):
            if stop.asked:
                raise Interrupted(f"{attempt.name} stopped while it waited for room for its ranks; run again to go on")
            if time.monotonic() > end:
                room.release()
                return None
    except BaseException:
        room.release()
        raise
    return room


class Growth:
    """Looks for room for the ranks that a smaller gang lacks, and holds it until the gang can take it."""

    def __init__(self, room: Room, attempt: Attempt, job: dict[str, Any]) -> None:
        self._room, self._attempt = room, attempt
        self._more = [ranks for ranks in sizes(attempt, job) if ranks > room.ranks]
        self._extra: Room | None = None
        self._fits = False
        self._seen_at: int | None = None  # the newest checkpoint when the room was there
        self.used = False  # whether the ranks were asked to end for it

    def __enter__(self) -> Growth:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._extra:
            self._extra.release()

    def due(self) -> bool:
        """Whether it is time to end the gang and start a bigger one: there is room, and a checkpoint since it was seen."""
        if not self._more or self.used:
            return False
        self._look()
        if self._extra is None or not self._extra.wait(0) or not self._fits:
            return False
        newest = newest_checkpoint(self._attempt.checkpoints)
        if self._seen_at is None:
            self._seen_at = newest
            log.warning(
                "%s: there is room for %d ranks, taken at the next checkpoint",
                self._attempt.name, self._room.ranks + self._extra.ranks,
            )  # fmt: skip
        self.used = newest > self._seen_at or not self._attempt.execution["checkpoint_every"]
        return self.used

    def _look(self) -> None:
        """Ask for what is missing to the largest number of ranks that fits, or to all where none does: a cluster may grow."""
        room = self._room
        capacity = rooms.fitting(room.threads, room.gpu, room.placement)
        target = next((ranks for ranks in self._more if ranks <= capacity), self._more[0])
        self._fits = target <= capacity  # what is granted beside our own ranks need not be on nodes of its own
        missing = target - self._room.ranks
        if self._extra is None or self._extra.ranks != missing:
            if self._extra:
                self._extra.release()
            self._extra, self._seen_at = Room(missing, room.threads, room.gpu, room.placement), None
