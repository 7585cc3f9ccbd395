"""The task of tokenize: one text shard in, one token shard out; or one for each corpus in it, where corpora are mixed.

The one idea: the text stays in Arrow's buffers and the ids in one array; nothing here loops over documents, unless their
sentences are wanted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from model import durable
from pipelines.engine.units import UnitStore
from pipelines.tokenizer_files import TokenizerFacts

TOKENS = "tokens.arrow"


class DamagedText(RuntimeError):
    """A text shard is missing or has other bytes than its manifest says. Its text is the path, relative to the work directory."""


def tokenize_shard(item: dict[str, Any]) -> str:
    """Make the token unit of one text shard and return the engine that encoded it, with the reason if not gigatoken.

    Not in the unit: both engines give the same bytes, and equal units must not differ in who made them.
    DamagedText if the shard is not what it should be.
    """
    root, options = Path(item["root"]), item.get("options", {})
    table = _verified(root, item["shard"])
    drafts: dict[str, Path] = {}
    if not options.get("corpora"):
        drafts[TOKENS], info, engine = _write(item, table, TOKENS)
        UnitStore(root).publish("tokens", item["key"], drafts, info | {"bytes": item["shard"]["bytes"]})
        return engine
    infos: dict[str, Any] = {}
    engines = []
    for number, (corpus, rows) in enumerate(_corpora(table)):
        name = f"{number}.arrow"  # a label may hold what no file name may
        drafts[name], info, engine = _write(item, rows, name)
        size = sum(len(text.as_buffer()) for text in rows["text"])
        infos[name] = info | {"bytes": size, "corpus": corpus}
        engines.append(engine)
    UnitStore(root).publish("tokens", item["key"], drafts, {"files": infos})
    return next((engine for engine in engines if engine != "gigatoken"), "gigatoken")


def _write(item: dict[str, Any], table: Any, name: str) -> tuple[Path, dict[str, int], str]:
    """The draft of a table's token shard, its counts, and the engine that encoded it."""
    from model.token_shards import ShardMetadata, write_token_shard
    from pipelines import encoding

    facts, folder = TokenizerFacts(**item["facts"]), Path(item["folder"])
    encoded = encoding.load(folder, facts).encode(table["text"])
    counts = {"documents": len(table), "tokens": len(encoded.tokens)}
    sentences = None
    if item.get("options", {}).get("sentences"):
        from pipelines.sentence_marks import mark

        sentences = mark(table["text"], encoded.tokens, encoded.offsets, folder)
        counts["sentences"] = len(sentences)
    metadata = ShardMetadata(facts.digest, facts.vocab_size, facts.eot, item["shard"]["sha256"])
    draft = durable.temporary(Path(item["scratch"]) / name)
    write_token_shard(draft, encoded.tokens, encoded.offsets, table["id"].combine_chunks(), metadata, sentences)
    return draft, counts, encoded.engine


def _corpora(table: Any) -> list[tuple[str, Any]]:
    """The documents of each corpus, by the label of their source, in the order of the labels."""
    import pyarrow as pa

    labels = [source.rsplit(":", 2)[0] for source in table["source"].to_pylist()]
    return [(name, table.filter(pa.array([label == name for label in labels]))) for name in sorted(set(labels))]


def _verified(root: Path, shard: dict[str, Any]) -> Any:
    """A text shard's ids, texts and sources, a chunk for each row group (pyarrow Table), read once and hashed before they are decoded."""
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
    groups = [
        file.read_row_group(index, ["id", "text", "source"], use_threads=False) for index in range(file.num_row_groups)
    ]
    return pa.concat_tables(groups)
