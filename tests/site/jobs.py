"""What these tests run as Ray tasks."""

from __future__ import annotations

import time
from typing import Any


def where(item: Any) -> str:
    """The address of the node that this runs on; long enough that another task needs another node."""
    import ray

    time.sleep(3)
    return str(ray.util.get_node_ip_address())
