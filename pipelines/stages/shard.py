"""shard: corpus sources in, text shards (train, held-out) out.

The one idea: a piece of the sources (see `pieces.py`) is a unit, keyed by its bytes and by the configuration; what
exists is not made again. Duplicates within a piece fall in its task, those across pieces afterwards (see
`shard_duplicates.py`), so that a task needs to know of no other.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from model import durable
from pipelines import amendments, pieces, text_shards
from pipelines.contamination import evaluation_inputs
from pipelines.engine.fingerprint import digest
from pipelines.engine.step import Attempt, Stage
from pipelines.engine.units import Unit, unit_key
from pipelines.pieces import Piece
from pipelines.sources import DATASET, FORMATS, SourceError, SourceFile, source_file
from pipelines.stages.fan_out import fan_out
from pipelines.stages.shard_duplicates import published, without_repeated
from pipelines.stretches import Stretch, stretch_from

STAGE = Stage("shard", 2, "pipelines.stages.shard:run")
log = logging.getLogger(__name__)


class EmptySplit(SourceError):
    """Train or held-out got no document. The message says how many documents there were and what to change."""


def run(attempt: Attempt) -> dict[str, Any]:
    """Write train.json, heldout.json, pieces.json, statistics.json and rejects.jsonl; return the key counts."""
    given = [source_file(file) for file in attempt.sources["corpus"]]
    files = pieces.unique_files(given)
    ordered = sorted(_pieces(attempt, files), key=_order)
    planned = {piece.key: piece for piece in ordered}  # large files may have equal stretches: one piece, one unit
    units, reused = _made(attempt, list(planned.values()))
    repeats = sum(
        _documents(units[key]) * (count - 1) for key, count in Counter(piece.key for piece in ordered).items()
    )
    made = [units[key] for key in planned]
    final, dropped = without_repeated(attempt, made, STAGE.version)
    # The units that were rewritten are listed too: the next file's run starts from them.
    attempt.add_outputs(
        [file for unit in {unit.key: unit for unit in made + final}.values() for file in unit.files.values()]
    )
    splits = {split: text_shards.manifest(final, split) for split in ("train", "heldout")}
    sizes = {
        f"{split}_{name}": sum(entry[name] for entry in found["units"])
        for split, found in splits.items()
        for name in ("documents", "bytes")
    }
    counts = _counts(made, repeats + dropped, len(given) - len(files))
    _refuse_empty(attempt, sizes, counts)
    for split, manifest in splits.items():
        durable.write_json(attempt.outputs / f"{split}.json", manifest)
    _write_account(attempt, list(planned.values()), made, sizes | counts)
    return sizes | counts | {"pieces": len(made), "pieces_reused": reused}


def _pieces(attempt: Attempt, files: list[SourceFile]) -> Iterator[Piece]:
    """All pieces of the sources: large files cut by tasks, small ones grouped."""
    for file in files:
        if file.format not in (*FORMATS, DATASET):
            raise SourceError(f"{file.path}: {file.format} is no format of a corpus; use one of {', '.join(FORMATS)}")
    shard_bytes, document_bytes = attempt.config["shard_bytes"], attempt.config["document_bytes"]
    large = [file for file in files if pieces.needs_cutting(file, shard_bytes)]
    small = [file for file in files if not pieces.needs_cutting(file, shard_bytes)]
    yield from (_piece(attempt, found) for found in pieces.group(small, shard_bytes))
    items = [{"file": asdict(file), "shard_bytes": shard_bytes, "document_bytes": document_bytes} for file in large]
    cut = dict(fan_out(attempt, "pipelines.pieces:cut_file", items))  # which task ends first must not show
    for index in range(len(items)):
        yield from (_piece(attempt, [stretch_from(stretch)]) for stretch in cut[index])


def _order(piece: Piece) -> tuple[str, int, str]:
    """The canonical order of pieces, total: stretches of one Parquet file or dataset share its digest."""
    return piece.stretches[0].sha256, piece.stretches[0].start, piece.key


def _piece(attempt: Attempt, stretches: list[Stretch]) -> Piece:
    _, evaluation = evaluation_inputs(attempt.inputs)
    # These make the step look; what it finds in the examples is in `evaluation`, and most have none.
    given = {name: value for name, value in attempt.config.items() if name not in amendments.CLEANED}
    config = given | {"evaluation": evaluation}
    return Piece(
        unit_key("shard", STAGE.version, config, [stretch.identity for stretch in stretches]), tuple(stretches)
    )


def _made(attempt: Attempt, planned: list[Piece]) -> tuple[dict[str, Unit], int]:
    """The unit of each piece, by key, and how many there were already."""
    made = {piece.key: unit for piece in planned if (unit := attempt.units.find("text", piece.key))}
    reused = len(made)
    missing = [piece for piece in planned if piece.key not in made]
    total, done = sum(piece.size for piece in planned), sum(piece.size for piece in planned if piece.key in made)
    items = [_item(attempt, piece) for piece in missing]
    for index, key in fan_out(attempt, "pipelines.stages.shard_work:shard_piece", items):
        made[key] = published(attempt, key)
        done += missing[index].size
        attempt.progress(done / 1e6, total / 1e6, "MB", pieces=f"{len(made)}/{len(planned)}")
    return made, reused


def _item(attempt: Attempt, piece: Piece) -> dict[str, Any]:
    paths, digests = evaluation_inputs(attempt.inputs)
    return {
        "root": str(attempt.root),
        "scratch": str(attempt.scratch),
        "key": piece.key,
        "config": dict(attempt.config),
        "piece": [asdict(stretch) for stretch in piece.stretches],
        "evaluation": {"paths": paths, "digest": digest(digests)},
    }


def _documents(unit: Unit) -> int:
    return sum(counts["documents"] for counts in unit.info["files"].values())


def _counts(made: list[Unit], repeated: int, same_files: int) -> dict[str, int]:
    """What was left out, by reason. `repeated` documents are in the corpus again across pieces."""
    counts = {
        name: sum(unit.info[name] for unit in made) for name in ("duplicates", "contaminated", "blank", "rejected")
    }
    return counts | {"duplicates": counts["duplicates"] + repeated, "duplicate_files": same_files}


def _refuse_empty(attempt: Attempt, sizes: dict[str, int], counts: dict[str, int]) -> None:
    total = sizes["train_documents"] + sizes["heldout_documents"]
    for split, advice in (("train", "lower heldout_fraction"), ("heldout", "raise heldout_fraction")):
        if sizes[f"{split}_documents"] == 0:
            left_out = ", ".join(f"{count} {name}" for name, count in counts.items())
            raise EmptySplit(
                f"the {split} split is empty: {total} documents with heldout_fraction={attempt.config['heldout_fraction']} "
                f"and document_bytes={attempt.config['document_bytes']} ({left_out}); {advice}, lower document_bytes, or add text"
            )


def _write_account(attempt: Attempt, planned: list[Piece], made: list[Unit], counts: dict[str, int]) -> None:
    """Where every document came from (pieces.json), what was counted (statistics.json), what was skipped (rejects.jsonl)."""
    described = [
        {"unit": piece.key, "stretches": [stretch.identity for stretch in piece.stretches]} for piece in planned
    ]
    durable.write_json(attempt.outputs / "pieces.json", {"schema": 1, "kind": "pieces", "pieces": described})
    statistics = {"sources": _by_source(made), "evaluation": made[0].info["evaluation"], "pieces": len(made)}
    durable.write_json(attempt.outputs / "statistics.json", statistics | counts)
    _write_rejects(
        attempt, made, {stretch.sha256: stretch.file.path for piece in planned for stretch in piece.stretches}
    )


def _by_source(units: list[Unit]) -> dict[str, dict[str, int]]:
    """Documents and bytes by source label, before duplicates across pieces are dropped."""
    found: dict[str, dict[str, int]] = {}
    for unit in units:
        for label, counts in unit.info["sources"].items():
            known = found.setdefault(label, {"documents": 0, "bytes": 0})
            found[label] = {name: known[name] + counts[name] for name in known}
    return found


def _write_rejects(attempt: Attempt, units: list[Unit], paths: dict[str, str]) -> None:
    """All rejects in one file, and the first of them in the log with the names that files have here."""
    count = 0
    with durable.writing(attempt.outputs / "rejects.jsonl") as draft:
        durable.append(draft, b"")
        for unit in units:
            if "rejects.jsonl" not in unit.files:
                continue
            content = (attempt.root / unit.files["rejects.jsonl"].path).read_bytes()  # one unit's in memory at a time
            durable.append(draft, content)
            for line in content.splitlines()[: max(20 - count, 0)]:
                _warn_of_reject(json.loads(line), paths)
            count += content.count(b"\n")
    if count:
        log.warning("%d bad records were skipped; all of them are in rejects.jsonl", count)


def _warn_of_reject(reject: dict[str, Any], paths: dict[str, str]) -> None:
    log.warning("skipped %s:%d: %s", paths.get(reject["file"], reject["file"]), reject["line"], reject["reason"])
