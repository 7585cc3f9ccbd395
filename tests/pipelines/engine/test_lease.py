"""One owner at a time; whoever was overtaken, however late it wakes, cannot publish."""

from __future__ import annotations

import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from model import durable
from pipelines.engine import lease as leases
from pipelines.engine import owning

HOLD = """
import sys, time
from pathlib import Path
from pipelines.engine import lease
held = lease.acquire(Path(sys.argv[1]), 2.0)
print(held.attempt.name, flush=True)
time.sleep(600)
"""


def holder(folder: Path) -> tuple[subprocess.Popen[str], str]:
    """Another process that owns `folder`, and the name of its attempt."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def test_a_released_lease_is_taken_at_once_with_a_new_attempt(tmp_path: Path) -> None:
    first = leases.acquire(tmp_path, 2.0)
    first.release()
    second = leases.acquire(tmp_path, 2.0)
    assert second.attempt != first.attempt and second.attempt.is_dir() and not first.attempt.exists()
    second.release()


def test_a_living_owner_is_named_and_not_overtaken(tmp_path: Path) -> None:
    process, attempt = holder(tmp_path)
    try:
        with pytest.raises(leases.Busy, match=f"process {process.pid} on .*{attempt}"):
            leases.acquire(tmp_path, 2.0, wait=False)
        assert leases.current_owner(tmp_path) is not None
        won: list[leases.Lease] = []
        candidate = threading.Thread(target=lambda: won.append(leases.acquire(tmp_path, 2.0)))
        candidate.start()
        candidate.join(3.0)  # longer than the lease: the owner's heartbeat keeps it
        assert candidate.is_alive() and not won
    finally:
        process.kill()
        process.wait()
    candidate.join(30.0)
    won[0].release()


def test_a_killed_owner_on_this_host_is_overtaken_at_once(tmp_path: Path) -> None:
    process, attempt = holder(tmp_path)
    process.kill()
    process.wait()
    started = time.monotonic()
    lease = leases.acquire(tmp_path, 60.0)
    assert time.monotonic() - started < 5
    assert not (tmp_path / "attempts" / attempt).is_dir()
    lease.release()


def test_a_frozen_owner_is_overtaken_and_cannot_publish_when_it_wakes(tmp_path: Path) -> None:
    process, attempt = holder(tmp_path)
    draft = tmp_path / "attempts" / attempt / "record.json"
    draft.write_text("late")
    os.kill(process.pid, signal.SIGSTOP)
    try:
        lease = leases.acquire(tmp_path, 1.0)
        with pytest.raises((FileNotFoundError, NotADirectoryError)):
            durable.link(draft, tmp_path / "record.json")
        with pytest.raises((FileExistsError, NotADirectoryError)):
            draft.parent.mkdir(parents=True)  # as a library of a late worker would
        assert not (tmp_path / "record.json").exists()
        lease.release()
    finally:
        process.kill()
        process.wait()


def _compete(folder: str, barrier: object, winners: object) -> None:
    barrier.wait()  # type: ignore[attr-defined]
    try:
        lease = leases.acquire(Path(folder), 5.0, wait=False)
    except leases.Busy:
        return
    winners.put(lease.attempt.name)  # type: ignore[attr-defined]
    time.sleep(1.0)
    lease.release()


def test_of_many_candidates_exactly_one_becomes_owner(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    for round_number in range(5):
        folder = tmp_path / str(round_number)
        barrier, winners = context.Barrier(8), context.Queue()
        processes = [context.Process(target=_compete, args=(str(folder), barrier, winners)) for _ in range(8)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        assert winners.qsize() == 1


def test_a_clock_that_is_set_back_is_a_sign_of_life_like_any_other(tmp_path: Path) -> None:
    """What counts is that the time stamp changes, by the watcher's own clock that nobody sets."""
    process, attempt = holder(tmp_path)
    os.kill(process.pid, signal.SIGSTOP)  # we move its time stamp instead
    lease = tmp_path / "lease" / f"{attempt.partition('-')[0]}.json"
    try:
        stop = threading.Event()

        def backwards() -> None:
            hours = 0
            while not stop.wait(0.1):
                hours += 1
                os.utime(lease, (-3600 * hours + 1e9, -3600 * hours + 1e9))

        clock = threading.Thread(target=backwards)
        clock.start()
        won: list[leases.Lease] = []
        candidate = threading.Thread(target=lambda: won.append(leases.acquire(tmp_path, 2.5)))
        candidate.start()
        candidate.join(3.5)
        assert candidate.is_alive() and not won
        stop.set()
        candidate.join(30.0)
        assert won
        won[0].release()
        clock.join()
    finally:
        process.kill()
        process.wait()


def test_work_whose_folder_was_removed_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "letters-0123456789ab"
    with pytest.raises(leases.Overtaken, match="somebody removed"):
        with owning.owning(folder, 2.0, wait=False, on_wait=lambda owner: None) as scratch:
            shutil.rmtree(folder)
            (scratch / "draft").write_text("late")


def test_nothing_of_the_engine_reads_the_time_of_day_but_for_words_and_for_caches() -> None:
    """Clocks of two hosts differ, and any clock may be set back."""
    readers = {
        path.name
        for path in Path(leases.__file__).parent.glob("*.py")
        if re.search(r"time\.time|datetime\.now|utcnow|datetime\.datetime\.now", path.read_text())
    }
    assert readers == {"digests.py", "record.py"}  # which signatures are old enough; when a step began and ended
