"""What tests share: one local Ray for a process, because starting one takes 8 seconds, and the order of the files."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")


# `make test` hands out files to two processes: the longest first, or one of the two ends long after the other.
LONGEST = (
    "test_end_to_end.py",
    "test_recovery.py",
    "test_mlflow_cuts.py",
    "test_world_sizes.py",
    "test_mlflow_away.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files of LONGEST first, in that order; the others as they are."""
    order = {name: position for position, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """A real local Ray with room for two tasks or ranks, or four on bigger machines."""
    from cluster import services

    services.connect("local", 4)
    yield
    services.disconnect()
