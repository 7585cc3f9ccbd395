"""Room for ranks: a placement group of equal bundles that is asked for, waited for, and given back.

The one idea: Ray decides what fits. Whoever wants to know whether there is room for more asks for it and looks.

How ranks are laid out over the nodes is one of: "pack", on as few as possible; "spread", over as many as possible;
"strict_spread", each on a node of its own.
"""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any

import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster import nodes, services


class Room:
    """Room for `ranks` ranks, of `threads` CPUs each and one GPU if `gpu`. Leaving the `with` block gives it back."""

    def __init__(self, ranks: int, threads: int, gpu: bool = False, placement: str = "pack") -> None:
        self.ranks, self.threads, self.gpu, self.placement = ranks, threads, gpu, placement
        self.bundle = bundle(threads, gpu)
        where = nodes.selector()
        self._group = placement_group(
            [self.bundle] * ranks, strategy=placement.upper(), bundle_label_selector=[where] * ranks if where else None
        )

    def __enter__(self) -> Room:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def wait(self, seconds: float) -> bool:
        """Whether the room is there, after at most `seconds`. RayLost if the Ray that was asked is gone."""
        services.check()
        with services.losses_noticed():
            return self._group.wait(timeout_seconds=seconds)

    def place(self, index: int) -> PlacementGroupSchedulingStrategy:
        """Ray's name for the place of rank `index`."""
        return PlacementGroupSchedulingStrategy(self._group, index)

    def release(self) -> None:
        """Give the room back; whoever is in it is killed."""
        if not services.lost():
            remove_placement_group(self._group)


def bundle(threads: int, gpu: bool) -> dict[str, float]:
    """What one rank reserves."""
    return {"CPU": float(threads)} | ({"GPU": 1.0} if gpu else {})


def fitting(threads: int, gpu: bool, placement: str = "pack") -> int:
    """How many ranks the living nodes have room for, if nothing else ran on them."""
    most = 1 if placement == "strict_spread" else sys.maxsize  # on one node
    return sum(min(most, _times(node["Resources"], bundle(threads, gpu))) for node in nodes.alive())


def _times(node: dict[str, float], wanted: dict[str, float]) -> int:
    return min(int(node.get(name, 0) // amount) for name, amount in wanted.items())


def refusal(ranks: int, wanted: dict[str, float], seconds: float) -> str:
    """What to say when there was no room for `ranks` ranks."""
    have: Any = ray.cluster_resources()
    return (
        f"no room for {ranks} ranks of {wanted} after {seconds:.0f} s; the cluster has {have}, free are "
        f"{ray.available_resources()}: lower execution.ranks or execution.threads, or add nodes{nodes.refusals()}"
    )
