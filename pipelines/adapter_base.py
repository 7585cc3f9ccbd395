"""An adapter that was pulled, and the registered model that it is used on top of.

The one idea: an adapter names its base by package digest, in its own manifest, which the registry's digest covers. So
whatever a version is called in the registry at hand, the base is the one that the adapter was trained on, or none.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipelines import model_versions
from pipelines import pull as pulling
from pipelines.model_versions import REMOVED_TAG, ModelVersion, UnknownModel
from pipelines.package import MANIFEST, read_manifest


@dataclass(frozen=True)
class Base:
    """The base of an adapter: its name and digest, and the version that the registry has it as (none: it has not)."""

    name: str
    digest: str
    version: int | None

    @property
    def spec(self) -> str | None:
        """How it is pulled."""
        return f"{self.name}@{self.version}" if self.version else None

    @property
    def told(self) -> str:
        """What is said of it."""
        where = f"version {self.version}" if self.version else "of which this registry has no such version"
        return f"{self.name} {where} (package digest {self.digest[:12]})"


def of(origin: pulling.From, folder: Path) -> Base | None:
    """The base of the package in `folder`, looked for in the registry; None if it is no adapter. ConnectionError.

    UnknownModel if the package names a base that nobody could mean.
    """
    named = read_manifest(folder / MANIFEST).get("base")
    if named is None:
        return None
    if not isinstance(named, dict) or not all(isinstance(named.get(key), str) for key in ("name", "digest")):
        raise UnknownModel(
            f"{folder / MANIFEST}: its base is {named!r}, not a name and a digest; register the adapter again"
        )
    name, digest = named["name"], named["digest"]
    if origin.offline:
        return Base(name, digest, None)
    found = [
        listed.version.version
        for listed in model_versions.all_versions(origin.location)
        if (listed.version.name, listed.version.digest) == (name, digest) and REMOVED_TAG not in listed.tags
    ]
    return Base(name, digest, min(found, default=None))


def pull(origin: pulling.From, adapter: str, base: Base | None, dest: Path) -> pulling.Pulled:
    """Pull the base, by its digest. UnknownModel if `adapter` is none, or the registry has no such base."""
    if base is None:
        raise UnknownModel(f"{adapter} is no adapter: it has no base; pull it without --base")
    if base.version is None and not origin.offline:
        raise UnknownModel(
            f"{adapter} wants {base.told}; pull from the registry that has it, or register that base model here"
        )
    known = ModelVersion(base.name, base.version or 0, "", base.digest, None)
    wanted = known if origin.offline else model_versions.resolve(origin.location, base.spec or "")
    pulled = pulling.pull_version(origin, wanted, dest, base.spec or base.name)
    if pulled.digest != base.digest:
        raise UnknownModel(f"{base.spec} is package {pulled.digest} now, {adapter} wants {base.digest}")
    return pulled
