"""The Ray that work runs on: one started here for this process, or one that is already up.

The one idea: whoever needs Ray calls `connect`, as often as it likes; the first call starts or joins it.
"""

from __future__ import annotations

import logging
import os


def connect(address: str, cpus: int) -> None:
    """Start a local Ray with room for `cpus` (address 'local'), or join the one at `address`. Once a process.

    ConnectionError names the address when nothing answers there.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray warns about this future default at each start; we reserve no GPUs for tasks that ask for none.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    if ray.is_initialized():
        return
    # That token authentication is on is as it should be, and no warning.
    logging.getLogger("ray").setLevel(logging.ERROR)
    local = address == "local"
    ray.init(
        address=address,
        num_cpus=cpus if local else None,
        include_dashboard=False if local else None,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )


def disconnect() -> None:
    """Leave Ray, and end it if this process started it."""
    import ray

    if ray.is_initialized():
        ray.shutdown()
