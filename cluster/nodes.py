"""Which nodes may work: those that see the shared folder as the process does that hands the work out.

The one idea: nobody is asked beforehand. Each process that is about to work for us looks for the stamp once, so a
node that joins late, or loses its mount, is found out by the first work that it gets. It is refused: the work
goes to another node, and Ray places nothing more of ours there.
"""

from __future__ import annotations

import functools
import logging
from typing import Any, NamedTuple

import ray

from cluster import shared_folder

log = logging.getLogger(__name__)
_NODE_ID = "ray.io/node-id"  # the label by which Ray itself names a node


class Shared(NamedTuple):
    """A folder that has to be the same on all nodes, and the stamp that was written there last."""

    folder: str
    stamp: str


class NodeRefused(ConnectionError):
    """The node on which a process of ours began does not see the shared folder, or sees an older state of it."""

    def __init__(self, node: str, why: str) -> None:
        super().__init__(node, why)
        self.node, self.why = node, why

    def __str__(self) -> str:
        return self.why


_shared: list[Shared] = []  # what nodes have to see; empty where there is but one machine
_refused: dict[str, str] = {}  # node id -> why


def require(shared: Shared | None) -> None:
    """From now on nodes have to see this; None on a Ray of one machine."""
    _shared[:] = [shared] if shared else []


def required() -> Shared | None:
    """What nodes have to see, to be handed to the processes that begin there."""
    return _shared[0] if _shared else None


def admit(shared: Shared | None) -> None:
    """NodeRefused if this process does not see what its node has to see. Looked at once."""
    if shared and (why := _wrong(Shared(*shared))):
        raise NodeRefused(ray.get_runtime_context().get_node_id(), why)


@functools.cache
def _wrong(shared: Shared) -> str | None:
    try:
        shared_folder.check(shared.folder, shared.stamp)
    except shared_folder.NotShared as error:
        return str(error)
    return None


def refuse(refusal: NodeRefused) -> None:
    """Have nothing more of ours placed on a node. NodeRefused if no other is left."""
    if refusal.node not in _refused:
        log.warning("node %s gets no work: %s", refusal.node[:8], refusal)
    _refused[refusal.node] = refusal.why
    if not alive():
        raise refusal


def selector() -> dict[str, str] | None:
    """Where work may be placed, in Ray's words; None for anywhere."""
    return {_NODE_ID: f"!in({','.join(sorted(_refused))})"} if _refused else None


def alive() -> list[dict[str, Any]]:
    """The living nodes that may work and have something to work with, as Ray describes them."""
    return [
        node
        for node in ray.nodes()
        if node["Alive"] and node["NodeID"] not in _refused and node["Resources"].get("CPU", 0) >= 1
    ]


def refusals() -> str:
    """What to say of refused nodes that live, after a message that there is no room; nothing if there are none."""
    there = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
    lines = [f"\nnode {there[node]} was refused: {why}" for node, why in _refused.items() if node in there]
    return "".join(lines)
