"""How surprising held-out text is to models that are not neural: the floor under a language model's figure.

The one idea: bits per byte. Perplexity depends on the tokenizer, bits per byte of UTF-8 text does not, so
compressors and language models stand on one scale:

    bits per byte = -sum over tokens of log2 p(token) / bytes of the text

Baselines, none of which is conditioned on anything but what is named: `byte_unigram` (frequencies of bytes in
the training text), `token_unigram` (frequencies of tokens in the training shards), and `gzip` and `xz` (the
held-out text compressed by itself, from nothing: they have never seen the training text).
"""

from __future__ import annotations

import gzip
import lzma
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model import durable

if TYPE_CHECKING:
    import numpy as np

_COMPRESSED = 16 << 20  # bytes of held-out text that the compressors see: xz needs 1 s a MB


def bits_per_byte(nats: float, text_bytes: int) -> float:
    """Total negative log-likelihood in nats over `text_bytes` bytes of UTF-8, in bits per byte."""
    if text_bytes <= 0:
        raise ValueError(f"bits per byte of {text_bytes} bytes: the held-out text is empty")
    return nats / math.log(2) / text_bytes


def unigram_nats(train: np.ndarray, heldout: np.ndarray) -> float:
    """Nats that `heldout` counts (V,) cost under the frequencies of `train` counts (V,), one added to each count."""
    import numpy as np

    smoothed = train + 1.0
    return float(-(heldout * np.log(smoothed / smoothed.sum())).sum())


def baselines(root: Path, text: dict[str, Path], tokens: dict[str, Path]) -> dict[str, Any]:
    """Bits per byte of every baseline; `text` and `tokens` give the manifests `train` and `heldout` of the shards.

    The paths in manifests are relative to `root`. Shards are read one at a time: memory does not grow with the corpus.
    """
    heldout_bytes = sum(unit["bytes"] for unit in durable.read_json(text["heldout"])["units"])
    train_counts, heldout_counts = (byte_counts(texts(root, text[split])) for split in ("train", "heldout"))
    train_tokens, heldout_tokens = (token_counts(root, tokens[split]) for split in ("train", "heldout"))
    sample = compressible(texts(root, text["heldout"]))
    return {
        "bytes": heldout_bytes,
        "byte_unigram": round(bits_per_byte(unigram_nats(train_counts, heldout_counts), heldout_bytes), 6),
        "token_unigram": round(bits_per_byte(unigram_nats(train_tokens, heldout_tokens), heldout_bytes), 6),
        "compressed_bytes": len(sample),
        "gzip": round(8 * len(gzip.compress(sample, compresslevel=9, mtime=0)) / len(sample), 6),
        "xz": round(8 * len(lzma.compress(sample, preset=9 | lzma.PRESET_EXTREME)) / len(sample), 6),
    }


def texts(root: Path, manifest: Path) -> Iterator[bytes]:
    """Every document of a text-shards manifest as UTF-8 bytes, in order."""
    import pyarrow.parquet as pq

    for unit in durable.read_json(manifest)["units"]:
        for batch in pq.ParquetFile(root / unit["path"]).iter_batches(batch_size=1024, columns=["text"]):
            for text in batch.column(0):
                yield text.as_py().encode()


def byte_counts(documents: Iterable[bytes]) -> np.ndarray:
    """How often each byte value occurs, (256,) float64."""
    import numpy as np

    counts = np.zeros(256)  # (256,)
    for document in documents:
        counts += np.bincount(np.frombuffer(document, dtype=np.uint8), minlength=256)
    return counts


def token_counts(root: Path, manifest: Path) -> np.ndarray:
    """How often each token occurs in a token-shards manifest, (vocab_size,) float64, the EOT of each document too."""
    import numpy as np
    import pyarrow as pa

    described = durable.read_json(manifest)
    counts = np.zeros(described["vocab_size"])  # (V,)
    for unit in described["units"]:
        with pa.memory_map(str(root / unit["path"])) as file:
            column = pa.ipc.open_file(file).get_batch(0).column("tokens")
            counts += np.bincount(column.flatten().to_numpy(), minlength=len(counts))
    return counts


def compressible(documents: Iterable[bytes]) -> bytes:
    """The first 16 MiB of the documents, joined by nothing: a stream, so that compressors can use what they saw."""
    sample = bytearray()
    for document in documents:
        sample += document
        if len(sample) >= _COMPRESSED:
            break
    return bytes(sample[:_COMPRESSED])
