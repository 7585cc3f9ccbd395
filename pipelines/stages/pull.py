"""pull: the registered version comes back from the registry, verified, as downstream gets it.

The one idea: the line ends where its users begin. What is in `outputs/model/` went through the registry.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines.engine.record import Record
from pipelines.engine.step import Attempt, Stage

STAGE = Stage("pull", 1, "pipelines.stages.pull:run", check="pipelines.stages.pull:check")


def run(attempt: Attempt) -> dict[str, Any]:
    """Pull the version that `register` recorded into outputs/model/."""
    from pipelines import pull

    registered = attempt.inputs["registered"].record.metrics
    uri, spec = registered["registry"], f"{registered['name']}@{registered['version']}"
    pulled = pull.pull(uri, spec, attempt.outputs / "model", attempt.execution["registry_patience"])
    return {
        "name": pulled.name,
        "version": pulled.version,
        "alias": registered["alias"],
        "digest": pulled.digest,
        "registry": registered["registry"],
    }


def check(record: Record, execution: Mapping[str, Any]) -> str | None:
    """Why the record no longer holds: what was pulled came from another registry, or is not there any more."""
    from pipelines import registry

    uri, metrics = registry.tracking_uri(execution["registry"]), record.metrics
    if uri != metrics.get("registry"):
        return f"the registry is now {uri}, this came from {metrics.get('registry', 'another one')}"
    try:
        exists = registry.version_exists(uri, metrics["name"], metrics["version"], metrics["digest"])
    except ConnectionError as error:  # pulling is patient
        return f"it cannot be checked now: {error}"
    if not exists:
        return f"{uri} has no version {metrics['version']} of {metrics['name']} with this digest any more"
    return None
