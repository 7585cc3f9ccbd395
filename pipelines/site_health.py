"""Whether the services of a site answer, and answer strangers with a refusal. Asked over http, without ray or mlflow.

The one idea: a service is up when it does for us what it is for, and does not for somebody without the secret.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from cluster.site import MlflowService, RayService
from pipelines import credentials, mlflow_server


class Open(RuntimeError):
    """A service answers somebody without its secret. It must not run."""


def dashboard(ray: RayService, path: str, authorized: bool = True, seconds: float = 5.0) -> Any:
    """What the head's dashboard answers to GET `path`. OSError if it does not, PermissionError if it refuses."""
    asked = urllib.request.Request(f"{ray.dashboard}{path}")
    if authorized:
        asked.add_header("Authorization", f"Bearer {Path(ray.token_file).read_text().strip()}")
    try:
        with urllib.request.urlopen(asked, timeout=seconds) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            raise PermissionError(f"{ray.dashboard} refuses") from error
        raise


def nodes(ray: RayService) -> list[dict[str, Any]]:
    """Ray's nodes as its dashboard describes them; none until the first is there."""
    return list(dashboard(ray, "/nodes?view=summary")["data"]["summary"])


def head_answers(ray: RayService) -> bool:
    """Whether the head has a living node and refuses a stranger. Open if it answers that one."""
    try:
        alive = [node for node in nodes(ray) if node["raylet"].get("state") == "ALIVE"]
    except (OSError, ValueError, KeyError):
        return False
    try:
        dashboard(ray, "/api/version", authorized=False)
    except PermissionError:
        return bool(alive)
    except OSError:
        return False
    raise Open(f"Ray's dashboard at {ray.dashboard} answers without a token")


def mlflow_answers(mlflow: MlflowService) -> bool:
    """Whether the server finds experiments for its administrator and refuses a stranger. Open if it finds them for that one."""
    who = credentials.read(Path(mlflow.credentials))
    try:
        status, _ = mlflow_server.request(mlflow.address, "experiments/search?max_results=1", who)
        if status != 200:
            return False
        stranger, _ = mlflow_server.request(mlflow.address, "experiments/search?max_results=1", None)
        if stranger == 200:
            raise Open(f"the MLflow server at {mlflow.address} answers without a password")
        return stranger in (401, 403)
    except (OSError, ValueError):
        return False
