"""Put a package among a run's artifacts, whole, however often it is tried.

The one idea: look before and after. What is there and right is not sent again, so an upload that was cut off goes on
where it was; one that says it worked is believed only when everything is there.
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from model import durable
from pipelines import fetching
from pipelines.package import MANIFEST, PackageDamaged, verify_package


def upload(client: Any, run_id: str, place: str, package: Path, manifest: Mapping[str, Any]) -> str:
    """Put the package's files below the run's artifacts, those that are not there; return their address. PackageRefused."""
    source = f"{client.get_run(run_id).info.artifact_uri}/{place}"
    fetching.check_address(
        str(client.tracking_uri), source, f"run {run_id}, for {place}"
    )  # somebody else may have made it
    local = local_folder(source)
    if local is not None:
        _copy(client, run_id, place, package, local)
        return source
    for name in _lacking(client, run_id, place, package, manifest):
        folder = PurePosixPath(place, name).parent
        client.log_artifact(run_id, str(package / name), str(folder))
    if lacking := _lacking(client, run_id, place, package, manifest):
        raise OSError(
            f"{source} is not whole after the upload: {', '.join(lacking)}; is the store full? Register again"
        )
    return source


def local_folder(source: str) -> Path | None:
    """The folder that an artifact address means on this machine; None if it is served by somebody."""
    address = urllib.parse.urlparse(source)
    if address.scheme == "file":
        return Path(urllib.parse.unquote(address.path))
    return None if address.scheme else Path(source)


def _copy(client: Any, run_id: str, place: str, package: Path, stored: Path) -> None:
    """Into a folder: compared by content, before and after."""
    if _difference(package, stored):
        client.log_artifacts(run_id, str(package), place)
        durable.fsync_tree(stored)
    if difference := _difference(package, stored):
        raise OSError(f"{stored} is not whole after the upload: {difference}; is the store full? Register again")


def _difference(package: Path, stored: Path) -> str:
    try:
        verify_package(stored)
    except (PackageDamaged, FileNotFoundError) as error:
        return str(error)
    return "" if (stored / MANIFEST).read_bytes() == (package / MANIFEST).read_bytes() else "another manifest"


def _lacking(client: Any, run_id: str, place: str, package: Path, manifest: Mapping[str, Any]) -> list[str]:
    """The files that a server has not, or in another size; the manifest last."""
    wanted = {name: file["size"] for name, file in sorted(manifest["files"].items())}
    wanted[MANIFEST] = (package / MANIFEST).stat().st_size
    folders, sizes = [place], {}
    while folders:
        for item in client.list_artifacts(run_id, folders.pop()):
            if item.is_dir:
                folders.append(item.path)
            else:
                sizes[item.path] = item.file_size
    return [name for name, size in wanted.items() if sizes.get(f"{place}/{name}") != size]
