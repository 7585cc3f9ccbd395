"""Wait until an alias means another version: for consumers that follow it.

The one idea: a follower asks now and then, and outlives everything but its user's end: outages, an alias that is not
there yet, a server that is started again. It is told once what it is waiting for.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from pipelines import model_versions
from pipelines.model_versions import ModelVersion, UnknownModel
from pipelines.patience import is_away
from pipelines.pull import From

log = logging.getLogger(__name__)


class NotYet(RuntimeError):
    """The alias still means what it meant, and the time to wait is over. The same command waits on."""


def wait_for(
    origin: From, spec: str, welcome: Callable[[int], bool], every: float, timeout: float | None = None
) -> ModelVersion:
    """The version that `spec` means, as soon as its number is welcome; asked `every` so many seconds.

    NotYet after `timeout` seconds. Rejected at once: it does not mend itself.
    """
    began, told = time.monotonic(), ""
    while True:
        try:
            found = model_versions.resolve(origin.location, spec)
            if welcome(found.version):
                return found
            seen = f"{spec} is version {found.version}"
        except UnknownModel as error:
            seen = str(error)
        except Exception as error:
            if not is_away(error):
                raise
            seen = f"the registry is away ({error})"
        if seen != told:
            log.warning("%s; asking again every %g s", seen, every)
            told = seen
        left = None if timeout is None else timeout - (time.monotonic() - began)
        if left is not None and left <= 0:
            raise NotYet(f"{seen}, after {timeout:g} s; the same command waits on")
        time.sleep(every if left is None else min(every, left))
