"""Done is one record, written last.

The one idea: a step is done if and only if its `record.json` exists. The record lists every output with size
and SHA-256, what was asked (configuration, inputs), and under what it was made (code, libraries, numerics).
Times, hosts and run ids live here and in no output, so equal runs have equal outputs.
"""

from __future__ import annotations

import datetime
import functools
import json
import platform
import shutil
import socket
import subprocess
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from model import durable
from pipelines.engine import sealed
from pipelines.engine.fingerprint import digest
from pipelines.engine.units import UnitFile

SCHEMA = 1
RECORD = "record.json"

# What the bytes of an output may depend on, beside our own code.
_LIBRARIES = ("ray", "torch", "deepspeed", "transformers", "tokenizers", "gigatoken", "pyarrow", "numpy", "scikit-learn",
              "safetensors", "mlflow", "datasets")  # fmt: skip


@dataclass(frozen=True)
class Record:
    """What one finished step was, made and counted. `outputs` paths are relative to the work directory.

    `parents` names the folder below steps/ that each input was read from. It is no identity: other steps may have the
    same outputs. Records of before it was written have none.
    """

    stage: str
    step: str
    version: int
    fingerprint: str
    config: dict[str, Any]
    inputs: dict[str, str]
    outputs: list[UnitFile]
    metrics: dict[str, Any]
    numerics: dict[str, Any]
    code: dict[str, str]
    libraries: dict[str, str]
    started: str
    finished: str
    seconds: float
    host: str
    sources: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    parents: dict[str, str] = field(default_factory=dict)
    schema: int = SCHEMA

    def part(self, prefix: str, folder: str) -> str:
        """The digest of the outputs whose name below `folder`'s outputs begins with `prefix` ('' for all)."""
        base = f"{folder}/outputs/"
        named = [(file.path.removeprefix(base), file.sha256) for file in self.outputs if file.path.startswith(base)]
        chosen = sorted((name, sha256) for name, sha256 in named if name.startswith(prefix))
        if not chosen:
            raise KeyError(f"step {self.step} has no output '{prefix}'; it has {sorted(name for name, _ in named)}")
        return digest(chosen)


class RecordDamaged(ValueError):
    """A record is not the one that was written. Its step counts as not done."""


class UnknownSchema(ValueError):
    """A whole record that other code has written. It is nobody's to make again."""


def read(folder: Path) -> Record | None:
    """The record of the step in `folder`, or None if the step is not done. RecordDamaged if it was changed since."""
    try:
        content = sealed.unseal(folder / RECORD)
    except FileNotFoundError:
        return None
    except sealed.Broken as error:
        raise RecordDamaged(str(error)) from error
    if content.get("schema") != SCHEMA:
        raise UnknownSchema(
            f"{folder / RECORD} has schema {content.get('schema')}, this code reads {SCHEMA}: use the code that wrote it, or another work directory"
        )
    return Record(**{**content, "outputs": [UnitFile(**file) for file in content["outputs"]]})


def to_json(record: Record) -> bytes:
    """The bytes of `record.json`: the record, and the digest of its content."""
    return sealed.seal(json.loads(durable.to_json(asdict(record))))  # as it will be read back: plain types only


def now() -> str:
    """The present moment, UTC, ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


@functools.cache
def library_versions() -> dict[str, str]:
    """Versions of the installed libraries that bytes may depend on."""
    versions = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue  # e.g. no mlflow on a machine that only trains
    return versions


@functools.cache
def code_version() -> dict[str, str]:
    """The version of this code: the package's, and the commit where it runs from a checkout, as this process began."""
    checkout = Path(__file__).resolve().parents[2]
    version = {"package": metadata.version("gptline")} if _installed() else {}
    if (checkout / ".git").exists():
        if shutil.which("git") is None:
            return version | {"commit": "unknown"}
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=checkout, capture_output=True, text=True, check=False,
        )  # fmt: skip
        version["commit"] = described.stdout.strip() or "unknown"
    return version


def _installed() -> bool:
    try:
        metadata.version("gptline")
    except metadata.PackageNotFoundError:
        return False
    return True


def host() -> str:
    """This machine's name, for the record only."""
    return socket.gethostname()
