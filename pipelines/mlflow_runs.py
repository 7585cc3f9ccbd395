"""MLflow runs, found by tags that name the work.

The one idea: a run is not remembered, it is looked for. Who was killed, or lost the answer to a creation, finds the
run by asking; where a late request made a second one, the one that was used stays and the other goes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from pipelines.engine import lease as leases
from pipelines.store import EXPERIMENT, SQLITE, database, lock

OWNER_TAG, WORK_TAG, KEY_TAG, PARENT_TAG = "gptline.owner", "gptline.work", "gptline.execution", "mlflow.parentRunId"


def experiment_id(client: Any, name: str = EXPERIMENT) -> str:
    """The id of the experiment `name`, created if need be. Its artifacts lie beside a sqlite database."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        uri = str(client.tracking_uri)
        place = str(database(uri).parent / "artifacts" / name) if uri.startswith(SQLITE) else None
        try:
            return str(client.create_experiment(name, artifact_location=place))
        except MlflowException:  # somebody else was faster: then it is there
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    return str(found.experiment_id)


def find_or_create_run(client: Any, identity: Mapping[str, str], name: str, experiment: str = EXPERIMENT) -> Any:
    """The MLflow run whose tags are `identity`: the earliest there is, or a new one of that name."""
    with lock(str(client.tracking_uri)):
        found = find_run(client, identity, experiment)
        number = experiment_id(client, experiment)
        return found or client.create_run(number, tags={**identity, "mlflow.runName": name})


def find_run(client: Any, identity: Mapping[str, str], experiment: str = EXPERIMENT) -> Any | None:
    """The earliest MLflow run whose tags are `identity`, or None."""
    return next(iter(find_runs(client, identity, experiment)), None)


def find_runs(client: Any, identity: Mapping[str, str], experiment: str = EXPERIMENT) -> list[Any]:
    """All runs whose tags are `identity`, the earliest first."""
    where = " and ".join(f"tags.`{key}` = '{value}'" for key, value in sorted(identity.items()))
    found = client.search_runs([experiment_id(client, experiment)], where, order_by=["attributes.start_time ASC"])
    return sorted(found, key=lambda run: (run.info.start_time, run.info.run_id))


def drop_doubles(client: Any, identity: Mapping[str, str], used: str, experiment: str = EXPERIMENT) -> None:
    """Delete other runs than `used` of the same identity: made by a request that arrived after it was given up.

    A finished one that is older stays, and any that keeps the files of a model version: nothing of worth is deleted.
    """
    found = find_runs(client, identity, experiment)
    ids = [run.info.run_id for run in found]
    for position, run in enumerate(found):
        older = used in ids and position < ids.index(used)
        if ids[position] == used or (older and run.info.status == "FINISHED"):
            continue
        if not client.search_model_versions(f"run_id = '{ids[position]}'", max_results=1):
            client.delete_run(ids[position])


def owner_tag() -> str:
    """This process as the owner of a parent run: enough for others to see whether it still lives."""
    owner = leases.this_process("mlflow")
    return json.dumps({"host": owner.host, "space": owner.space, "pid": owner.pid, "started": owner.started})


def is_orphan(tags: Mapping[str, str]) -> bool:
    """Whether the owner of a parent run is certainly gone; False for one that cannot be looked up from here."""
    try:
        owner = leases.Owner("mlflow", **json.loads(tags[OWNER_TAG]))
    except (KeyError, ValueError, TypeError):  # made by an older version of this code, or by hand
        return False
    return leases.is_dead(owner)


def end_the_dead(client: Any, work: str, key: str, experiment: str = EXPERIMENT) -> None:
    """Mark what a killed process left RUNNING as KILLED: parent runs of this work directory, and their steps' runs.

    The parent run of the execution `key` is not ended, because it goes on; its steps are taken up one by one.
    Steps first: a kill in between leaves the parent to be found again.
    """
    number = experiment_id(client, experiment)
    running = client.search_runs([number], "attributes.status = 'RUNNING'", max_results=1000)
    for parent in running:
        tags = parent.data.tags
        if tags.get(WORK_TAG) != work or KEY_TAG not in tags or not is_orphan(tags):
            continue
        for step in running:
            if step.data.tags.get(PARENT_TAG) == parent.info.run_id:
                _end(client, step)
        if tags[KEY_TAG] != key:
            _end(client, parent)


def _end(client: Any, run: Any) -> None:
    client.set_terminated(run.info.run_id, "KILLED", max(int(1000 * time.time()), run.info.start_time))
