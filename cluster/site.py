"""What runs at a site: a folder in which a node keeps its token, its credentials, its logs and what it has started.

The one idea: `services.json` says where everything is, and holds no secret: those are in files of mode 0600 whose
paths it names. It is written by `gptline up` and `gptline join` (`pipelines/site_files.py`); anyone may read it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

SERVICES = "services.json"


@dataclass(frozen=True)
class Process:
    """The supervisor of a service: its process id means it only together with the time at which it was created."""

    pid: int
    created: float  # seconds since the epoch, as psutil says

    def alive(self) -> bool:
        """Whether this very process still runs."""
        try:
            found = psutil.Process(self.pid)
            return found.create_time() == self.created and found.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False


@dataclass(frozen=True)
class RayService:
    """The Ray of this node. `address` is the head's host:port; `dashboard` (also the Jobs API) is there on the head only."""

    role: str  # "head" or "worker"
    address: str
    node: str  # this node's own address
    dashboard: str | None
    token_file: str
    log: str
    temp: str  # Ray's own files and logs
    process: Process


@dataclass(frozen=True)
class MlflowService:
    """The MLflow server. `credentials` is the path of a file in the format of ~/.mlflow/credentials."""

    address: str
    credentials: str
    log: str
    process: Process


@dataclass(frozen=True)
class Site:
    """What was started here. A service that has ended by itself is still named: ask `process.alive()`."""

    folder: Path
    ray: RayService | None = None
    mlflow: MlflowService | None = None


def read(folder: str | Path) -> Site:
    """The site in this folder; one with no services if nothing was started there. ValueError if its file is damaged."""
    path = Path(folder).absolute() / SERVICES
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return Site(path.parent)
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); remove it and give `make up` again") from error
    ray, mlflow = (_with_process(found.get(name)) for name in ("ray", "mlflow"))
    return Site(path.parent, ray and RayService(**ray), mlflow and MlflowService(**mlflow))


def _with_process(service: dict[str, Any] | None) -> dict[str, Any] | None:
    return service and {**service, "process": Process(**service["process"])}
