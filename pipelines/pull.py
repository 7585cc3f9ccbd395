"""Fetch a registered version into a folder, whole and verified, or not at all.

The one idea: nothing is fetched that MANIFEST.json does not list, nothing is believed that does not hash to it, and
the manifest itself must have the digest that the registry states. The folder appears under its name by one rename.
No code of the model is run and nothing is unpickled.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from model import durable
from pipelines import registry
from pipelines.package import MANIFEST, PackageDamaged, read_manifest, verify_package
from pipelines.patience import patiently
from pipelines.staging import staging, sweep


class PullRefused(Exception):
    """The destination holds something that pulling would destroy. The message says what to do."""


@dataclass(frozen=True)
class Pulled:
    """What `dest` holds now. `fetched` is False if it held that already."""

    name: str
    version: int
    digest: str
    dest: Path
    fetched: bool


def pull(location: str | Path, spec: str, dest: Path, patience: float = 0.0) -> Pulled:
    """Make `dest` the package of `spec` (`name@alias` or `name@version`).

    An earlier pull in `dest` is replaced, if nobody changed it. A registry that is away is asked again for `patience`
    seconds, for each file. UnknownModel, PullRefused, PackageDamaged, ConnectionError.
    """
    wanted = patiently(location, patience, f"pulling {spec}", lambda: registry.resolve(location, spec))
    if wanted.digest is None:
        raise registry.UnknownModel(
            f"{spec} is version {wanted.version}, which carries no {registry.DIGEST_TAG}: it was not registered by gptline"
        )
    dest = dest.absolute()
    fetched = place(dest, wanted.digest, lambda folder: _fetch(location, wanted, folder, patience))
    return Pulled(wanted.name, wanted.version, wanted.digest, dest, fetched)


def place(dest: Path, digest: str, fetch: Callable[[Path], None]) -> bool:
    """Make `dest` the package that has `digest`; whether `fetch` had to write it, whole and verified, to a folder."""
    sweep(dest.parent, dest.name)
    if _held(dest) == digest:
        return False
    dest.parent.mkdir(parents=True, exist_ok=True)
    with staging(dest) as folder:
        fetch(folder)
        _publish(folder, dest, digest)
    sweep(dest.parent, dest.name)
    return True


def _held(dest: Path) -> str | None:
    """The digest of the package in `dest`; None if there is nothing. PullRefused if it is anything else."""
    if not dest.is_symlink() and (not dest.exists() or (dest.is_dir() and not any(dest.iterdir()))):
        return None
    advice = "choose another folder, or remove this one yourself"
    if dest.is_symlink() or not (dest / MANIFEST).is_file():
        raise PullRefused(f"{dest} exists and was not made by a pull; {advice}")
    try:
        return str(verify_package(dest)["digest"])
    except PackageDamaged as error:
        raise PullRefused(f"{dest} was pulled, and changed since: {error}; {advice}") from error


def _fetch(location: str | Path, wanted: registry.ModelVersion, folder: Path, patience: float) -> None:
    def fetched(file: str) -> Path:
        what = f"pulling {file} of {wanted.name}@{wanted.version}"
        return patiently(location, patience, what, lambda: registry.download(location, wanted, file, folder))

    manifest = read_manifest(fetched(MANIFEST))
    if manifest["digest"] != wanted.digest:
        raise PackageDamaged(
            f"{wanted.name} version {wanted.version}: the files at {wanted.source} are package {manifest['digest']}, "
            f"the registry says {wanted.digest}; somebody changed them, register the model again"
        )
    for file in manifest["files"]:
        fetched(file)
    verify_package(folder)


def _publish(staged: Path, dest: Path, digest: str) -> None:
    """Give the staged folder its name; what was there goes aside first, and away after."""
    aside = durable.temporary(dest)
    if dest.exists() and any(dest.iterdir()):
        durable.rename(dest, aside)
    try:
        durable.publish_folder(staged, dest)
    except OSError:
        if not dest.exists() and aside.exists():
            durable.rename(aside, dest)
        # Another pull to the same place was faster: fine, if it brought the same version.
        if _held(dest) != digest:
            raise
