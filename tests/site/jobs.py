"""What these tests run as Ray tasks."""

from __future__ import annotations

import time
from typing import Any


def where(seconds: Any) -> str:
    """The address of the node that this runs on; after so many seconds, in which another task needs another node."""
    import ray

    time.sleep(seconds)
    return str(ray.util.get_node_ip_address())
