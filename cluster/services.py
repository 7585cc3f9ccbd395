"""The Ray that work runs on: one started here for this process, or one that is already up.

The one idea: whoever needs Ray calls `connect`, as often as it likes; the first call starts or joins it. When the Ray
that this process started loses a process of its own, `check` says so at once, and `reconnect` starts another one: Ray
itself notices the loss of its raylet after fifteen seconds only.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil

from cluster import control_store, processes, ray_node

_OURS = ("raylet", "gcs_server")  # the processes of a local Ray without which it is none
_STARTS = 3  # of a local Ray, before it is given up
_PATIENCE = 60.0  # seconds in which a Ray that was lost has to be there again
log = logging.getLogger(__name__)
_last: list[tuple[str, int, str]] = []  # what `connect` was last called with
_watched: list[psutil.Process] = []
_session: list[int] = []  # that holds nothing but this process and what its Rays consist of, if there is one
_told: list[str] = []  # what Ray itself said about its own loss
_DOOMED = 3.0  # seconds in which a start fails after one of its processes died; then this process hangs on it
_HANGING = 15.0  # the same for the loss of a local Ray that was there, and of its control store
_AWAY = 50.0  # the same for another's, which may come back; after 60 Ray itself ends this process
_LOOK = 0.5  # seconds between two looks for one that is to be joined
_store: list[control_store.Watch] = []


class RayLost(ConnectionError):
    """The Ray under this process is gone: its raylet or its control store was killed. `reconnect`, and start again."""


def connect(address: str, cpus: int, token_file: str = "") -> None:
    """Start a local Ray with room for `cpus` (address 'local'), or join the one at `address`. Once a process.

    `token_file` holds the token of the Ray that is joined. ConnectionError names the address when nothing answers there.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray warns about this future default at each start; we reserve no GPUs for tasks that ask for none.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    if ray.is_initialized():
        return
    # That token authentication is on is as it should be, and no warning.
    logging.getLogger("ray").setLevel(logging.ERROR)
    _last[:] = [(address, cpus, token_file)]
    if address == "local":
        _start(cpus)
    else:
        if token_file:
            _present_token(token_file, address.partition(":")[0])
        _join(address)
    _told.clear()
    store = ray.get_runtime_context().gcs_address
    patience = _HANGING if address == "local" else _AWAY
    _store.append(control_store.Watch(lambda: bool(lost()) or not control_store.listens(store, timeout=5.0), patience))


def _present_token(file: str, host: str) -> None:
    """Have this process answer with the token in `file`. Ray reads its environment when it is imported, and here again."""
    from ray import _raylet
    from ray._private import ray_constants

    os.environ.update(ray_node.environment(file, host))
    compiled: Any = _raylet
    compiled.Config.initialize("")
    compiled.AuthenticationTokenLoader.instance().reset_cache()
    if host in ("localhost", ray_node.LOOPBACK):
        ray_constants.ENABLE_RAY_CLUSTER = False  # or Ray looks for a head on loopback at the machine's outer address


def _join(address: str) -> None:
    """Join the Ray at "host:port", or at RAY_ADDRESS for "auto". ConnectionError if nothing answers there for a minute.

    Ray itself would wait for a quarter of an hour, and silently, also where its head dies meanwhile: then this process
    ends, and `apart.py` begins another one.
    """
    import ray

    known = os.environ.get("RAY_ADDRESS", "") if address == "auto" else address
    answers = (lambda: control_store.listens(known, timeout=5.0)) if ":" in known else (lambda: True)
    _await(known, answers)
    watch = control_store.Watch(lambda: not answers(), _AWAY)
    try:
        with _own_sigterm():
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    finally:
        watch.end()


def _await(address: str, answers: Callable[[], bool]) -> None:
    """Wait a minute for a Ray that is to be joined; ConnectionError."""
    if answers():
        return
    log.warning("no Ray answers at %s; waiting %.0f s for it", address, _PATIENCE)
    end = time.monotonic() + _PATIENCE
    while not answers():
        if time.monotonic() > end:
            raise ConnectionError(
                f"no Ray answers at {address}; start one with `make up` on its head node, or name another by execution.ray_address"
            )
        time.sleep(_LOOK)


def _start(cpus: int) -> None:
    """Start a local Ray, once more where one of its processes is lost before it is up."""
    for start in range(1, _STARTS + 1):
        try:
            return _start_once(cpus)
        except Exception as error:  # Ray has no kind of its own for this
            if start == _STARTS:
                raise ConnectionError(
                    f"this machine's Ray did not start, {start} times; the last time: {error}"
                ) from error
            log.warning(
                "this machine's Ray did not start (%s); starting it again (%d of %d)", error, start + 1, _STARTS
            )
            disconnect()


def _start_once(cpus: int) -> None:
    """Start a local Ray and watch its processes, those of a start that failed too: `disconnect` ends them."""
    import ray

    before = set(psutil.Process().children())
    watch = control_store.Watch(lambda: _died_since(before), _DOOMED)
    try:
        with _own_sigterm(), control_store.unanswered_requests_survived():
            ray.init(
                address="local",
                num_cpus=cpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    finally:
        watch.end()
        _watched[:] = _own_processes()


def _died_since(before: set[psutil.Process]) -> bool:
    """Whether Ray's processes that were started since then have died: who starts a Ray may wait for them for ever."""
    ours = []
    for child in set(psutil.Process().children()) - before:
        with contextlib.suppress(psutil.NoSuchProcess):  # ended meanwhile, and Ray knows
            ours += [child] if child.name().startswith(_OURS) else []
    return not all(map(_alive, ours))


@contextlib.contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep this process's answer to SIGTERM, which Ray replaces by its own."""
    own = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, own)


def _own_processes() -> list[psutil.Process]:
    """The processes of the Ray that this process started."""
    return [child for child in psutil.Process().children() if _alive(child) and child.name().startswith(_OURS)]


def lost() -> str | None:
    """Why the Ray of this process is gone; None if it is there."""
    dead = next((process for process in _watched if not _alive(process)), None)
    return f"a process of this machine's Ray, number {dead.pid}, was killed" if dead else "".join(_told[:1]) or None


def check(settling: float = 0) -> None:
    """RayLost if the Ray of this process is gone; looked at after `settling` seconds, since workers notice it first."""
    time.sleep(settling if _watched else 0)
    if reason := lost():
        raise RayLost(reason)


@contextlib.contextmanager
def losses_noticed() -> Iterator[None]:
    """Raise RayLost where Ray itself says, in one of its many ways, that it is gone."""
    from ray import exceptions

    try:
        yield
    except (exceptions.LocalRayletDiedError, exceptions.RaySystemError, exceptions.RpcError) as error:
        _told.append(f"Ray is gone: {error}")
        raise RayLost(_told[-1]) from error


def _alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def reconnect() -> None:
    """Leave what is left of a lost Ray, end it if it is ours, and start or join it again as `connect` did.

    The error of the last try when there is none for a minute.
    """
    disconnect()
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            return connect(*_last[0])
        except (ConnectionError, TimeoutError, RuntimeError):
            if time.monotonic() > end:
                raise
            disconnect()
            time.sleep(1)


def disconnect() -> None:
    """Leave Ray, and end it if this process started it."""
    import ray

    if ray.is_initialized():
        with _own_sigterm():
            ray.shutdown()
    # Ray ends its processes by itself; one that it has lost sight of would stay for ever
    for process in _watched:
        with contextlib.suppress(psutil.NoSuchProcess):
            if _alive(process):
                process.kill()
    _watched.clear()
    for number in _session:
        processes.kill_session(number)
    for watch in _store:
        watch.end()
    _store.clear()


def lead_session() -> None:
    """This process leads a session of its own: what else is in it belongs to a Ray, and is ended when that is left.

    Ray's agents outlive a raylet that was killed for a minute, or for ever, and nothing else says whose they were.
    """
    assert os.getsid(0) == os.getpid()
    _session[:] = [os.getpid()]
