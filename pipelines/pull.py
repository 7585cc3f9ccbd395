"""Fetch a registered version into a folder, whole and verified, or not at all.

The one idea: nothing is fetched that MANIFEST.json does not list, nothing is believed that does not hash to it, and
the manifest itself must have the digest that the registry states. Files come through a cache by digest, in which a cut
download goes on where it was (see `model_cache.py`). The folder appears under its name by one rename. What the package
holds is taken for hostile (see `package_rules.py`); no code of the model is run and nothing is unpickled.
"""

from __future__ import annotations

import contextlib
import errno
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model import durable
from pipelines import fetching, model_versions
from pipelines.model_cache import ModelCache, Wanted
from pipelines.model_versions import DIGEST_TAG, ModelVersion, UnknownModel
from pipelines.package import MANIFEST, PackageDamaged, check_code, parsed_manifest, verify_file, verify_package
from pipelines.package_rules import MANIFEST_BYTES
from pipelines.patience import patiently
from pipelines.remembered import recall, remember
from pipelines.staging import staging, sweep

_NO_LINKS = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.EACCES)


class PullRefused(Exception):
    """The destination holds something that pulling would destroy, or has no room. The message says what to do."""


@dataclass(frozen=True)
class Pulled:
    """What `dest` holds now. `fetched` is False if it held that already; `asked` is when the registry named the version."""

    name: str
    version: int
    digest: str
    dest: Path
    fetched: bool
    asked: str = ""


@dataclass(frozen=True)
class From:
    """Where models are pulled from and how.

    `patience`: seconds without progress for which a registry that is away is asked again. `cache`: the folder of the
    model cache, none: nothing is kept. `offline`: the cache alone. `trust_code`: also code that no gptline has written.
    """

    location: str | Path
    patience: float = 0.0
    cache: Path | None = None
    offline: bool = False
    trust_code: bool = False


def pull(location: str | Path, spec: str, dest: Path, patience: float = 0.0) -> Pulled:
    """`pull_from` a registry, with no cache."""
    return pull_from(From(location, patience), spec, dest)


def pull_from(origin: From, spec: str, dest: Path) -> Pulled:
    """Make `dest` the package of `spec` (`name@alias` or `name@version`).

    An earlier pull in `dest` is replaced, if nobody changed it. UnknownModel, PullRefused, PackageDamaged (or
    PackageRefused), Rejected, ConnectionError.
    """
    if origin.offline:
        wanted, asked = recall(_cache(origin), spec)
    else:
        wanted, asked = _resolved(origin, spec), ""
    return pull_version(origin, wanted, dest, spec, asked)


def _resolved(origin: From, spec: str) -> ModelVersion:
    location, what = origin.location, f"pulling {spec}"
    try:
        return patiently(location, origin.patience, what, lambda: model_versions.resolve(location, spec))
    except ConnectionError as error:
        with contextlib.suppress(UnknownModel, PullRefused):
            known, asked = recall(_cache(origin), spec)
            raise ConnectionError(
                f"{error}, or --offline: the cache has version {known.version}, as of {asked}"
            ) from error
        raise


def pull_version(origin: From, wanted: ModelVersion, dest: Path, spec: str, asked: str = "") -> Pulled:
    """`pull_from`, of the version that `spec` was found to mean."""
    if wanted.digest is None:
        raise UnknownModel(
            f"{spec} is version {wanted.version}, which carries no {DIGEST_TAG}: it was not registered by gptline"
        )
    dest = dest.absolute()
    fetched = place(dest, wanted.digest, lambda folder: _assemble(origin, wanted, folder, dest))
    if origin.cache and not origin.offline:  # not before: what an alias means offline has to be there
        remember(_cache(origin), spec, wanted)
    return Pulled(wanted.name, wanted.version, wanted.digest, dest, fetched, asked)


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


def _cache(origin: From) -> ModelCache:
    if origin.cache is None:
        raise PullRefused("offline means from the cache alone, and none is set; set execution.model_cache to a folder")
    cache = ModelCache(origin.cache, origin.location, origin.patience)
    cache.prepare()
    return cache


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


@contextlib.contextmanager
def _fetching_cache(origin: From, dest: Path) -> Iterator[ModelCache]:
    """The model cache; without one, a folder beside `dest` that goes afterwards."""
    if origin.cache is not None:
        yield _cache(origin)
        return
    with staging(dest) as folder:
        cache = ModelCache(folder, origin.location, origin.patience, shared=False)
        cache.prepare()
        yield cache


def _assemble(origin: From, wanted: ModelVersion, folder: Path, dest: Path) -> None:
    """Fill the staged folder with the package's files, each hashed since it was last touched."""
    with _fetching_cache(origin, dest) as cache:
        manifest, data = _manifest(origin, wanted, cache)
        if not origin.trust_code:
            check_code(manifest, f"{wanted.name} version {wanted.version}")
        cache.touch(manifest["digest"])
        durable.write_bytes(folder / MANIFEST, data)
        _refuse_without_room(cache, {file["sha256"]: file["size"] for file in manifest["files"].values()})
        # Small files first: what is refused is refused before the weights are fetched.
        for name, stated in sorted(manifest["files"].items(), key=lambda item: item[1]["size"]):
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            _take_out(cache, _wanted(origin, wanted, name, stated), target, stated)


def _wanted(origin: From, wanted: ModelVersion, name: str, stated: dict[str, Any]) -> Wanted:
    def at(start: int) -> contextlib.AbstractContextManager[fetching.Answer]:
        return fetching.opened(origin.location, wanted, name, start)

    return Wanted(name, stated["size"], stated["sha256"], None if origin.offline else at)


def manifest_of(origin: From, wanted: ModelVersion) -> dict[str, Any]:
    """The manifest of a version alone, out of the cache or fetched, checked. PackageDamaged, ConnectionError."""
    return _manifest(origin, wanted, _cache(origin) if origin.cache else None)[0]


def _manifest(origin: From, wanted: ModelVersion, cache: ModelCache | None) -> tuple[dict[str, Any], bytes]:
    """The version's manifest and its bytes, checked, which are in the cache now."""
    assert wanted.digest is not None
    if cache is not None:
        with contextlib.suppress(FileNotFoundError, PackageDamaged):
            kept = cache.manifest(wanted.digest).read_bytes()
            if (manifest := parsed_manifest(kept, "the cache"))["digest"] == wanted.digest:
                return manifest, kept
    title = f"{wanted.name} version {wanted.version}"
    if origin.offline:
        raise PackageDamaged(f"{title} is not whole in the cache; pull once without --offline")
    what = f"asking for the {MANIFEST} of {title}"
    data = patiently(origin.location, origin.patience, what, lambda: _manifest_bytes(origin.location, wanted))
    manifest = parsed_manifest(data, f"{wanted.source}/{MANIFEST}")
    if manifest["digest"] != wanted.digest:
        raise PackageDamaged(
            f"{title}: the files at {wanted.source} are package {manifest['digest']}, the registry says {wanted.digest}; "
            "somebody changed them, register the model again"
        )
    if cache is not None:
        durable.write_bytes(cache.manifest(wanted.digest), data)
    return manifest, data


def _manifest_bytes(location: str | Path, wanted: ModelVersion) -> bytes:
    data = b""
    with fetching.opened(location, wanted, MANIFEST, 0) as answer:
        while len(data) <= MANIFEST_BYTES and (block := answer.read(MANIFEST_BYTES + 1 - len(data))):
            data += block
    if len(data) > MANIFEST_BYTES:
        raise PackageDamaged(f"{wanted.source}/{MANIFEST} is longer than any manifest; do not use it")
    return data


def _refuse_without_room(cache: ModelCache, sizes: dict[str, int]) -> None:
    needed = sum(max(0, size - cache.has(sha256)) for sha256, size in sizes.items())
    free = shutil.disk_usage(cache.folder).free
    if needed > free:
        raise PullRefused(
            f"{cache.folder}: the model needs {needed / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free; make room there, or "
            "set execution.model_cache to another disk"
        )


def _take_out(cache: ModelCache, wanted: Wanted, target: Path, stated: dict[str, Any]) -> None:
    """A hard link to the cached file, or a copy of it where there can be none."""
    try:
        durable.link(cache.file(wanted), target)
    except FileNotFoundError:  # the cache was cleaned in this moment
        durable.link(cache.file(wanted), target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        with durable.writing(target) as draft:
            shutil.copyfile(cache.file(wanted), draft)
        verify_file(target, stated)


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
