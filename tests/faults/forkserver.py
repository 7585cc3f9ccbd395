"""A process that has imported everything and runs commands in forks of itself: milliseconds each, not an interpreter's start.

The one idea: a fork is as good a victim as a fresh process, and strace can be attached to it before its first step.
What a command raises is told and turned into an exit code as `python -m pipelines` does it.

    python -m tests.faults.forkserver tests.pipelines.engine.toys     modules to import first
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

BUG = 70  # the exit code of a command that ended with a traceback
_PR_SET_PTRACER, _ANYBODY = 0x59616D61, ctypes.c_ulong(-1)


def serve() -> None:
    """Answer requests, one JSON object a line, until the input ends."""
    for module in sys.argv[1:]:
        importlib.import_module(module)
    import pipelines.errors  # noqa: F401
    from pipelines.engine import digests

    # Remember every digest at once: with the real tick it depends on the clock how often the cache is written.
    digests._TICK_NS = -(10**18)
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps({"code": _run(request)}), flush=True)


def _run(request: dict[str, Any]) -> int:
    """The exit code of the command in a fork; negative: the signal that ended it."""
    waiting, go = os.pipe()
    # Opened before the fork: strace may or may not see what the child does before it is attached, and must not count it.
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    pid = os.fork()
    if pid == 0:
        os.close(go)
        os._exit(_child(request, waiting, log))
    os.close(waiting)
    os.close(log)
    Path(request["pid"]).write_text(str(pid))
    tracer = _attached(pid, request["strace"]) if request["strace"] else None
    os.close(go)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if tracer is not None:
        tracer.communicate()
    return code


def _attached(pid: int, options: list[str]) -> subprocess.Popen[str]:
    """strace, once it holds the process. It follows the main thread only: what a command starts beside it is not counted."""
    tracer = subprocess.Popen(["strace", *options, "-p", str(pid)], stderr=subprocess.PIPE, text=True)
    assert tracer.stderr is not None
    if "attached" not in (line := tracer.stderr.readline()):
        raise RuntimeError(f"strace cannot be attached: {line}{tracer.stderr.read()}")
    return tracer


def _child(request: dict[str, Any], waiting: int, log: int) -> int:
    ctypes.CDLL(None).prctl(_PR_SET_PTRACER, _ANYBODY, 0, 0, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.read(waiting, 1)  # ends when strace is attached
    module, _, function = request["command"].partition(":")
    return outcome(lambda: getattr(importlib.import_module(module), function)(Path(request["root"])))


def outcome(command: Any) -> int:
    """The exit code of `command()`, and what it has to say on standard error, as `pipelines.__main__.main` has it."""
    from pipelines import errors

    try:
        command()
    except Exception as error:
        told = errors.told(error)
        if told is None:
            os.write(2, traceback.format_exc().encode())
            return BUG
        os.write(2, f"gptline: {told}\n".encode())
        return errors.exit_code(error)
    return 0


if __name__ == "__main__":
    serve()
