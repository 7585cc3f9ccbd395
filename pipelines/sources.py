"""Where documents come from: a declared source becomes the files that are really there, known by their content.

The one idea: a resolved file is its bytes and the way they are read (format, column, policy, label), never its
name or place. Two checkouts with the same bytes in other folders are the same source.

`plan` reaches this module, so it imports nothing heavy; reading happens in `records.py`, inside tasks.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model import durable
from pipelines.engine.fingerprint import digest

if TYPE_CHECKING:
    from pipelines.config import Source

FORMATS = ("jsonl.gz", "jsonl.zst", "jsonl", "parquet", "txt", "md")  # by file ending, the longer endings first
LABELLED = (
    "csv.bz2",
    "csv",
    "tab",
    "json",
)  # formats of labelled data, which tasks read themselves; a corpus is none of these
DATASET = "dataset"  # the format of what is read through Hugging Face `datasets`
log = logging.getLogger(__name__)


class SourceError(ValueError):
    """A source that cannot be read. The message names the file (and line), what was seen, and what to do."""


@dataclass(frozen=True)
class SourceFile:
    """One file of a source, or one Hugging Face dataset. Everything but `path` is its identity.

    `sha256` is of the file's bytes; of a dataset, of its revision (hub) or of its files (local). `size` is in
    bytes, 0 where unknown. `options` are a dataset's configuration, split and revision.
    """

    path: str
    sha256: str
    size: int
    label: str
    format: str
    text_column: str = "text"
    on_bad_record: str = "fail"
    options: tuple[str | None, ...] = ()

    @property
    def identity(self) -> dict[str, Any]:
        """What this file is, wherever it lies: JSON without the path."""
        return {key: value for key, value in asdict(self).items() if key != "path"}


def source_file(value: dict[str, Any]) -> SourceFile:
    """A SourceFile from its JSON, as steps and tasks pass it on."""
    return SourceFile(**{**value, "options": tuple(value.get("options", ()))})


def described(spec: Source, cache: Path, sha256: Callable[[Path], str], fetch: bool) -> list[dict[str, Any]]:
    """`resolve` as JSON, as steps pass it on: every key but "path" is identity."""
    return [asdict(file) | {"options": list(file.options)} for file in resolve(spec, cache, sha256, fetch)]


def resolve(
    spec: Source, cache: Path, sha256: Callable[[Path], str] = durable.sha256, fetch: bool = True
) -> list[SourceFile]:
    """The files that `spec` means, sorted by content. `sha256` gives a file's digest, possibly remembered.

    With `fetch`, a sample that is not in `cache` is fetched. SourceError if nothing is there, a file is empty
    (unless bad records are skipped) or has an unknown ending.
    """
    if spec.dataset:
        return [_dataset(spec, sha256)]
    if spec.sample:
        from pipelines import samples

        paths = samples.paths(spec.sample, cache, fetch)
    else:
        paths = _matching(str(spec.path))
    files = [_file(path, spec, sha256) for path in paths]
    return sorted(files, key=lambda file: (file.sha256, file.path))


def _file(path: Path, spec: Source, sha256: Callable[[Path], str]) -> SourceFile:
    size = path.stat().st_size
    if size == 0 and spec.on_bad_record == "fail":
        raise SourceError(
            f"{path} is empty; remove it or fill it (a corpus may also have on_bad_record='skip', which counts empty files)"
        )
    label = spec.label or spec.sample or "text"
    return SourceFile(str(path), sha256(path), size, label, _format(path, spec), spec.text_column, spec.on_bad_record)


def _format(path: Path, spec: Source) -> str:
    if spec.format != "auto":
        return spec.format
    found = known_format(path)
    if found is None:
        raise SourceError(
            f"{path}: unknown file ending; known are {', '.join(FORMATS)}, and of a task's data also {', '.join(LABELLED)}. "
            "Rename it or give the source a format"
        )
    return found


def known_format(path: Path) -> str | None:
    """The format that the ending of a file name says, or None."""
    return next((name for name in FORMATS + LABELLED if path.name.lower().endswith(f".{name}")), None)


def _matching(pattern: str) -> list[Path]:
    """The files that a path, a directory or a glob means: absolute, sorted, hidden ones left out."""
    path = Path(pattern).expanduser().absolute()
    if path.is_file():
        return [path]
    if path.is_dir():
        there = sorted(walk(path))
        found = [file for file in there if known_format(file) in FORMATS]
        if not found:
            raise SourceError(
                f"{path}: this directory holds no file that ends in {', '.join(FORMATS)}; check the path. Of {', '.join(LABELLED)}, "
                f"which tasks read and no corpus has, none is looked for in a directory: give a glob, such as {path}/*.csv"
            )
        _warn_of_passed_over(path, [file for file in there if known_format(file) not in FORMATS])
        return found
    if not any(character in pattern for character in "*?["):
        raise SourceError(f"{path} does not exist; check the source's path (relative paths start at {Path.cwd()})")
    import glob

    matching = [Path(name) for name in glob.glob(str(path), recursive=True)]
    for name in matching:
        _refuse_dangling(name)
    found = sorted(name for name in matching if name.is_file())
    if not found:
        raise SourceError(f"{path}: no file matches; check the pattern (relative patterns start at {Path.cwd()})")
    return found


def _warn_of_passed_over(folder: Path, files: list[Path]) -> None:
    if files:
        names = ", ".join(str(file.relative_to(folder)) for file in files[:5]) + (", ..." if len(files) > 5 else "")
        log.warning("%s: %d files are passed over because of their endings: %s", folder, len(files), names)


def _refuse(error: OSError) -> None:
    raise error


def walk(folder: Path) -> Iterator[Path]:
    """The files below `folder`, also those that are links. A corpus must not shrink unseen: OSError where a folder cannot be read,
    SourceError for a link to a folder (which could lead round in a circle, or name a file twice) and for one to nothing."""
    for root, folders, names in os.walk(folder, onerror=_refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for link in (Path(root, name) for name in sorted(folders)):
            if link.is_symlink():
                raise SourceError(
                    f"{link} is a symbolic link to a folder, {os.path.realpath(link)}, and is not followed; give that folder by "
                    "itself (as a source of its own), or put a copy of it in the link's place"
                )
        for file in (Path(root, name) for name in names if not name.startswith(".")):
            _refuse_dangling(file)
            yield file


def _refuse_dangling(path: Path) -> None:
    if path.is_symlink() and not path.exists():
        raise SourceError(
            f"{path} is a symbolic link to {os.readlink(path)}, which is not there; mend the link or remove it"
        )


def _dataset(spec: Source, sha256: Callable[[Path], str]) -> SourceFile:
    """A Hugging Face dataset: a hub name is identified by its commit, a local folder by names and bytes of its files.

    File names inside the folder count because `datasets` reads splits out of them.
    """
    path, size = Path(str(spec.dataset)).expanduser().absolute(), 0
    name = str(spec.dataset)
    if path.exists():
        if not path.is_dir():
            raise SourceError(
                f"{path}: dataset= means a folder that datasets.load_dataset reads; for one file use path="
            )
        files = sorted(walk(path))
        if not files:
            raise SourceError(f"{path}: this dataset folder holds no files; check the path")
        name, size = str(path), sum(file.stat().st_size for file in files)
        identity = digest([[str(file.relative_to(path)), sha256(file)] for file in files])
    else:
        identity = digest({"revision": spec.revision})
    options = (spec.config, spec.split, None if path.exists() else spec.revision)
    label = spec.label or DATASET
    return SourceFile(name, identity, size, label, DATASET, spec.text_column, spec.on_bad_record, options)
