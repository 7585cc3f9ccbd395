"""A supervised command comes back when it is killed, and goes with all it started when its supervisor is told to end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from cluster import processes

# A service that starts a process in a session of its own, which would outlive it.
TOY = 'setsid sleep 1000 & echo $! $$ >> "$1"; exec sleep 1000'
SUPERVISOR = """
import os, sys
from cluster import processes, supervise
supervise._YOUNG = float(sys.argv[3])
supervise.supervise(["bash", "-c", sys.argv[1], "toy", sys.argv[2]], {**os.environ, processes.MARK: "toy-" + sys.argv[2]})
"""


def started(file: Path, young: float) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", SUPERVISOR, TOY, str(file), str(young)]
    return subprocess.Popen(command, cwd=Path(__file__).parents[2], stderr=subprocess.PIPE)


def eventually(what: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not what():
        assert time.monotonic() < end
        time.sleep(0.05)


def pids(file: Path) -> list[list[int]]:
    """[descendant, service] of each start so far."""
    return [[int(word) for word in line.split()] for line in file.read_text().splitlines()] if file.exists() else []


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_a_killed_service_comes_back_and_all_of_it_goes_when_it_is_told_to(tmp_path: Path) -> None:
    file = tmp_path / "pids"
    supervisor = started(file, 0)
    eventually(lambda: len(pids(file)) == 1)
    os.kill(pids(file)[0][1], signal.SIGKILL)
    eventually(lambda: len(pids(file)) == 2)
    assert not alive(pids(file)[0][0]), "what the killed one had left is ended first"
    supervisor.send_signal(signal.SIGTERM)
    assert supervisor.wait(60) == 0
    assert not any(alive(pid) for start in pids(file) for pid in start)


def test_a_service_that_never_lives_is_given_up(tmp_path: Path) -> None:
    file = tmp_path / "pids"
    supervisor = started(file, 60)
    for starts in (1, 2):
        eventually(lambda starts=starts: len(pids(file)) == starts)  # type: ignore[misc]
        os.kill(pids(file)[-1][1], signal.SIGKILL)
    assert supervisor.wait(60) == 1
    assert b"ended by itself twice, the last time with -9" in (supervisor.stderr.read() if supervisor.stderr else b"")


def test_a_killed_supervisor_takes_its_service_along_and_the_mark_finds_the_rest(tmp_path: Path) -> None:
    file = tmp_path / "pids"
    supervisor = started(file, 60)
    eventually(lambda: len(pids(file)) == 1)
    known, [[descendant, service]] = processes.known(supervisor.pid), pids(file)
    supervisor.kill()
    supervisor.wait()
    eventually(lambda: not alive(service))
    assert not known.alive() and alive(descendant)
    assert processes.end(known, f"toy-{file}", 1) == 1
    assert not alive(descendant)
