"""Checkpoints on their way to the disk while training goes on.

The one idea: training waits only until its state is copied. A thread of each rank writes, flushes and hashes the copies;
the ranks learn in the vote of every step when all threads are done, gather the entries of the manifest, and a
thread of rank 0 publishes. Threads never talk to other ranks, and there is at most one checkpoint under way: the next
waits for it, so a disk that is slower than the cadence slows training down instead of filling the memory.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, cast

import torch

from model import durable
from model.checkpoint import STATE, Checkpoint, CheckpointError, Entries, Shelf
from model.snapshot import HostBuffers, capture
from model.world import World

log = logging.getLogger(__name__)


def write(staging: Path, shards: list[tuple[Path, Any]], files: Mapping[str, bytes]) -> Entries:
    """Write this rank's state, and `files` by name, into `staging` and flush them to the disk; their manifest entries.

    OSError names the file.
    """
    torch.serialization.set_crc32_options(False)  # it takes longer than everything else, and every file has a SHA-256
    entries: Entries = []
    for path, state in shards:
        with durable.hashing(path) as file:
            torch.save(state, cast(Any, file))
        entries.append({"path": path.relative_to(staging).as_posix(), "size": file.size, "sha256": file.sha256})
    for name, data in files.items():
        with durable.hashing(staging / name) as file:
            file.write(data)
        entries.append({"path": name, "size": file.size, "sha256": file.sha256})
    return entries


@dataclass
class _UnderWay:
    """A checkpoint that is being written (`entries`) or published (`published`, on rank 0 only)."""

    staging: Path
    step: int
    permanent: bool
    facts: dict[str, Any]  # of its manifest
    entries: Future[Entries]
    published: Future[Checkpoint] | None = None
    agreed: bool = False  # all files are written, and every rank knows

    @property
    def work(self) -> Future[Any]:
        """What this rank's thread does or did last for it."""
        return self.published or self.entries


class Saver:
    """Publishes an engine's states. Every rank calls the same methods at the same steps."""

    def __init__(self, engine: Any, world: World, shelf: Shelf, zero_stage: int) -> None:
        self._engine, self._world, self._shelf = engine, world, shelf
        self._facts = {"world_size": world.size, "zero_stage": zero_stage}
        self._buffers = HostBuffers(pinned=world.device.type == "cuda")
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._under_way: _UnderWay | None = None
        self.stood_still: list[float] = []  # seconds that training waited for each checkpoint

    @property
    def step(self) -> int | None:
        """The step of the newest checkpoint that was published or is under way."""
        if self._under_way:
            return self._under_way.step
        return self._shelf.newest.step if self._shelf.newest else None

    @property
    def busy(self) -> bool:
        """Whether this rank's thread is still at work."""
        return self._under_way is not None and not self._under_way.work.done()

    def begin(self, step: int, files: Mapping[str, bytes], history: list[dict[str, Any]], *, permanent: bool) -> None:
        """Copy the state after `step` optimizer steps; its checkpoint appears later. Waits for the one before.

        `files` are what rank 0 adds, by name: the metrics so far, and whatever else is known only from earlier steps.
        Errors as `finish`, and FileNotFoundError when the attempt was taken over.
        """
        began = time.perf_counter()
        if self._under_way:
            self._make_room(self._under_way.step, step)
        staging = Path(self._world.from_first(lambda: str(self._stage(step))))
        shards = capture(self._engine, staging / STATE, self._buffers)
        facts = self._facts | {"step": step, "history": history}
        entries = self._thread.submit(write, staging, shards, files if self._world.is_first else {})
        self._under_way = _UnderWay(staging, step, permanent, facts, entries)
        self.stood_still.append(time.perf_counter() - began)

    def advance(self) -> None:
        """Bring the checkpoint under way one stage further, if there is one. To be called by all when none is busy.

        CheckpointError on all ranks if a file could not be written or published: then nothing was published.
        """
        current, began = self._under_way, time.perf_counter()
        if current is None:
            return
        if current.agreed:
            self._shelf.newest = self._world.from_first(lambda: self._published(current))
            self._under_way = None
        else:
            current.facts["files"] = self._agreed(current)
            current.agreed = True
            if self._world.is_first:
                publish = self._shelf.publish
                current.published = self._thread.submit(
                    publish, current.staging, current.facts, permanent=current.permanent
                )
        self.stood_still[-1] += time.perf_counter() - began

    def finish(self) -> None:
        """Wait until the checkpoint under way is published. Errors as `advance`."""
        while self._under_way:
            wait([self._under_way.work])
            self.advance()

    def _stage(self, step: int) -> Path:
        self._shelf.require_attempt()
        try:
            return self._shelf.stage(step)
        except OSError as error:
            raise self._refusal(step, self._shelf.start, str(error)) from error

    def _make_room(self, before: int, step: int) -> None:
        """Wait for the checkpoint of step `before`, because that of `step` is due."""
        began = time.perf_counter()
        self.finish()
        log.warning(
            "the checkpoint of step %d was not published when that of step %d was due: training waited %.1f s; the disk is "
            "slower than checkpoint_seconds and checkpoint_every ask for",
            before, step, time.perf_counter() - began,
        )  # fmt: skip

    def close(self) -> None:
        """Let go of thread and buffers, when nothing is under way any more."""
        self._thread.shutdown()
        self._buffers = HostBuffers(pinned=False)

    def _agreed(self, current: _UnderWay) -> Entries:
        """The entries of all ranks, sorted by path. If one failed, CheckpointError on all of them."""
        error = current.entries.exception()
        answer = (None, f"{type(error).__name__}: {error}") if error else (current.entries.result(), None)
        answers = self._world.gather(answer)
        failures = [f"rank {rank}: {failure}" for rank, (_, failure) in enumerate(answers) if failure]
        if failures:
            self._give_up(current, "; ".join(failures), error)
        return sorted((entry for entries, _ in answers for entry in entries), key=lambda entry: str(entry["path"]))

    def _published(self, current: _UnderWay) -> Checkpoint:
        assert current.published is not None
        error = current.published.exception()
        if error and not isinstance(error, CheckpointError):
            self._give_up(current, f"{type(error).__name__}: {error}", error)
        return current.published.result()

    def _give_up(self, current: _UnderWay, why: str, cause: BaseException | None) -> NoReturn:
        """Remove what was written and say what happened. Every rank comes here, or rank 0 alone with all others waiting."""
        self._under_way = None
        if self._world.is_first:
            try:
                durable.remove_tree(current.staging)
            except OSError as error:  # on a disk that takes no changes; the error below matters more
                log.warning("%s stays until the next start sweeps it: %s", current.staging, error)
        self._shelf.require_attempt()
        raise self._refusal(current.step, current.staging, why) from cause

    def _refusal(self, step: int, folder: Path, why: str) -> CheckpointError:
        newest = self._shelf.newest
        return CheckpointError(
            f"the checkpoint of step {step} could not be written to {folder} ({why}). Nothing was published that is not "
            f"whole; the last good one is {newest.folder if newest else 'none'}. Make room on that disk and make it "
            "writable, and run again: training continues from there"
        )
