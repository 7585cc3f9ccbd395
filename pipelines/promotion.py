"""Moving `champion` by hand: promote a version, or take the last promotion back. Always with a reason, always on record.

The one idea: `champion` never points at a version that fails verification: its files are hashed where they are stored
before the alias moves. A version whose gates failed is promoted only by who says so (`anyway`), and the log keeps that.
"""

from __future__ import annotations

import json
from pathlib import Path

from pipelines import promotion_log, registry, store
from pipelines.registry import ModelVersion


class PromotionRefused(ValueError):
    """A version that may not become champion. The message says why and what to do."""


@store.names_damage
def promote(location: str | Path, spec: str, why: str, anyway: bool = False) -> tuple[ModelVersion, int | None]:
    """Make `name@version` (or `name@candidate`) champion: the version, and which was champion before.

    PromotionRefused without a reason, for a version with failed gates (unless `anyway`), and for a double; PackageDamaged
    if its stored files are not whole; UnknownModel.
    """
    version = registry.resolve(location, spec)
    tags = registry.version_tags(location, version.name, version.version) or {}
    if double := tags.get(registry.DOUBLE_TAG):
        raise PromotionRefused(f"{spec} repeats version {double}; promote {version.name}@{double}")
    failed = [gate["detail"] for gate in json.loads(tags.get(registry.GATES_TAG, "[]")) if not gate["passed"]]
    if failed and not anyway:
        raise PromotionRefused(
            f"{version.name} version {version.version} did not pass: {'; '.join(failed)}\n"
            "next: promote another version, or say --anyway (make: ANYWAY=1), which the log keeps"
        )
    return version, _move(location, version, "promote", why + (f" (anyway: {'; '.join(failed)})" if failed else ""))


@store.names_damage
def rollback(location: str | Path, name: str, why: str) -> tuple[ModelVersion, int | None]:
    """Make the champion before the present one champion again: that version, and which one went.

    PromotionRefused if the log knows none; PackageDamaged if its stored files are not whole any more.
    """
    earlier = promotion_log.previous(promotion_log.read(location, name))
    if earlier is None:
        raise PromotionRefused(
            f"{name}: the promotion log knows no earlier champion; promote one by its number: {name}@VERSION"
        )
    version = registry.resolve(location, f"{name}@{earlier}")
    return version, _move(location, version, "rollback", why)


def _move(location: str | Path, version: ModelVersion, by: str, why: str) -> int | None:
    if not why.strip():
        raise PromotionRefused("say why: the promotion log keeps it")
    if version.digest is None:
        raise PromotionRefused(
            f"{version.name} version {version.version} carries no {registry.DIGEST_TAG}: it was not registered by gptline"
        )
    registry.verify_stored(location, version)
    before = registry.alias_version(location, version.name, promotion_log.CHAMPION)
    client = registry.connect(location)
    with store.lock(str(client.tracking_uri)):
        promotion_log.move(client, version.name, version.version, by, why.strip())
    return before
