"""The tasks of shard: one piece of the sources in, one text unit out.

The one idea: a task writes drafts under its attempt and publishes them under the key that its driver computed;
run twice, it makes the same bytes under the same name. Its answer is the key: whatever was counted is in the unit.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from model import durable
from pipelines import contamination, text_shards
from pipelines.corpus import Document, documents, refuse
from pipelines.documents import ID_BYTES, is_heldout
from pipelines.engine.units import UnitStore
from pipelines.records import Reject
from pipelines.stretches import Stretch, stretch_from
from pipelines.text_shards import TextShardWriter

REJECT_BYTES = 64 << 20  # of bad records kept whole in one unit; of any beyond, the first BRIEF characters are kept
BRIEF = 200


@dataclass
class Tally:
    """What a piece has given so far."""

    seen: dict[bytes, None] = field(default_factory=dict)  # ids of the documents that were kept, in order
    counts: Counter[str] = field(default_factory=Counter)
    sources: dict[str, Counter[str]] = field(default_factory=dict)
    rejects: list[bytes] = field(default_factory=list)
    reject_bytes: int = 0

    def reject(self, reject: Reject, stretch: Stretch) -> None:
        """Note a bad record. SourceError if its source does not allow any."""
        refuse(reject, stretch)
        self.counts["rejected"] += 1
        row = {
            "file": stretch.sha256,
            "label": stretch.file.label,
            "line": reject.line,
            "reason": reject.reason,
            "excerpt": reject.excerpt if self.reject_bytes < REJECT_BYTES else reject.excerpt[:BRIEF],
        }
        self.rejects.append(json.dumps(row, ensure_ascii=False).encode("utf-8") + b"\n")
        self.reject_bytes += len(self.rejects[-1])

    def keep(self, document: Document, known: contamination.Contamination, label: str) -> bool:
        """Whether a document is kept: not blank, not seen before, not one that contains an evaluation example."""
        id = document.content[:ID_BYTES]
        reason = "blank" if not document.utf8 else "duplicates" if id in self.seen else ""
        if not reason and known.contains(document.text):
            reason = "contaminated"
        if reason:
            self.counts[reason] += 1
            return False
        self.seen[id] = None
        self.sources.setdefault(label, Counter()).update(documents=1, bytes=len(document.utf8))
        return True


def shard_piece(item: dict[str, Any]) -> str:
    """Make the text unit of one piece. SourceError names the file and line that cannot be used."""
    config, scratch = item["config"], Path(item["scratch"])
    evaluation = item["evaluation"]
    known = contamination.load(tuple(evaluation["paths"]), evaluation["digest"], config["decontaminate_min_words"])
    writers = {split: TextShardWriter(scratch, split, config["shard_bytes"]) for split in ("train", "heldout")}
    tally = Tally()
    for stretch in map(stretch_from, item["piece"]):
        for found in documents(stretch, config["document_bytes"]):
            if isinstance(found, Reject):
                tally.reject(found, stretch)
            elif tally.keep(found, known, stretch.file.label):
                split = "heldout" if is_heldout(found.content, config["heldout_fraction"]) else "train"
                writers[split].add(found.id, found.utf8, found.source)
    info: dict[str, Any] = {name: tally.counts[name] for name in ("duplicates", "contaminated", "blank", "rejected")}
    info |= {
        "sources": {label: dict(counts) for label, counts in tally.sources.items()},
        "evaluation": {"examples": known.examples, "ignored": known.ignored},
    }
    return _publish(item, writers, list(tally.seen), tally.rejects, info)


def rewrite_piece(item: dict[str, Any]) -> str:
    """Make a text unit of the unit `of` without the documents that the file `drop` lists (16 bytes each)."""
    import pyarrow as pa
    import pyarrow.compute as pc

    base = UnitStore(Path(item["root"])).find("text", item["of"])
    if base is None:
        raise FileNotFoundError(f"text unit {item['of']} was removed or damaged while it was needed; run again")
    raw = Path(item["drop"]).read_bytes()
    drop = {raw[start : start + ID_BYTES].hex() for start in range(0, len(raw), ID_BYTES)}
    writers = {
        split: TextShardWriter(Path(item["scratch"]), split, item["shard_bytes"]) for split in ("train", "heldout")
    }
    kept: list[bytes] = []
    for split, writer in writers.items():
        for _, file in text_shards.shard_files(base, split):
            for table in text_shards.row_groups(Path(item["root"]) / file.path, ["id", "text", "source"]):
                table = table.filter(pc.invert(pc.is_in(table["id"], pa.array(sorted(drop)))))
                for row in table.to_pylist():
                    writer.add(row["id"], row["text"].encode("utf-8"), row["source"])
                    kept.append(bytes.fromhex(row["id"]))
    return _publish(item, writers, kept, [], {"of": item["of"], "dropped": len(drop)})


def _publish(
    item: dict[str, Any],
    writers: dict[str, TextShardWriter],
    ids: list[bytes],
    rejects: list[bytes],
    info: dict[str, Any],
) -> str:
    scratch = Path(item["scratch"])
    drafts: dict[str, Path] = {}
    counts: dict[str, Any] = {}
    for writer in writers.values():
        writer.close()
        drafts |= writer.drafts
        counts |= writer.counts
    for name, content in (("ids.bin", ids), ("rejects.jsonl", rejects)):
        if content or name == "ids.bin":
            drafts[name] = durable.temporary(scratch / name)
            durable.write_bytes(drafts[name], b"".join(content))
    UnitStore(Path(item["root"])).publish("text", item["key"], drafts, info | {"files": counts})
    return item["key"]
