"""What a model was made from, and which models were made from a file.

The one idea: a package's manifest lists, for each step that the model stands on, the SHA-256 of every raw source file.
So both questions are answered from the registry alone, whatever became of the work directory: one manifest of a few KB
is read for each version, once, and kept in the model cache by its digest.

A tokenizer that was pinned out of another package is followed to the text that it was trained on. A champion that
training began from has its own sources listed in the lineage of its successor.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model import durable
from pipelines import sources as source_files
from pipelines.config import Source
from pipelines.engine.fingerprint import digest
from pipelines.model_versions import Listed, all_versions
from pipelines.package import PackageDamaged
from pipelines.pull import From, manifest_of

_READERS = 8  # manifests asked for at a time
_PACKAGE, _PINNED, _LABELLED, _TEXT = "package", "pinned", "labelled", "text"  # groups of sources


@dataclass(frozen=True)
class Known:
    """A version and its manifest; without one, `trouble` says why it could not be read."""

    listed: Listed
    manifest: Mapping[str, Any] | None
    trouble: str = ""

    @property
    def title(self) -> str:
        """The version as people call it."""
        version, aliases = self.listed.version, self.listed.aliases
        return f"{version.name} version {version.version}" + (f" ({', '.join(aliases)})" if aliases else "")


@dataclass(frozen=True)
class Use:
    """One use of a source file by a version: in which step, in which group of its sources, and through which tokenizer."""

    sha256: str
    step: str
    group: str
    through: str = ""


@dataclass(frozen=True)
class Learned:
    """A version that a file went into, and how."""

    known: Known
    uses: tuple[Use, ...]


def read_all(origin: From) -> list[Known]:
    """Every version in the registry with its manifest. ConnectionError if the registry is away."""
    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(lambda listed: _read(origin, listed), all_versions(origin.location)))


def _read(origin: From, listed: Listed) -> Known:
    if listed.version.digest is None:
        return Known(listed, None, "it was not registered by gptline")
    try:
        return Known(listed, manifest_of(origin, listed.version))
    except PackageDamaged as error:
        return Known(listed, None, str(error))


def sources(known: Known, everybody: Iterable[Known]) -> list[Use]:
    """Every raw source file that a version stands on, with its use; also what its pinned tokenizer was trained on."""
    return sorted(
        set(_sources(known, list(everybody), ())), key=lambda use: (use.step, use.group, use.through, use.sha256)
    )


def _sources(known: Known, everybody: Sequence[Known], seen: tuple[str, ...]) -> Iterator[Use]:
    for step, group, digests in _groups(known):
        for sha256 in digests:
            yield Use(sha256, step, group)
            if group == _PINNED and sha256 not in seen:
                for origin in everybody:
                    if _tokenizer(origin) == sha256 and origin is not known:
                        for use in _sources(origin, everybody, (*seen, sha256)):
                            if use.group in (
                                _TEXT,
                                _PINNED,
                            ):  # what the other model's weights learned from is not in its tokenizer
                                yield Use(use.sha256, step, use.group, use.through or origin.title)


def _groups(known: Known) -> Iterator[tuple[str, str, Sequence[str]]]:
    for step, said in sorted((known.manifest or {}).get("lineage", {}).items()):
        for group, digests in sorted(said.get("sources", {}).items() if isinstance(said, dict) else ()):
            yield step, group, digests


def _tokenizer(known: Known) -> str | None:
    return (known.manifest or {}).get("files", {}).get("tokenizer.json", {}).get("sha256")


def learned_from(prefixes: Iterable[str], everybody: Sequence[Known]) -> list[Learned]:
    """The versions that a file of one of these digests (or beginnings of digests) went into."""
    wanted = tuple(prefixes)
    found = []
    for known in everybody:
        uses = tuple(use for use in sources(known, everybody) if use.sha256.startswith(wanted))
        if uses:
            found.append(Learned(known, uses))
    return found


def in_words(use: Use, known: Known) -> str:
    """What a use meant for the model."""
    step, group = use.step, use.group
    through = f", through the tokenizer of {use.through}" if use.through else ""
    if group == _PACKAGE:
        return f"the package that {step} holds: training began from it, or it was compared with"
    if step.startswith("champion"):
        return f"what the champion learned from ({group}) that training began from, or whose tokenizer it has"
    if group.startswith(_LABELLED) and "finetune" not in (known.manifest or {}).get("lineage", {}):
        return "labelled examples, of which the held-out ones were taken out of its text; it has not learned from them"
    said = {"corpus": "text that it was pre-trained on, or held out for", _LABELLED: "examples that it was fine-tuned and tested on",
            f"{_LABELLED}_validation": "examples that it was validated on", f"{_LABELLED}_test": "examples that it was tested on",
            f"{_LABELLED}_benchmark": "a benchmark that it was measured on and has not learned from",
            _TEXT: "text that its tokenizer was trained on", _PINNED: "its tokenizer"}  # fmt: skip
    return said.get(group, f"{group} of {step}") + through


def digests_of(path: Path) -> dict[str, str]:
    """Every digest by which a file, or what is in a folder, may be known as a source, and what it is the digest of."""
    if path.is_file():
        return {durable.sha256(path): str(path)}
    found = {durable.sha256(file): str(file) for file in source_files.walk(path)}
    # A folder that `datasets` reads is one source, known by the names and bytes in it.
    (dataset,) = source_files.resolve(Source(dataset=str(path)), path)
    return found | {dataset.sha256: f"{path} as a dataset"}


def digest_of_revision(commit: str) -> str:
    """The digest by which a dataset of a hub is known."""
    return digest({"revision": commit})
