"""Work that needs Ray, in a process of its own, which Ray may end.

The one idea: Ray ends the process that uses it, or never answers it again, when it is lost at the wrong moment: while it
starts, while it is joined, a minute later. So whoever drives the line never joins Ray. Its one child does; it runs one
generator at a time and sends what that yields. When the child is lost, the next call begins with another one.

The child is a session of its own, and so are all processes that a local Ray consists of, whoever their parents are by
then: none of them outlives the child or the driver.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import pickle
import select
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cluster import processes

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from cluster import apart; apart.serve(int(sys.argv[2]))"
)
_TRIES = 4  # children that are lost in a row before one of them has done anything
_LEAVING = 20.0  # seconds in which a child that was told so has left its Ray


class Lost(ConnectionError):
    """The child was ended, by Ray or by somebody else. Whoever had work there calls again."""


class Hopeless(RuntimeError):
    """One child after the other was lost; the message says how the last one ended."""


class _Far(Exception):
    """Where in the child an error was raised: its traceback there."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


@dataclass(frozen=True)
class _Child:
    process: subprocess.Popen[bytes]
    line: Connection  # has an end where the child has one

    def end(self, seconds: float) -> int:
        """End it with all that it started, after `seconds` to leave by itself; its exit code."""
        with contextlib.suppress(OSError):
            self.line.send(None)
            self.line.poll(seconds)
        self.process.kill()
        processes.kill_session(self.process.pid)  # before it is waited for: until then no other has its number
        self.line.close()
        return self.process.wait()


_children: list[_Child] = []  # one, or none
_ray: list[tuple[str, int, str]] = []  # what `connect` was called with
_shared: list[tuple[str, str]] = []
_losses: list[str] = []  # since something was last done


def connect(address: str, cpus: int, token_file: str = "", shared: tuple[str, str] | None = None) -> None:
    """Have work done in the Ray at `address`, or in a local one with room for `cpus`, and let a child get ready for it.

    `token_file` holds the token of the Ray that is joined; `shared` is a folder, and the stamp in it, that nodes have to see.
    """
    if _ray != [(address, cpus, token_file)]:
        end()
    _ray[:] = [(address, cpus, token_file)]
    _shared[:] = [shared] if shared else []
    _child()


def each(function: str, *arguments: Any, **named: Any) -> Iterator[Any]:
    """What the generator "package.module:function" yields in the child.

    Lost or Hopeless when the child is, ConnectionError when no Ray answers, or the generator's own error. Whoever stops in
    the middle ends the child.
    """
    child = _child()
    try:
        child.line.send((_ray[0], _shared, function, arguments, named))
        while (told := child.line.recv())[0] == "yielded":
            _losses.clear()
            yield told[1]
        _losses.clear()
    except (EOFError, OSError) as gone:
        _children.clear()
        raise _lost(child.end(0)) from gone
    except BaseException:
        end(0)
        raise
    if told[0] == "failed":
        error, there = told[1]
        raise error from _Far(there)


def _lost(code: int) -> Lost | Hopeless:
    """What to raise when a child has ended with this exit code, in the middle of its work."""
    _losses.append(f"killed by signal {-code}" if code < 0 else f"it ended with {code}")
    what = f"the process that used Ray is gone ({_losses[-1]})"
    return (
        Lost(what) if len(_losses) < _TRIES else Hopeless(f"{what}, as were {_TRIES - 1} before it; nothing was done")
    )


def used() -> bool:
    """Whether there was work for Ray here."""
    return bool(_ray)


def end(seconds: float = _LEAVING) -> None:
    """Leave Ray, and end it if it was started for this process."""
    while _children:
        _children.pop().end(seconds)


def _child() -> _Child:
    """The child; another one where it is gone."""
    if _children and _children[0].line.poll():  # nobody asked it anything
        end(0)
    if not _children:
        from multiprocessing.connection import Pipe

        ours, its = Pipe()
        paths = json.dumps([path or os.getcwd() for path in sys.path])
        command = [sys.executable, "-c", _BOOT, paths, str(its.fileno())]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[its.fileno()], start_new_session=True)
        its.close()
        _children.append(_Child(process, ours))
        atexit.register(end)
    return _children[0]


def serve(file: int) -> None:
    """The child: run one generator after the other, as the driver asks for them at the other end of `file`."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)  # the driver decides, and says so here
    os.set_inheritable(file, False)
    threading.Thread(target=_end_with_driver, args=(file,), name="driver", daemon=True).start()
    from multiprocessing.connection import Connection

    from cluster import nodes, services

    services.lead_session()
    line = Connection(file)
    with contextlib.suppress(EOFError):
        while (asked := line.recv()) is not None:
            ray, shared, function, arguments, named = asked
            try:
                services.connect(*ray)
                nodes.require(nodes.Shared(*shared[0]) if shared else None)
                module, _, name = function.partition(":")
                for value in getattr(importlib.import_module(module), name)(*arguments, **named):
                    line.send(("yielded", value))
                line.send(("ended", None))
            except Exception as error:
                line.send(("failed", (_portable(error), traceback.format_exc())))
    services.disconnect()
    os._exit(os.EX_OK)  # nothing is left to be done; Ray has threads that do not end well


def _end_with_driver(file: int) -> None:
    """End this process, and all that it started, as soon as the driver is gone."""
    gone = select.poll()
    gone.register(file, select.POLLRDHUP)
    gone.poll()
    processes.kill_session(os.getpid())
    os._exit(os.EX_TEMPFAIL)


def _portable(error: Exception) -> Exception:
    """The error, or what it says where it cannot be sent."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # whatever its own constructor raises
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
