"""Units: immutable files named by what they were made from. If the name exists, the work is done.

The one idea: a unit's key is the SHA-256 of (stage version, the configuration that matters, digest of its
input), so whoever needs the same work, in whichever run or recipe, finds it finished. No lease guards a unit:
its files are linked into place, and of two makers the second finds the first one's bytes and compares. Other
bytes under the same key are a bug in the stage's determinism and raise.

On disk: `WORK/units/<kind>/<key[:2]>/<key>.<name>` for each file, and `<key>.json`, which is linked last and
so says that the unit is whole: the size and SHA-256 of each file, and what the maker counted.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model import durable
from pipelines.engine import sealed
from pipelines.engine.fingerprint import digest

SCHEMA = 1


class DeterminismError(RuntimeError):
    """Equal work gave different bytes: a stage depends on something outside its key."""


@dataclass(frozen=True)
class UnitFile:
    """One file of a unit: `path` is relative to the work directory, `size` is in bytes."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Unit:
    """A finished unit: its key, its files by name, and what its maker counted."""

    key: str
    files: dict[str, UnitFile]
    info: dict[str, Any]


def unit_key(stage: str, version: int, config: Mapping[str, Any], inputs: Any) -> str:
    """The key of the unit that `stage` makes of `inputs` (digests) under `config`."""
    return digest({"stage": stage, "version": version, "config": config, "inputs": inputs})


class UnitStore:
    """The units of one work directory. Safe for any number of processes and hosts on one file system."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)

    def _place(self, kind: str, key: str) -> Path:
        return self.root / "units" / kind / key[:2] / key

    def find(self, kind: str, key: str, verify: bool = True) -> Unit | None:
        """The unit, if it is whole. With `verify`, a unit whose files are missing or damaged counts as absent.

        A damaged unit is retired (its certificate is removed), so that it is made again.
        """
        certificate = self._place(kind, key).with_name(f"{key}.json")
        try:
            found = sealed.unseal(certificate)
        except FileNotFoundError:
            return None
        except sealed.Broken:
            durable.remove(certificate)
            return None
        unit = Unit(key, {name: UnitFile(**file) for name, file in found["files"].items()}, found["info"])
        if verify and not all(self._whole(file) for file in unit.files.values()):
            durable.remove(certificate)
            return None
        return unit

    def _whole(self, file: UnitFile) -> bool:
        path = self.root / file.path
        try:
            return path.stat().st_size == file.size and _seen(path) == file.sha256
        except FileNotFoundError:
            return False

    def publish(self, kind: str, key: str, drafts: Mapping[str, Path], info: Mapping[str, Any]) -> Unit:
        """Link finished `drafts` (name with extension -> path on the same file system) into place as one unit.

        The drafts lie in the maker's attempt folder, and so does all that a kill leaves behind; they are removed.
        DeterminismError if a whole unit of this key has other bytes.
        """
        place = self._place(kind, key)
        place.parent.mkdir(parents=True, exist_ok=True)
        files = {}
        for name, draft in sorted(drafts.items()):
            target = place.with_name(f"{key}.{name}")
            sha256 = durable.flushed_sha256(draft)
            files[name] = UnitFile(str(target.relative_to(self.root)), draft.stat().st_size, sha256)
            self._link(draft, target, sha256, certificate=place.with_name(f"{key}.json"))
            draft.unlink(missing_ok=True)
        unit = Unit(key, files, dict(info))
        scratch = next(iter(drafts.values())).parent
        self._certify(unit, place.with_name(f"{key}.json"), scratch)
        return unit

    def _link(self, draft: Path, target: Path, sha256: str, certificate: Path) -> None:
        try:
            durable.link(draft, target)
        except FileExistsError:
            existing = _seen(target) if target.is_file() else "a folder"
            if existing == sha256:
                return
            if _certified(certificate, target) == existing:
                raise DeterminismError(
                    f"{target} holds {existing[:12]}, the same work now gave {sha256[:12]}: the stage depends on "
                    "something that is not in its key (raise the stage's version if its code changed)"
                ) from None
            # Not what its certificate says, or never certified: damage, replaced whole.
            if target.is_dir():
                durable.remove_tree(target)
            durable.rename(draft, target)

    def _certify(self, unit: Unit, certificate: Path, scratch: Path) -> None:
        files = {name: vars(file) for name, file in unit.files.items()}
        content = {"schema": SCHEMA, "key": unit.key, "files": files, "info": unit.info}
        draft = durable.temporary(scratch / certificate.name)
        durable.write_bytes(draft, sealed.seal(content))
        try:
            durable.link(draft, certificate)
        except FileExistsError:
            existing = _content(certificate)
            if existing is None:  # damage, replaced whole
                durable.remove(certificate)
                durable.rename(draft, certificate)
            elif sealed.seal(existing) != sealed.seal(content):
                raise DeterminismError(
                    f"{certificate}: equal work was counted differently: {existing['info']} before, {unit.info} now"
                ) from None
        draft.unlink(missing_ok=True)


def _seen(path: Path) -> str:
    """The SHA-256 of a file; something else where the disk cannot read it, so that it is replaced as any damage is."""
    try:
        return durable.sha256(path)
    except OSError as error:
        if not is_unreadable(error):
            raise
        return "unreadable"


def is_unreadable(error: OSError) -> bool:
    """Whether the disk cannot read the file, which is damage; after any other error it may be whole."""
    return error.errno == errno.EIO


def _content(certificate: Path) -> dict[str, Any] | None:
    """What a certificate says; None if it is damaged or not there."""
    try:
        return sealed.unseal(certificate)
    except (FileNotFoundError, sealed.Broken):
        return None


def _certified(certificate: Path, target: Path) -> str | None:
    """The digest that the certificate gives for `target`'s name, if it is whole and names it."""
    files = (_content(certificate) or {"files": {}})["files"].values()
    return next((file["sha256"] for file in files if Path(file["path"]).name == target.name), None)
