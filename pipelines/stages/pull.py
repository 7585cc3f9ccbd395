"""pull: the registered version comes back from the registry, verified, as downstream gets it.

The one idea: the line ends where its users begin. What is in `outputs/model/` went through the registry.
"""

from __future__ import annotations

from typing import Any

from pipelines.engine.step import Attempt, Stage

STAGE = Stage("pull", 1, "pipelines.stages.pull:run")


def run(attempt: Attempt) -> dict[str, Any]:
    """Pull the version that `register` recorded into outputs/model/."""
    from pipelines import pull

    registered = next(record for record in attempt.ancestors.values() if record.stage == "register").metrics
    pulled = pull.pull(
        registered["registry"], f"{registered['name']}@{registered['version']}", attempt.outputs / "model"
    )
    return {"name": pulled.name, "version": pulled.version, "alias": registered["alias"], "digest": pulled.digest}
