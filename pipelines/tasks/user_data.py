"""Your own data: the records of JSONL, CSV, Parquet and Hugging Face datasets, each with the place it stands at."""

from __future__ import annotations

import json
from pathlib import Path

from model import durable
from pipelines.records import open_dataset
from pipelines.sources import SourceFile


def write_dataset(file: SourceFile, target: Path) -> None:
    """Write a Hugging Face dataset as JSON lines, so that a row has a line number."""
    lines = (json.dumps(record, ensure_ascii=False) for record in open_dataset(file))
    durable.write_bytes(target, "".join(line + "\n" for line in lines).encode())
