"""What tests share: one local Ray for a whole session, because starting one takes 8 seconds."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.ray_head import Head, head

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """A real local Ray with room for two tasks or ranks, or four on bigger machines."""
    from cluster import services

    services.connect("local", 4)
    yield
    services.disconnect()


@pytest.fixture(scope="session")
def ray_head() -> Iterator[Head]:
    """One real head with a dashboard and token authentication, for all tests of jobs: it takes 12 seconds."""
    with head() as started:
        yield started
