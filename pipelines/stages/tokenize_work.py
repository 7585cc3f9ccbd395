"""The task of tokenize: one text shard in, one token shard out.

The one idea: the text stays in Arrow's buffers and the ids in one array; nothing here loops over documents.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from model import durable
from pipelines.engine.units import UnitStore
from pipelines.tokenizer_files import TokenizerFacts


class DamagedText(RuntimeError):
    """A text shard is missing or has other bytes than its manifest says. Its text is the path, relative to the work directory."""


def tokenize_shard(item: dict[str, Any]) -> str:
    """Make the token unit of one text shard and return the engine that encoded it, with the reason if not gigatoken.

    Not in the unit: both engines give the same bytes, and equal units must not differ in who made them.
    DamagedText if the shard is not what it should be.
    """
    from model.token_shards import ShardMetadata, write_token_shard
    from pipelines import encoding

    root, shard, facts = Path(item["root"]), item["shard"], TokenizerFacts(**item["facts"])
    table = _verified(root, shard)
    encoded = encoding.load(Path(item["folder"]), facts).encode(table["text"])
    metadata = ShardMetadata(facts.digest, facts.vocab_size, facts.eot, shard["sha256"])
    draft = durable.temporary(Path(item["scratch"]) / "tokens.arrow")
    write_token_shard(draft, encoded.tokens, encoded.offsets, table["id"].combine_chunks(), metadata)
    info = {
        "documents": len(table),
        "tokens": len(encoded.tokens),
        "bytes": shard["bytes"],
    }
    UnitStore(root).publish("tokens", item["key"], {"tokens.arrow": draft}, info)
    return encoded.engine


def _verified(root: Path, shard: dict[str, Any]) -> Any:
    """A text shard's ids and texts, a chunk for each row group (pyarrow Table), read once and hashed before they are decoded."""
    import hashlib

    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        data = (root / shard["path"]).read_bytes()
    except FileNotFoundError:
        raise DamagedText(shard["path"]) from None
    if hashlib.sha256(data).hexdigest() != shard["sha256"]:
        raise DamagedText(shard["path"])
    # Not pq.read_table: it goes through pyarrow.dataset and imports pandas, half a second of each worker's start.
    file = pq.ParquetFile(pa.BufferReader(data))
    groups = [file.read_row_group(index, ["id", "text"], use_threads=False) for index in range(file.num_row_groups)]
    return pa.concat_tables(groups)
