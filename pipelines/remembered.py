"""What a name meant when the registry was last asked: for pulls without one.

The one idea: an alias offline is a memory with a date, and the date is said.
"""

from __future__ import annotations

from dataclasses import asdict

from pipelines.engine.record import now
from pipelines.model_cache import ModelCache
from pipelines.model_versions import ModelVersion, UnknownModel, parsed


def remember(cache: ModelCache, spec: str, version: ModelVersion) -> None:
    """Keep what `spec` meant just now, and the version under its number."""
    name, which = parsed(spec)
    for key in {f"{name}@{which}", f"{name}@{version.version}"}:
        cache.remember(key, {"spec": key, "registry": str(cache.location), "asked": now(), "version": asdict(version)})


def recall(cache: ModelCache, spec: str) -> tuple[ModelVersion, str]:
    """The version that `spec` meant when it was last asked here, and when that was (UTC). UnknownModel if it never was."""
    name, which = parsed(spec)
    found = cache.remembered(f"{name}@{which}")
    try:
        assert found is not None
        return ModelVersion(**found["version"]), str(found["asked"])
    except (AssertionError, KeyError, TypeError):
        raise UnknownModel(
            f"{spec} was never pulled from {cache.location} into the cache {cache.folder}, so nobody knows what it means; "
            "pull it once without --offline"
        ) from None
