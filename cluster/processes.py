"""Processes of a service: started apart from whoever asks for them, found again, and ended with all they started.

The one idea: a process is known by its id *and* the time at which it was created, and its descendants by a mark in
their environment, which outlives parents. Nothing is ever ended by its name.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from cluster.site import Process

MARK = "GPTLINE_SERVICE"  # environment variable of all that a service starts
_DYING = 10.0  # seconds in which whoever was killed is gone
_LOOK = 0.02  # seconds between two looks at who is left
_DEATH = 1  # prctl's PR_SET_PDEATHSIG


def known(pid: int) -> Process:
    """A process of this machine that has not been waited for, as others will find it."""
    return Process(pid, psutil.Process(pid).create_time())


def start_apart(command: Sequence[str], log: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a process in a session of its own, so that it outlives this one and its terminal."""
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=dict(environment), start_new_session=True
        )
    finally:
        os.close(file)


def start_below(command: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a process that writes where this one writes, and is told to end (SIGTERM) when this one dies."""
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, env=dict(environment), preexec_fn=_end_with_parent)


def _end_with_parent() -> None:
    ctypes.CDLL(None, use_errno=True).prctl(_DEATH, signal.SIGTERM)


def family(process: Process, mark: str) -> list[psutil.Process]:
    """The process if it lives, its descendants, and whatever carries the mark: also those whose parents are gone."""
    found: dict[int, psutil.Process] = {}
    if process.alive():
        with contextlib.suppress(psutil.NoSuchProcess):
            top = psutil.Process(process.pid)
            found = {one.pid: one for one in [top, *top.children(recursive=True)]}
    for one in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if one.pid not in found and one.environ().get(MARK) == mark:
                found[one.pid] = one
    found.pop(os.getpid(), None)
    return list(found.values())


def has_one_called(process: Process, mark: str, name: str) -> bool:
    """Whether a process of the family has `name` in its name. Those that end meanwhile have none."""
    for one in family(process, mark):
        with contextlib.suppress(psutil.NoSuchProcess):
            if name in one.name():
                return True
    return False


def tell(process: Process) -> None:
    """Tell a process to end, if it is still the one that is meant."""
    if process.alive():
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGTERM)


def end(process: Process, mark: str, patience: float) -> int:
    """Tell a service to end, wait for `patience` seconds, then kill what is left of it. How many processes it had."""
    ours = family(process, mark)
    if process.alive():
        tell(process)
        psutil.wait_procs([one for one in ours if one.pid == process.pid], timeout=patience)
    known = {one.pid: one for one in [*ours, *family(process, mark)]}
    left = psutil.wait_procs(list(known.values()), timeout=0.2)[1]
    for seconds, send in ((2, psutil.Process.terminate), (10, psutil.Process.kill)):
        for one in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                send(one)
        left = psutil.wait_procs(left, timeout=seconds)[1]
    return len(known)


def kill_session(number: int) -> None:
    """Kill whatever belongs to a session, whoever its parent is by now; not this process."""
    end = time.monotonic() + _DYING
    while (left := [one for one in session(number) if one.pid != os.getpid()]) and time.monotonic() < end:
        for one in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        time.sleep(_LOOK)


def session(number: int) -> list[psutil.Process]:
    """The living processes of a session."""
    found = []
    for one in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if os.getsid(one.pid) == number and one.status() != psutil.STATUS_ZOMBIE:
                found.append(one)
    return found
