"""The registered artifact: an export directory that explains, checks and loads itself.

The one idea: a package is a pure function of the export and its `Card`. Its MANIFEST.json lists every other file
with size and SHA-256, and the lineage back to the raw sources; the SHA-256 of that is the *package digest*, by which
the registry recognises a repeat and a pull recognises damage. Nothing here is executed or unpickled.

    config.json, model.safetensors, tokenizer.json, ...   the export: what `from_pretrained` reads
    README.md                                             the model card
    MLmodel, pyfunc_entry.py, requirements.txt, ...       what `mlflow.pyfunc.load_model` reads
    MANIFEST.json                                         written last
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from model import durable
from pipelines import package_rules
from pipelines.model_card import Card, new_tokens, render
from pipelines.package_rules import ENTRY, LOADER, MLMODEL
from pipelines.package_rules import PackageDamaged as PackageDamaged

MANIFEST = "MANIFEST.json"
SCHEMA = 1
# Ranges, not what is installed here: equal exports must give equal packages on every machine.
_REQUIREMENTS = ("mlflow>=3.17,<4", "torch>=2.9", "transformers>=5,<6")
_PYTHON = "3.11"
# What MLflow and Python leave in a folder that a model is loaded from; it is no part of the package.
_LITTER = {"registered_model_meta", "__pycache__"}


def build_package(export: Path, outdir: Path, card: Card, beside: Sequence[Path] = ()) -> str:
    """Write the package of `export`, and of the files `beside` it, to the new folder `outdir` and return its digest (SHA-256, hex).

    FileExistsError if `outdir` exists; ValueError if the export holds what a package may not, or a file of ours.
    """
    outdir.mkdir()
    sources = {name: export / name for name in sorted(_regular_files(export))} | {file.name: file for file in beside}
    for name, source in sources.items():
        if why := package_rules.refusal(name):
            raise ValueError(f"{source}: {why}; export weights as .safetensors, and nothing that is run")
        target = outdir / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with durable.writing(target) as draft:
            shutil.copyfile(source, draft)
    for name, data in _our_files(card).items():
        if (outdir / name).exists():
            raise ValueError(f"{export / name}: the export already has a file that packaging writes; remove it")
        durable.write_bytes(outdir / name, data)
    manifest = _manifest(outdir, card)
    durable.write_json(outdir / MANIFEST, manifest)
    return str(manifest["digest"])


def read_manifest(path: Path) -> dict[str, Any]:
    """A MANIFEST.json, checked: schema, digest of itself, and that it lists only what a package may hold."""
    return parsed_manifest(path.read_bytes(), str(path))


def parsed_manifest(data: bytes, where: str) -> dict[str, Any]:
    """`read_manifest`, of its bytes; `where` they are from is for the messages."""
    try:
        manifest = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise PackageDamaged(f"{where} is not valid JSON ({error}); it was damaged or edited by hand") from error
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA or manifest.get("kind") != "model_package":
        raise PackageDamaged(f"{where} is no package manifest of schema {SCHEMA}; pull with the gptline that wrote it")
    if manifest.get("digest") != _digest(manifest):
        raise PackageDamaged(f"{where}: its content does not give the digest that it states; it was changed")
    package_rules.check_files(manifest.get("files"), where)
    return manifest


def verify_package(folder: Path) -> dict[str, Any]:
    """Check every file of `folder` against its MANIFEST.json and return that. PackageDamaged says what differs."""
    manifest = read_manifest(folder / MANIFEST)
    found = {name for name in _regular_files(folder) if not _LITTER & set(PurePosixPath(name).parts)} - {MANIFEST}
    for name in sorted(found ^ set(manifest["files"])):
        raise PackageDamaged(f"{folder / name}: " + ("not in the manifest" if name in found else "is missing"))
    for name, stated in manifest["files"].items():
        verify_file(folder / name, stated)
    return manifest


def verify_file(path: Path, stated: dict[str, Any]) -> None:
    """PackageDamaged if the file has not the stated "size" (bytes) and "sha256"."""
    if (size := path.stat().st_size) != stated["size"]:
        raise PackageDamaged(f"{path}: {size} bytes, the manifest says {stated['size']}; pull or build it again")
    if (seen := durable.sha256(path)) != stated["sha256"]:
        raise PackageDamaged(f"{path}: SHA-256 {seen}, the manifest says {stated['sha256']}; pull or build it again")


def _regular_files(folder: Path) -> Iterator[str]:
    """Paths of the files below `folder`, relative, with slashes. PackageDamaged at a link or a device."""
    for path in durable.below(folder):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise PackageDamaged(f"{path} is a link or a device; a package holds plain files only")
        if path.is_file():
            yield path.relative_to(folder).as_posix()


def _manifest(folder: Path, card: Card) -> dict[str, Any]:
    files = {
        name: {"size": (folder / name).stat().st_size, "sha256": durable.sha256(folder / name)}
        for name in _regular_files(folder)
    }
    manifest: dict[str, Any] = {"schema": SCHEMA, "kind": "model_package", "name": card.name, "task": card.task}
    manifest |= {"files": files, "lineage": dict(card.lineage)}
    manifest |= {"base": {key: card.base[key] for key in ("name", "digest")}} if card.base is not None else {}
    return manifest | {"digest": _digest(manifest)}


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(durable.to_json({**manifest, "digest": None})).hexdigest()


def _our_files(card: Card) -> dict[str, bytes]:
    """What is added to the export: the card, and what MLflow reads."""
    if card.base is not None:  # an adapter runs nowhere without its base, which is what MLflow would run
        return {"README.md": render(card).encode()}
    return {"README.md": render(card).encode(), MLMODEL: _yaml(_mlmodel(card)), **_run_or_installed()}


def _run_or_installed() -> dict[str, bytes]:
    """What MLflow runs, and what it installs to run it: the same in every package."""
    environment = {"python": _PYTHON, "dependencies": ["-r requirements.txt"]}
    conda = {
        "name": "mlflow-env",
        "channels": ["conda-forge"],
        "dependencies": [f"python={_PYTHON}", "pip", {"pip": list(_REQUIREMENTS)}],
    }
    return {
        ENTRY: Path(__file__).with_name(ENTRY).read_bytes(),
        "requirements.txt": "".join(f"{line}\n" for line in _REQUIREMENTS).encode(),
        "python_env.yaml": _yaml(environment),
        "conda.yaml": _yaml(conda),
    }


def check_code(manifest: dict[str, Any], where: str) -> None:
    """PackageRefused if MLflow would run or install something of this package that no gptline has written."""
    ours = {name: hashlib.sha256(data).hexdigest() for name, data in _run_or_installed().items()}
    package_rules.check_code(manifest["files"], ours, where)


def _mlmodel(card: Card) -> dict[str, Any]:
    """MLflow's own description of a model, without the times and ids that it would add."""
    flavor = {
        "loader_module": LOADER,
        "model_code_path": ENTRY,
        "python_version": f"{_PYTHON}.0",
        "artifacts": {"export": {"path": ".", "uri": "."}},
        "env": {"conda": "conda.yaml", "virtualenv": "python_env.yaml"},
        "streamable": False,
    }
    return {"flavors": {"python_function": flavor}, "signature": _signature(card)}


def _signature(card: Card) -> dict[str, Any]:
    """Input: one unnamed column of texts, so that lists, Series and DataFrames are all taken."""
    if card.task == "text-classification":
        outputs = [{"type": "string", "name": "label"}, {"type": "double", "name": "score"}]
        params = None
    elif card.task == "question-answering":
        outputs = [
            {"type": "string", "name": "answer"},
            {"type": "long", "name": "start"},
            {"type": "double", "name": "score"},
        ]
        params = None
    elif card.task == "fill-mask":
        outputs, params = [{"type": "string"}], None
    else:
        outputs = [{"type": "string"}]
        params = [
            {"name": "max_new_tokens", "type": "long", "default": new_tokens(card), "shape": None},
            {"name": "temperature", "type": "double", "default": 0.0, "shape": None},
            {"name": "seed", "type": "long", "default": 0, "shape": None},
        ]
    columns = {"inputs": [{"type": "string", "required": True}], "outputs": outputs, "params": params}
    return {name: json.dumps(value) if value else None for name, value in columns.items()}


def _yaml(value: Any) -> bytes:
    import yaml

    return str(yaml.safe_dump(value, sort_keys=True, allow_unicode=True)).encode()
