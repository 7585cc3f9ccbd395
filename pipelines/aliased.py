"""Which versions the registry's aliases point at: what a work directory must not let go. Does not import mlflow.

The one idea: asked of every registry that the records below a work directory name, so that a forgotten setting never makes
a champion's run look unneeded; a registry that does not answer is a ConnectionError, and nothing is removed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipelines import store
from pipelines.engine import record as records
from pipelines.model_versions import aliases
from pipelines.retention import Aliased


def aliased(root: Path, location: str | Path) -> Aliased:
    """(model, version) -> its aliases, in the registry at `location` and in those where the records of `root` registered."""
    found: dict[tuple[str, int], list[str]] = {}
    for uri in sorted({store.tracking_uri(location), *_registries(root)}):
        for name, alias, version in _aliases(uri):
            found.setdefault((name, version), []).append(f"{name}@{alias}")
    return {version: f"{', '.join(sorted(set(names)))} is its version" for version, names in found.items()}


def _registries(root: Path) -> Iterator[str]:
    for folder in (root / "steps").glob("*"):
        try:
            record = records.read(folder) if folder.is_dir() else None
        except records.RecordDamaged:
            continue  # its step is made again, and registers again
        if record and record.stage == "register":
            yield str(record.metrics["registry"])


def _aliases(uri: str) -> list[tuple[str, str, int]]:
    """(model, alias, version) of every alias in a registry. ConnectionError, StoreDamaged."""
    with store.damage_named(uri):
        return list(aliases(uri))
