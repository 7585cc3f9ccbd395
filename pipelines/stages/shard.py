"""shard: corpus sources in, text shards (train, held-out) out.

The one idea: a piece of the sources (see `pieces.py`) is a unit, keyed by its bytes and by the configuration; what
exists is not made again. Duplicates within a piece fall in its task. Duplicates across pieces are found here, by
ids alone, and only the pieces that hold some are rewritten, as units of their own.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from model import durable
from pipelines import pieces, text_shards
from pipelines.contamination import evaluation_inputs
from pipelines.engine.fingerprint import digest
from pipelines.engine.step import Attempt, Stage
from pipelines.engine.units import Unit, unit_key
from pipelines.sources import DATASET, FORMATS, SourceError, SourceFile, source_file
from pipelines.stages.fan_out import fan_out
from pipelines.stretches import Stretch, stretch_from

STAGE = Stage("shard", 1, "pipelines.stages.shard:run")
log = logging.getLogger(__name__)


class EmptySplit(SourceError):
    """Train or held-out got no document. The message says how many documents there were and what to change."""


def run(attempt: Attempt) -> dict[str, Any]:
    """Write train.json, heldout.json, pieces.json, statistics.json and rejects.jsonl; return the key counts."""
    given = [source_file(file) for file in attempt.sources["corpus"]]
    files = pieces.unique_files(given)
    keyed = _keyed(attempt, sorted(_pieces(attempt, files), key=lambda piece: piece[0].sha256))
    made, reused = _made(attempt, keyed)
    units = [made[key] for key in keyed]
    final, dropped = _without_duplicates(attempt, units)
    return _write(attempt, keyed, units, final, dropped, len(given) - len(files)) | {"pieces_reused": reused}


def _pieces(attempt: Attempt, files: list[SourceFile]) -> Iterator[list[Stretch]]:
    """All pieces of the sources: large files cut by tasks, small ones grouped."""
    for file in files:
        if file.format not in (*FORMATS, DATASET):
            raise SourceError(f"{file.path}: {file.format} is no format of a corpus; use one of {', '.join(FORMATS)}")
    shard_bytes, document_bytes = attempt.config["shard_bytes"], attempt.config["document_bytes"]
    large = [file for file in files if pieces.needs_cutting(file, shard_bytes)]
    yield from pieces.group([file for file in files if file not in large], shard_bytes)
    items = [{"file": asdict(file), "shard_bytes": shard_bytes, "document_bytes": document_bytes} for file in large]
    for _, found in fan_out(attempt, "pipelines.pieces:cut_file", items):
        yield from ([stretch_from(stretch)] for stretch in found)


def _keyed(attempt: Attempt, found: list[list[Stretch]]) -> dict[str, list[Stretch]]:
    """The pieces by unit key, in canonical order. Equal pieces (of large files with equal parts) are one."""
    _, evaluation = evaluation_inputs(attempt.inputs)
    config = {**attempt.config, "evaluation": evaluation}
    return {unit_key("shard", STAGE.version, config, [stretch.identity for stretch in piece]): piece for piece in found}


def _made(attempt: Attempt, keyed: dict[str, list[Stretch]]) -> tuple[dict[str, Unit], int]:
    """The unit of each piece, by key, and how many there were already."""
    made = {key: unit for key in keyed if (unit := attempt.units.find("text", key))}
    reused = len(made)
    items = [_item(attempt, key, piece) for key, piece in keyed.items() if key not in made]
    total = sum(_size(stretch) for piece in keyed.values() for stretch in piece) / 1e6
    done = total - sum(_size(stretch) for key in keyed if key not in made for stretch in keyed[key]) / 1e6
    for index, _ in fan_out(attempt, "pipelines.stages.shard_work:shard_piece", items):
        key = items[index]["key"]
        unit = attempt.units.find("text", key, verify=False)  # hashed when it was published, just now
        assert unit is not None
        made[key] = unit
        done += sum(_size(stretch) for stretch in keyed[key]) / 1e6
        attempt.progress(done, total, "MB", pieces=f"{len(made)}/{len(keyed)}")
    return made, reused


def _size(stretch: Stretch) -> int:
    """About how many bytes of source a stretch has, for progress."""
    if stretch.stop is None or stretch.file.format in ("parquet", DATASET):
        return stretch.file.size
    return stretch.stop - stretch.start


def _item(attempt: Attempt, key: str, piece: list[Stretch]) -> dict[str, Any]:
    paths, digests = evaluation_inputs(attempt.inputs)
    return {
        "root": str(attempt.root), "scratch": str(attempt.scratch), "key": key, "config": dict(attempt.config),
        "piece": [asdict(stretch) for stretch in piece], "evaluation": {"paths": paths, "digest": digest(digests)},
    }  # fmt: skip


def _without_duplicates(attempt: Attempt, units: list[Unit]) -> tuple[list[Unit], int]:
    """The units with those that repeat documents of an earlier one rewritten; how many documents were dropped."""
    import numpy as np

    ids = [np.fromfile(attempt.root / unit.files["ids.bin"].path, np.uint8).reshape(-1, 16) for unit in units]
    final, items = list(units), []
    drops = repeated(ids)
    for index, drop in enumerate(drops):
        if len(drop):
            names = durable.temporary(attempt.scratch / "drop.bin")
            durable.write_bytes(names, drop.tobytes())
            key = unit_key("shard-rewrite", STAGE.version, {"shard_bytes": attempt.config["shard_bytes"]}, [units[index].key, durable.sha256(names)])
            items.append({"root": str(attempt.root), "scratch": str(attempt.scratch), "key": key, "of": units[index].key,
                          "drop": str(names), "shard_bytes": attempt.config["shard_bytes"], "index": index})  # fmt: skip
    pending = [item for item in items if attempt.units.find("text", item["key"]) is None]
    for _ in fan_out(attempt, "pipelines.stages.shard_work:rewrite_piece", pending):
        pass
    for item in items:
        unit = attempt.units.find("text", item["key"], verify=False)
        assert unit is not None
        final[item["index"]] = unit
    return final, sum(len(drop) for drop in drops)


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


def _write(
    attempt: Attempt, keyed: dict[str, list[Stretch]], units: list[Unit], final: list[Unit], dropped: int, same_files: int
) -> dict[str, Any]:
    """Write the outputs and return the metrics."""
    manifests = {split: text_shards.manifest(final, split) for split in ("train", "heldout")}
    sizes = {split: {name: sum(entry[name] for entry in found["units"]) for name in ("documents", "bytes")} for split, found in manifests.items()}
    counts = {name: sum(unit.info[name] for unit in units) for name in ("duplicates", "contaminated", "blank", "rejected")}
    counts["duplicates"] += dropped
    _refuse_empty(attempt, sizes, counts)
    for split, content in manifests.items():
        durable.write_json(attempt.outputs / f"{split}.json", content)
    described = [{"unit": key, "stretches": [stretch.identity for stretch in piece]} for key, piece in keyed.items()]
    durable.write_json(attempt.outputs / "pieces.json", {"schema": 1, "kind": "pieces", "pieces": described})
    statistics = sizes | counts | {"duplicate_files": same_files, "pieces": len(units), "sources": _by_source(units), "evaluation": units[0].info["evaluation"]}
    durable.write_json(attempt.outputs / "statistics.json", statistics)
    _write_rejects(attempt, units, {stretch.sha256: stretch.file.path for piece in keyed.values() for stretch in piece})
    attempt.add_outputs([file for unit in final for file in unit.files.values()])
    return {f"{split}_{name}": value for split, size in sizes.items() for name, value in size.items()} | counts | {"pieces": len(units)}


def _by_source(units: list[Unit]) -> dict[str, dict[str, int]]:
    """Documents and bytes by source label, before duplicates across pieces are dropped."""
    found: dict[str, dict[str, int]] = {}
    for unit in units:
        for label, counts in unit.info["sources"].items():
            known = found.setdefault(label, {"documents": 0, "bytes": 0})
            found[label] = {name: known[name] + counts[name] for name in known}
    return found


def _refuse_empty(attempt: Attempt, sizes: dict[str, dict[str, int]], counts: dict[str, int]) -> None:
    for split, size in sizes.items():
        if size["documents"] == 0:
            total = sum(other["documents"] for other in sizes.values())
            advice = "raise heldout_fraction" if split == "heldout" else "lower heldout_fraction"
            raise EmptySplit(
                f"the {split} split is empty: {total} documents with heldout_fraction={attempt.config['heldout_fraction']} and "
                f"document_bytes={attempt.config['document_bytes']} ({', '.join(f'{count} {name}' for name, count in counts.items())}); "
                f"{advice}, lower document_bytes, or add text"
            )


def _write_rejects(attempt: Attempt, units: list[Unit], paths: dict[str, str]) -> None:
    """All rejects in one file, and the first of them in the log with the names that files have here."""
    found = [(attempt.root / unit.files["rejects.jsonl"].path).read_bytes() for unit in units if "rejects.jsonl" in unit.files]
    durable.write_bytes(attempt.outputs / "rejects.jsonl", b"".join(found))
    rejects = [json.loads(line) for content in found for line in content.split(b"\n") if line]
    for reject in rejects[:20]:
        log.warning("skipped %s:%d: %s", paths.get(reject["file"], reject["file"]), reject["line"], reject["reason"])
    if rejects:
        log.warning("%d bad records were skipped; all of them are in rejects.jsonl", len(rejects))
