"""Which versions the registry's aliases point at: what a work directory must not let go. Does not import mlflow.

The one idea: asked of every registry that the records below a work directory name, so that a forgotten setting never makes
a champion's run look unneeded; a registry that does not answer is a ConnectionError, and nothing is removed. One that is
gone for good is said to be so (`execution.retired_registries`): only `gc` could remove the records that name it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from pipelines import store
from pipelines.credentials import Rejected
from pipelines.engine import record as records
from pipelines.model_versions import aliases
from pipelines.retention import Aliased


def aliased(root: Path, location: str | Path, retired: Collection[str] = ()) -> Aliased:
    """(model, version) -> its aliases, in the registry at `location` and in those where the records of `root` registered.

    `retired` are addresses that records name and that are not asked. ConnectionError names the record and the way out.
    """
    found: dict[tuple[str, int], list[str]] = {}
    ours, gone = store.tracking_uri(location), {address.rstrip("/") for address in retired}
    named = {uri: step for uri, step in _registries(root) if uri.rstrip("/") not in gone and uri != ours}
    for uri in sorted({ours, *named}):
        try:
            known = _aliases(uri)
        except (ConnectionError, Rejected) as error:
            if uri == ours:
                raise
            raise ConnectionError(
                f"{error}\n{root / 'steps' / named[uri]} has registered its model there, so nothing was removed.\nnext: bring it "
                f"back; or, if it is gone for good or is execution.registry under another address now: "
                f"execution.retired_registries={uri}"
            ) from error
        for name, alias, version in known:
            found.setdefault((name, version), []).append(f"{name}@{alias}")
    return {version: f"{', '.join(sorted(set(names)))} is its version" for version, names in found.items()}


def _registries(root: Path) -> Iterator[tuple[str, str]]:
    """The registries that records name, each with the record's folder."""
    for folder in (root / "steps").glob("*"):
        try:
            record = records.read(folder) if folder.is_dir() else None
        except records.RecordDamaged:
            continue  # its step is made again, and registers again
        if record and record.stage == "register":
            yield str(record.metrics["registry"]), folder.name


def _aliases(uri: str) -> list[tuple[str, str, int]]:
    """(model, alias, version) of every alias in a registry. ConnectionError, StoreDamaged."""
    with store.damage_named(uri):
        return list(aliases(uri))
