"""Duplicates across pieces: found by ids alone, after the pieces are made.

The one idea: of equal documents the first piece in canonical order keeps its own. Only the pieces that lose some are
rewritten, as units of their own, keyed by the unit they come from and by what they lose.
"""

from __future__ import annotations

from typing import Any

from model import durable
from pipelines.engine.step import Attempt
from pipelines.engine.units import Unit, unit_key
from pipelines.stages.fan_out import fan_out


def without_repeated(attempt: Attempt, units: list[Unit], version: int) -> tuple[list[Unit], int]:
    """The units, those rewritten that repeat documents of earlier ones; and how many documents were dropped.

    `version` is that of the stage.
    """
    import numpy as np

    ids = [np.fromfile(attempt.root / unit.files["ids.bin"].path, np.uint8).reshape(-1, 16) for unit in units]
    drops = repeated(ids)
    items = {index: _item(attempt, units[index], drop, version) for index, drop in enumerate(drops) if len(drop)}
    pending = [item for item in items.values() if attempt.units.find("text", item["key"]) is None]
    for _ in fan_out(attempt, "pipelines.stages.shard_work:rewrite_piece", pending):
        pass
    final = [published(attempt, items[index]["key"]) if index in items else unit for index, unit in enumerate(units)]
    return final, sum(len(drop) for drop in drops)


def _item(attempt: Attempt, unit: Unit, drop: Any, version: int) -> dict[str, Any]:
    """The work item that rewrites `unit` without the ids in `drop`, which travel in a file."""
    names = durable.temporary(attempt.scratch / "drop.bin")
    durable.write_bytes(names, drop.tobytes())
    config = {"shard_bytes": attempt.config["shard_bytes"]}
    return config | {
        "root": str(attempt.root),
        "scratch": str(attempt.scratch),
        "key": unit_key("shard-rewrite", version, config, [unit.key, durable.sha256(names)]),
        "of": unit.key,
        "drop": str(names),
    }


def published(attempt: Attempt, key: str) -> Unit:
    """A text unit that was published, and so hashed, just now."""
    unit = attempt.units.find("text", key, verify=False)
    assert unit is not None, (
        f"text unit {key} was published and is gone: does something remove files from {attempt.root}?"
    )
    return unit


def repeated(ids: list[Any]) -> list[Any]:
    """For each piece's ids ((documents, 16) uint8 each), those that an earlier piece has already.

    Needs about 50 bytes of memory for each document of the corpus.
    """
    import numpy as np

    everything = np.concatenate([np.zeros((0, 16), np.uint8), *ids])  # (documents, 16)
    high, low = np.ascontiguousarray(everything).view(">u8").T  # (documents,) each
    order = np.lexsort((low, high))  # stable: among equal ids the earliest piece comes first
    same = (high[order][1:] == high[order][:-1]) & (low[order][1:] == low[order][:-1])
    drop: Any = np.zeros(len(everything), bool)
    drop[order[1:][same]] = True
    ends = np.cumsum([len(piece) for piece in ids])
    return [piece[mask] for piece, mask in zip(ids, np.split(drop, ends)[: len(ids)], strict=True)]
