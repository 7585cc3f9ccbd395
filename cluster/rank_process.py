"""The process of one rank, from its start to its last answer: an actor that is warmed up, told its place, and run.

The one idea: a rank and a standby are the same actor. A standby has imported everything in a thread of low priority
(on Linux niceness belongs to a thread, and needs no right to come back), so that it costs the running ranks little
and is a rank at once when one is needed.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Mapping
from typing import Any, NamedTuple

import ray

from cluster import interfaces, nodes
from cluster.nodes import Shared
from cluster.ray_map import call

_LOWEST = 19  # niceness


class Preempted(RuntimeError):
    """The rank got SIGTERM before it could save: its machine is about to go."""


class Place(NamedTuple):
    """Where a rank's process is."""

    name: str  # of the host
    address: str  # by which other ranks reach it
    interface: str | None  # that has this address
    port: int  # that was free there a moment ago
    node: str  # Ray's id
    pid: int
    gpus: str  # CUDA_VISIBLE_DEVICES


class _Rank:
    """One rank: a process that tells its place, then runs the job once, in its main thread."""

    def place(self, interface: str | None, shared: Shared | None) -> Place:
        """Where this process is. NodeRefused if its node does not see the shared folder; NoInterface."""
        nodes.admit(shared)
        address = interfaces.address_of(interface) if interface else ray.util.get_node_ip_address()
        with socket.socket() as probe:
            probe.bind(("", 0))
            port = probe.getsockname()[1]
        node = ray.get_runtime_context().get_node_id()
        gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        found = interface or interfaces.interface_of(address)
        return Place(socket.gethostname(), address, found, port, node, os.getpid(), gpus)

    def warm_up(self, function: str, item: Any, environment: Mapping[str, str]) -> None:
        """Call a function that imports what a rank needs, at the lowest priority."""
        os.environ.update(environment)
        worker = threading.Thread(target=_call_at_low_priority, args=(function, item))
        worker.start()
        worker.join()

    def run(
        self, function: str, job: Any, environment: Mapping[str, str], interface: str | None, log: str | None
    ) -> Any:
        """Run the job's function under `environment`, talking over `interface`; what it prints and logs goes to the file `log`.

        Preempted if SIGTERM comes while the function does not look for it itself.
        """
        os.environ.update({**interfaces.variables(interface), **environment})
        if log:
            _log_to(log)
        signal.signal(signal.SIGTERM, _preempted)
        logging.getLogger(__name__).info(
            "rank %s of %s is process %d on host %s (address %s, node %s), master %s:%s, interface %s",
            environment["RANK"], environment["WORLD_SIZE"], os.getpid(), socket.gethostname(),
            ray.util.get_node_ip_address(), ray.get_runtime_context().get_node_id(), environment["MASTER_ADDR"],
            environment["MASTER_PORT"], os.environ.get("GLOO_SOCKET_IFNAME", "that the host name resolves to"),
        )  # fmt: skip
        return call(function, job)


def _call_at_low_priority(function: str, item: Any) -> None:
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST)
    call(function, item)


def _preempted(number: int, frame: Any) -> None:
    raise Preempted("SIGTERM came before the first step")


def _log_to(path: str) -> None:
    """Send what this process prints, logs and crashes with to the end of a file. FileNotFoundError if its folder is gone."""
    sys.stdout.flush()
    sys.stderr.flush()
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    for stream in (1, 2):
        os.dup2(file, stream)
    os.close(file)
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, force=True, format="%(asctime)s %(name)s %(levelname)s %(message)s"
    )
