"""Put a package among a run's artifacts, whole, however often it is tried.

The one idea: look before and after. What is there and right is not sent again; an upload that says it worked is
believed only when everything is there.
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model import durable
from pipelines.package import MANIFEST, PackageDamaged, verify_package


def upload(client: Any, run_id: str, place: str, package: Path, manifest: Mapping[str, Any]) -> str:
    """Put the package's files below the run's artifacts, unless they are there; return their address."""
    source = f"{client.get_run(run_id).info.artifact_uri}/{place}"
    local = _local_folder(source)
    if _lacking(client, run_id, place, package, manifest, local):
        client.log_artifacts(run_id, str(package), place)
        if local is not None:
            durable.fsync_tree(local)
    if lacking := _lacking(client, run_id, place, package, manifest, local):
        raise OSError(f"{source} is not whole after the upload: {lacking}; is the store full? Register again")
    return source


def _local_folder(source: str) -> Path | None:
    address = urllib.parse.urlparse(source)
    if address.scheme == "file":
        return Path(urllib.parse.unquote(address.path))
    return None if address.scheme else Path(source)


def _lacking(
    client: Any, run_id: str, place: str, package: Path, manifest: Mapping[str, Any], local: Path | None
) -> str:
    """What is wrong with the stored copy, '' if nothing: by content in a folder, by size on a server."""
    if local is not None:
        try:
            verify_package(local)
        except (PackageDamaged, FileNotFoundError) as error:
            return str(error)
        return "" if (local / MANIFEST).read_bytes() == (package / MANIFEST).read_bytes() else "another manifest"
    wanted = {f"{place}/{name}": file["size"] for name, file in manifest["files"].items()}
    wanted[f"{place}/{MANIFEST}"] = (package / MANIFEST).stat().st_size
    folders, sizes = [place], {}
    while folders:
        for item in client.list_artifacts(run_id, folders.pop()):
            if item.is_dir:
                folders.append(item.path)
            else:
                sizes[item.path] = item.file_size
    return ", ".join(sorted(name for name, size in wanted.items() if sizes.get(name) != size))
