"""Attempts of data stages for tests: real Ray, real files, an owner that nobody disputes."""

from __future__ import annotations

import secrets
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from model import durable
from pipelines.config import Source
from pipelines.engine.step import Attempt
from pipelines.engine.units import UnitStore
from pipelines.sources import described
from pipelines.text_shards import row_groups

EXECUTION = {
    "workers": 2,
    "ray_address": "local",
    "ray_token": "",
    "cpus": 2,
    "max_failures": 10,
    "max_preemptions": 100,
}
SHARD = {"document_bytes": 256, "shard_bytes": 4096, "heldout_fraction": 0.2, "decontaminate_min_words": 8}


def attempt(
    root: Path, config: dict[str, Any], sources: dict[str, Any] | None = None, inputs: dict[str, Path] | None = None
) -> Attempt:
    """An attempt in `root`; `inputs` names folders of outputs that earlier steps left."""
    folder = root / "steps" / f"test-{secrets.token_hex(6)}"
    scratch = folder / "attempts" / "token"
    (scratch / "outputs").mkdir(parents=True)
    given: Any = {name: step_input(path) for name, path in (inputs or {}).items()}
    return Attempt(
        name="test", config=config, inputs=given, sources=sources or {}, root=root, folder=folder, scratch=scratch,
        units=UnitStore(root), execution=EXECUTION, fingerprint="0" * 64, ancestors={},
    )  # fmt: skip


def step_input(outputs: Path) -> Any:
    """A finished step's outputs as a stage sees them, their digest taken from the bytes that are there."""
    files = sorted(path for path in outputs.rglob("*") if path.is_file())
    digest = durable.sha256(files[0]) if files else ""
    return SimpleNamespace(outputs=outputs, digest=digest, path=outputs.joinpath, record=SimpleNamespace(step="shard"))


def corpus(*paths: Path, **options: Any) -> dict[str, Any]:
    """The files at `paths` as a step's corpus."""
    return {
        "corpus": [
            file
            for path in paths
            for file in described(Source(path=str(path), label="test", **options), path, durable.sha256, True)
        ]
    }


def rows(root: Path, outputs: Path, split: str) -> list[dict[str, str]]:
    """The documents of a split, as its manifest lists them."""
    units = durable.read_json(outputs / f"{split}.json")["units"]
    return [
        row
        for unit in units
        for table in row_groups(root / unit["path"], ["id", "text", "source"])
        for row in table.to_pylist()
    ]
