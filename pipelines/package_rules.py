"""What a package from a registry may hold: it is taken for hostile until it has passed here.

The one idea: what may be there is listed, not what may not. Names are plain ASCII paths that mean the same file on every
system; a file is text or safetensors, so there is nothing to unpickle; and what MLflow would run or install is byte for
byte what a gptline has written. Names and sizes are checked before anything is fetched, contents before anything is
published.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

ENTRY = "pyfunc_entry.py"
LOADER = "mlflow.pyfunc.loaders.code_model"
MLMODEL = "MLmodel"
WEIGHTS = ".safetensors"
TEXT = {".json", ".txt", ".md", ".yaml", ".jinja"}
# What MLflow runs (the entry) or installs (the others), and the SHA-256 that earlier gptlines gave it. Who
# changes one of them adds the digest that it had, so that versions that were registered before can still be pulled.
OURS = (ENTRY, "requirements.txt", "python_env.yaml", "conda.yaml")
EARLIER: Mapping[str, frozenset[str]] = {
    ENTRY: frozenset(
        (
            "e8d993f8dc5f2b9f7fae323f0b1484edd8b346b291bb8bf8be9d77700da2013b",
            "a22e1554dd1f338215fdd12d6fde68290ead7b17224b634734b190bd732d8e5c",
            "f157ea86959287d74f9f1a1e04926cfb23615eabd95a740336d9bc2f4c0796cb",
            "98a0936a217e5f69b2e8dc84bcbef1390d297cafaa551c13c946ef80c9539c2e",
        )
    ),
}

MANIFEST_BYTES = 4 << 20  # the longest manifest
MLMODEL_BYTES = 16 << 10
_FILES = 10_000
_HEADER_BYTES = 100 << 20  # of a safetensors file, as its own library limits it
_UNPICKLED = {".bin", ".ckpt", ".dill", ".joblib", ".npy", ".npz", ".pickle", ".pkl", ".pt", ".pth"}
_PART = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}"  # no hidden files, no "..", no drive, no space, nothing that looks like something else
_PLAIN = re.compile(rf"{_PART}(?:/{_PART}){{0,7}}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class PackageDamaged(Exception):
    """A package is not what its MANIFEST.json says. The message names the folder, the file and what differs."""


class PackageRefused(PackageDamaged):
    """A package holds what could do harm. The message names it; nothing of the package was published."""


def refusal(name: str) -> str | None:
    """Why a package may not hold a file of this name; None if it may."""
    if not _PLAIN.fullmatch(name):
        return f"{name!r} is no plain path inside the package (letters, digits and ._- only)"
    suffix = PurePosixPath(name).suffix.lower()
    if suffix in _UNPICKLED:
        return f"{name!r} is a kind of file that may hold a pickle"
    if name not in (ENTRY, MLMODEL) and suffix not in {*TEXT, WEIGHTS}:
        return f"{name!r} is no kind of file that a package holds ({', '.join(sorted(TEXT))}, {WEIGHTS})"
    return None


def check_files(files: Any, where: str) -> None:
    """PackageRefused if a manifest lists what a package may not hold; PackageDamaged if it is none. `where` is for the messages."""
    if not isinstance(files, dict) or not all(isinstance(name, str) for name in files):
        raise PackageDamaged(f"{where}: its files are no table; pull or build it again")
    if len(files) > _FILES:
        raise PackageRefused(f"{where}: lists {len(files):,} files, more than {_FILES:,}; do not use it")
    for name, stated in files.items():
        if why := refusal(name):
            raise PackageRefused(f"{where}: {why}; do not use it")
        _check_stated(name, stated, where)
    _check_one_name_each(files, where)


def _check_stated(name: str, stated: Any, where: str) -> None:
    size, sha256 = (stated.get("size"), stated.get("sha256")) if isinstance(stated, dict) else (None, None)
    if type(size) is not int or size < 0 or not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        raise PackageRefused(f"{where}: {name!r} has no size and SHA-256 that could be checked; do not use it")


def _check_one_name_each(files: Iterable[str], where: str) -> None:
    """No two names that are one on a file system without case, and no file that is a folder of another."""
    seen: dict[str, str] = {}
    for name in files:
        other = seen.setdefault(name.lower(), name)
        if other != name:
            raise PackageRefused(f"{where}: {name!r} and {other!r} differ by case only; do not use it")
    for name in files:
        for folder in map(str, PurePosixPath(name.lower()).parents):
            if folder in seen:
                raise PackageRefused(f"{where}: {seen[folder]!r} is a file and a folder; do not use it")


def check_code(files: Mapping[str, Any], ours: Mapping[str, str], where: str) -> None:
    """PackageRefused if what MLflow would run or install is not what a gptline wrote.

    `ours` has the SHA-256 of those files as this gptline writes them. In another case they are the same files on a file
    system without case, and no gptline writes them so.
    """
    for name in [name for name in files if PurePosixPath(name).name.lower() in OURS or name.lower().endswith(".py")]:
        if files[name]["sha256"] not in {ours.get(name), *EARLIER.get(name, ())}:
            raise PackageRefused(
                f"{where}: {name} would be {'run' if name.endswith('.py') else 'installed from'} by MLflow, and no gptline "
                "that this one knows of has written it.\nnext: if a newer gptline registered the model, update this one; "
                "if you trust whoever registered it, pull with --trust-code"
            )


def check_content(name: str, path: Path) -> None:
    """PackageRefused if the file is not of the kind that its name says: text, or safetensors."""
    if name == MLMODEL:
        _check_mlmodel(path)
    elif PurePosixPath(name).suffix.lower() == WEIGHTS:
        _check_safetensors(name, path)
    else:
        _check_text(name, path)


def _check_text(name: str, path: Path) -> None:
    """A pickle, a zip and a program are no UTF-8, or have zero bytes."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                if "\0" in decoder.decode(block):
                    raise PackageRefused(f"{name}: has zero bytes, so it is no text as its name says; do not use it")
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise PackageRefused(f"{name}: is no text, as its name says ({error.reason}); do not use it") from error


def _check_safetensors(name: str, path: Path) -> None:
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        start = file.read(1)
    if size < 8 or not 0 < length <= min(size - 8, _HEADER_BYTES) or start != b"{":
        raise PackageRefused(f"{name}: is no safetensors file, as its name says; do not use it")


def _check_mlmodel(path: Path) -> None:
    """MLmodel decides what MLflow runs: it may name our entry, and nothing else."""
    import yaml

    if path.stat().st_size > MLMODEL_BYTES:
        raise PackageRefused(
            f"{MLMODEL}: has {path.stat().st_size:,} bytes, more than {MLMODEL_BYTES:,}; do not use it"
        )
    try:
        said = yaml.safe_load(path.read_bytes())
        flavors = said["flavors"]
        flavor = dict(flavors["python_function"])
    except (yaml.YAMLError, TypeError, KeyError, ValueError, RecursionError) as error:
        raise PackageRefused(f"{MLMODEL}: cannot be read ({type(error).__name__}); do not use it") from error
    wanted = {"loader_module": LOADER, "model_code_path": ENTRY, "artifacts": {"export": {"path": ".", "uri": "."}}}
    for field, value in wanted.items():
        if flavor.pop(field, None) != value:
            raise PackageRefused(
                f"{MLMODEL}: its {field} is not {json.dumps(value)}, so it would run other code; do not use it"
            )
    unknown = [*(set(said) - {"flavors", "signature"}), *(set(flavors) - {"python_function"})]
    unknown += set(flavor) - {"python_version", "env", "streamable"}
    if unknown or flavor.get("env") != {"conda": "conda.yaml", "virtualenv": "python_env.yaml"}:
        raise PackageRefused(
            f"{MLMODEL}: says more than gptline writes ({', '.join(map(str, unknown)) or 'env'}); do not use it"
        )
