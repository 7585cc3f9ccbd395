"""Packages of any size that nobody loads: for pulling them."""

from __future__ import annotations

import random
from pathlib import Path

from pipelines import registry
from pipelines.model_card import Card
from pipelines.package import build_package
from pipelines.registry import ModelVersion
from tests.pipelines.tiny_exports import safetensors


def write_package(folder: Path, size: int, seed: int = 0, name: str = "big") -> Path:
    """The package of an export whose weights have `size` random bytes, in `folder`/package."""
    export = folder / "export"
    export.mkdir(parents=True)
    (export / "config.json").write_text('{"architectures": ["GPT2LMHeadModel"]}')
    (export / "tokenizer.json").write_text('{"made": "up"}')
    (export / "model.safetensors").write_bytes(safetensors(random.Random(seed).randbytes(size)))
    build_package(export, folder / "package", Card(name, "text-generation", "A test."))
    return folder / "package"


def register(uri: str, name: str, package: Path) -> ModelVersion:
    """Register the package and make it champion."""
    version = registry.register(uri, name, package, {"gptline.step": name, "gptline.fingerprint": f"f-{name}"})
    registry.promote(uri, version, [])
    return version


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a flat folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}
