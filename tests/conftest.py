"""What tests share: one local Ray for a whole session, because starting one takes 8 seconds."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("GPTLINE_MODEL_CACHE", "")  # no test fills this user's cache of models
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """A real local Ray with room for two tasks or ranks, or four on bigger machines."""
    from cluster import services

    services.connect("local", 4)
    yield
    services.disconnect()
