"""The champions that a retraining slot starts from and compares with: found, frozen by digest, pulled.

The one idea: a champion is its package digest. Which version the alias means is asked once, when a slot opens; what is
in the folder afterwards is that package, whatever becomes of the alias.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model import durable
from pipelines import registry
from pipelines.forms.long_texts import ASKED
from pipelines.package import MANIFEST, PackageDamaged, read_manifest
from pipelines.patience import patiently

SOURCE_GROUPS = (
    "corpus",
    "labelled",
    "labelled_validation",
    "labelled_test",
    "labelled_benchmark",
    "text",
)  # raw data in a lineage, as steps name it; "text" is the tokenizer's


@dataclass(frozen=True)
class Champion:
    """A registered version: the model's name, the version, its package digest, and the folder that it is pulled to."""

    name: str
    version: int
    digest: str
    folder: Path

    @property
    def sources(self) -> dict[str, list[str]]:
        """The SHA-256 of every raw source file that the model stands on, by group, from the lineage in its package."""
        found: dict[str, set[str]] = {}
        for step in self._manifest()["lineage"].values():
            for group, digests in step.get("sources", {}).items():
                if group in SOURCE_GROUPS:
                    found.setdefault(group, set()).update(digests)
        return {group: sorted(digests) for group, digests in sorted(found.items())}

    @property
    def pretraining(self) -> dict[str, Any]:
        """How it was pre-trained, as the configuration of that step in its package says; empty if it was not."""
        found: dict[str, Any] = self._manifest()["lineage"].get("pretrain", {}).get("config", {}).get("train", {})
        return found

    @property
    def windows(self) -> dict[str, Any]:
        """The windows that its evaluation read long texts in, as its package says; empty if it cut them."""
        asked = self._manifest()["lineage"].get("evaluate-task", {}).get("config", {})
        return {name: asked[name] for name in ASKED if name in asked}

    def shape(self, step: str) -> dict[str, Any]:
        """The shape that its weights had in a step ("pretrain", "finetune"), as its package says; empty if it had no such step."""
        found: dict[str, Any] = self._manifest()["lineage"].get(step, {}).get("config", {}).get("model", {})
        return found

    @property
    def tokenizer(self) -> str:
        """The SHA-256 of its tokenizer.json."""
        return str(self._manifest()["files"]["tokenizer.json"]["sha256"])

    def _manifest(self) -> dict[str, Any]:
        return read_manifest(self.folder / MANIFEST)


def current(location: str | Path, name: str, pulled: Path, patience: float = 0.0) -> Champion | None:
    """The champion of `name` now, None if there is none; `pulled` is the folder of pulled champions. Imports no mlflow.

    A registry that is away is asked again for `patience` seconds. ConnectionError after that, UnknownModel if the version
    was not registered by gptline.
    """
    return patiently(location, patience, f"asking for {name}@champion", lambda: _current(location, name, pulled))


def _current(location: str | Path, name: str, pulled: Path) -> Champion | None:
    version = registry.alias_version(location, name, "champion")
    if version is None:
        return None
    digest = (registry.version_tags(location, name, version) or {}).get(registry.DIGEST_TAG)
    if digest is None:
        raise registry.UnknownModel(
            f"{name}@champion is version {version}, which carries no {registry.DIGEST_TAG}: it was not registered by "
            "gptline and cannot be started from; promote another version"
        )
    return Champion(name, version, digest, pulled / folder_name(name, digest))


def folder_name(name: str, digest: str) -> str:
    """What the folder of a pulled champion is called."""
    return f"{name}-{digest[:12]}"


def ensure_pulled(location: str | Path, champion: Champion, patience: float) -> None:
    """Make the champion's folder hold its package. Whole files are believed here: who uses them hashes them."""
    from pipelines import pull

    try:
        if read_manifest(champion.folder / MANIFEST)["digest"] == champion.digest:
            return
        raise PackageDamaged(f"{champion.folder} holds another package")
    except FileNotFoundError:
        pass
    except PackageDamaged:
        durable.remove_tree(champion.folder)  # ours, and the registry has it
    pulled = pull.pull(location, f"{champion.name}@{champion.version}", champion.folder, patience)
    if pulled.digest != champion.digest:
        raise PackageDamaged(
            f"{champion.name}@{champion.version} is package {pulled.digest} now, it was {champion.digest} when the slot "
            "opened; is another tool changing versions?"
        )


def sweep(pulled: Path, keep: set[Path]) -> None:
    """Remove pulled champions that no open slot uses."""
    for folder in sorted(pulled.iterdir()) if pulled.is_dir() else ():
        if folder not in keep and not folder.name.startswith("."):
            durable.remove_tree(folder)
