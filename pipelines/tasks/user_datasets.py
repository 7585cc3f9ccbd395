"""A Hugging Face dataset of your own as a file of JSON lines, which is read as any other.

The one idea: a dataset's rows get line numbers by being written out, so that whatever is wrong in one has a place; what the
library cannot read is an error that says after which row.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from model import durable
from pipelines.records import open_dataset
from pipelines.sources import SourceError, SourceFile


def write_dataset(file: SourceFile, target: Path) -> None:
    """Write a Hugging Face dataset as JSON lines; classes that it stores as numbers by their names, an unknown one (-1) as null.

    SourceError names the row that is no JSON, and the one after which the library stops.
    """
    stream = open_dataset(file)
    classes = {
        name: feature.names for name, feature in (stream.features or {}).items() if getattr(feature, "names", None)
    }
    durable.write_bytes(target, "".join(_json_lines(file, stream, classes)).encode("utf-8", "surrogatepass"))


def _json_lines(file: SourceFile, stream: Iterable[dict[str, Any]], classes: dict[str, list[str]]) -> Iterator[str]:
    for row, record in _rows(file, stream):
        named = {
            name: names[record[name]] if record[name] >= 0 else None  # a class of -1 means: none is known
            for name, names in classes.items()
            if isinstance(record.get(name), int)
        }
        try:
            yield json.dumps(record | named, ensure_ascii=False) + "\n"
        except TypeError as error:
            raise SourceError(
                f"dataset {file.path}: row {row} holds what is no text, number or list ({error}); drop that column"
            ) from error


def _rows(file: SourceFile, stream: Iterable[dict[str, Any]]) -> Iterator[tuple[int, dict[str, Any]]]:
    row = 0
    try:
        for row, record in enumerate(stream, 1):
            yield row, record
    except Exception as error:  # the library raises many kinds, as when it is opened
        raise SourceError(f"dataset {file.path} cannot be read on after row {row}: {error}") from error
