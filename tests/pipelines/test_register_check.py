"""A registration holds as long as the registry says the same: the version is there and its aliases point at it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipelines import registry
from pipelines.engine.record import Record
from pipelines.stages import pull, register


def record(metrics: dict[str, Any]) -> Record:
    return Record("register", "register-task", 1, "f", {}, {}, [], metrics, {}, {}, {}, "", "", 0.0, "")


def test_an_alias_that_another_recipe_moved_makes_the_step_to_do(store: Path, tmp_path: Path) -> None:
    client = registry.connect(store)
    client.create_registered_model("moved")
    for number in ("1", "2"):
        client.create_model_version("moved", str(tmp_path), tags={registry.DIGEST_TAG: f"d{number}"})
    for alias in ("candidate", "champion"):
        client.set_registered_model_alias("moved", alias, "1")
    uri, execution = registry.tracking_uri(store), {"registry": str(store)}
    metrics = {"name": "moved", "version": 1, "digest": "d1", "registry": uri, "alias": "champion"}
    assert register.check(record(metrics), execution) is None
    assert pull.check(record(metrics), execution) is None
    client.set_registered_model_alias("moved", "champion", "2")
    assert (
        register.check(record(metrics), execution) == "moved@champion points at version 2, this recipe's is version 1"
    )
    assert register.check(record(metrics | {"alias": "candidate"}), execution) is None
    client.delete_registered_model_alias("moved", "candidate")
    assert "moved@candidate is gone" in str(register.check(record(metrics | {"alias": "candidate"}), execution))
    assert "has no version 1" in str(pull.check(record(metrics | {"digest": "other"}), execution))
    assert "the registry is now" in str(pull.check(record(metrics), {"registry": str(tmp_path / "new")}))
    assert registry.alias_version(tmp_path / "new", "moved", "champion") is None
