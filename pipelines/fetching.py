"""The bytes of a registered file, from any place on: out of a folder, out of a tracking server, or out of a bucket.

The one idea: a file is asked for from the byte on that is lacking. A tracking server whose artifacts lie in a folder
honours that (HTTP Range); one that streams out of a bucket sends the file from its beginning, which is said, and taken
as what it is. No mlflow is imported, but for a bucket that is read directly.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import tempfile
import urllib.error
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines import store
from pipelines.model_versions import ModelVersion
from pipelines.package_rules import PackageDamaged, PackageRefused

BLOCK = 1 << 20  # bytes read at a time
_SILENCE = 60.0  # seconds without a byte after which a connection counts as cut
_BUSY = (408, 429)
# Buckets whose client knows its own server. MLflow's other kinds (http, models, dbfs, abfss, ...) go to a host that the
# address names, or on to another address, and some take the password for the tracking server along.
_BUCKETS = ("s3", "gs", "wasbs")


@dataclass(frozen=True)
class Answer:
    """The rest of a file: where it begins, in bytes, and what to read it from."""

    start: int
    file: Any
    remote: bool = False

    def read(self, size: int) -> bytes:
        """Up to `size` bytes; none at the end. ConnectionError if a connection was cut; OSError of a disk."""
        try:
            data = bytes(self.file.read(size))
            if self.remote and not data and self.file.length:  # http.client ends quietly, whatever Content-Length said
                raise ConnectionError(f"it ended {self.file.length:,} bytes early")
            return data
        except (OSError, http.client.HTTPException) as error:
            if not self.remote:
                raise
            raise ConnectionError(f"the connection was cut ({error})") from error


@contextlib.contextmanager
def opened(location: str | Path, version: ModelVersion, name: str, start: int) -> Iterator[Answer]:
    """The file `name` of a version from byte `start` on, if whoever has it can do that.

    PackageDamaged if there is no such file, PackageRefused if it is where nobody is asked; ConnectionError if whoever
    has it is away.
    """
    check_address(store.tracking_uri(location), version.source, f"{version.name} version {version.version}")
    address = urllib.parse.urlparse(version.source)
    if address.scheme in ("", "file"):
        folder = Path(urllib.parse.unquote(address.path) if address.scheme else version.source)
        opening = _in_folder(folder / name, start)
    elif address.scheme == "mlflow-artifacts":
        opening = _over_http(store.tracking_uri(location), address, version, name, start)
    else:
        opening = _through_mlflow(location, version, name)
    with opening as answer:
        yield answer


def check_address(uri: str, source: str, what: str) -> None:
    """PackageRefused if the files of `what` are said to be anywhere but in a folder, at the server `uri` or in a bucket.

    Whoever registers can write any address there: credentials go to the server that we were told of, only.
    """
    address = urllib.parse.urlparse(source)
    if address.scheme in ("", "file", *_BUCKETS):
        return
    if address.scheme != "mlflow-artifacts":
        raise PackageRefused(
            f"{what}: its files are said to be at {source}, which is no folder, no bucket ({', '.join(_BUCKETS)}) and no "
            f"address of {uri} (mlflow-artifacts:/...); not asked. Register the model again, with that server"
        )
    if address.netloc and address.netloc != urllib.parse.urlparse(uri).netloc:
        raise PackageRefused(f"{what}: its files are at another server ({address.netloc}) than {uri}; not asked")


@contextlib.contextmanager
def _in_folder(path: Path, start: int) -> Iterator[Answer]:
    try:
        file = open(path, "rb")  # noqa: SIM115 (closed below)
    except FileNotFoundError as error:
        raise PackageDamaged(f"{path} is not there, and the manifest lists it; register the model again") from error
    with file:
        file.seek(start)
        yield Answer(start, file)


@contextlib.contextmanager
def _over_http(
    uri: str, address: urllib.parse.ParseResult, version: ModelVersion, name: str, start: int
) -> Iterator[Answer]:
    path = urllib.parse.quote(f"api/2.0/mlflow-artifacts/artifacts/{address.path.strip('/')}/{name}")
    headers = {"Range": f"bytes={start}-"} if start else {}
    try:
        with store.open_url(uri, path, headers, _SILENCE) as answer:
            yield Answer(_begins_at(answer, start), answer, remote=True)
    except urllib.error.HTTPError as error:
        if error.code >= 500 or error.code in _BUSY:
            raise ConnectionError(f"{uri} answered {error.code} to a question for {name}") from error
        why = f"ends before byte {start:,}" if error.code == 416 else f"cannot be had ({error.code} {error.reason})"
        raise PackageDamaged(
            f"{uri}: {version.source}/{name} {why}, and the manifest lists it; was it changed? Register the model again"
        ) from error


def _begins_at(answer: http.client.HTTPResponse, start: int) -> int:
    """Where the answer begins: a server that knows no ranges sends all."""
    if answer.status != 206:
        return 0
    found = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
    if not found:
        raise ConnectionError("the server sent a part and did not say which; is there a proxy in between?")
    return int(found[1])


@contextlib.contextmanager
def _through_mlflow(location: str | Path, version: ModelVersion, name: str) -> Iterator[Answer]:
    """A bucket that this machine reads itself (`_BUCKETS`): MLflow fetches the file whole, by the bucket's own client."""
    from pipelines import registry

    with tempfile.TemporaryDirectory() as scratch:
        with open(registry.download(location, version, name, Path(scratch)), "rb") as file:
            yield Answer(0, file)
