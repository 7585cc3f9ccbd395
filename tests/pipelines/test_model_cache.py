"""What no pull uses for long leaves the cache, and nothing else does."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines import model_cache_cleaning
from pipelines.model_cache_cleaning import clean
from pipelines.package import MANIFEST, PackageDamaged, read_manifest
from pipelines.pull import From, pull_from, pull_version
from pipelines.registry import ModelVersion
from tests.pipelines import big_packages

DAY = 86400


def pulled(folder: Path, name: str, seed: int) -> str:
    """Pull a package of a folder through the cache in `folder`; its digest."""
    package = big_packages.write_package(folder / name, 1000, seed)
    digest = str(read_manifest(package / MANIFEST)["digest"])
    version = ModelVersion(name, 1, str(package), digest, None)
    pull_version(From("registry", cache=folder / "cache"), version, folder / f"dest-{name}", f"{name}@1")
    return digest


def names(cache: Path) -> set[str]:
    return {str(path.relative_to(cache)) for path in cache.rglob("*") if path.is_file() and path.parent.name != "locks"}


def test_old_packages_go_and_what_others_share_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    old = pulled(tmp_path, "old", 0)
    before = names(cache)
    pulled(tmp_path, "new", 1)
    both = names(cache)
    (cache / "packages" / ".left.json.abc.tmp").write_text("of a pull that was killed")
    os.utime(cache / "packages" / f"{old}.json", (0, time.time() - 31 * DAY))
    assert clean(cache, 0) == 0 and clean(cache, 32) == 0
    assert clean(cache, 30, keep={old}) == 0 and names(cache) > both
    monkeypatch.setattr(model_cache_cleaning, "_HOUR", 0)  # or what was just made would stay for an hour
    files = {path: path.read_bytes() for path in (tmp_path / "dest-old").iterdir()}
    assert clean(cache, 30) > 1000
    left = names(cache)
    assert f"packages/{old}.json" not in left and "packages/.left.json.abc.tmp" not in left
    assert left < both and not (before - left) & {name for name in left if "/" not in name}
    assert {path: path.read_bytes() for path in files} == files, "a pulled folder keeps its files"
    pulled(tmp_path, "again", 1)
    assert len(names(cache)) > len(left)


def test_a_pull_that_failed_does_not_change_what_an_alias_means_offline(tmp_path: Path) -> None:
    origin = From("registry", cache=tmp_path / "cache")
    found = []
    for number in (1, 2):
        package = big_packages.write_package(tmp_path / str(number), 1000, number)
        digest = str(read_manifest(package / MANIFEST)["digest"])
        found.append(ModelVersion("model", number, str(package), digest, None))
    pull_version(origin, found[0], tmp_path / "dest", "model@champion")
    (tmp_path / "2" / "package" / "model.safetensors").unlink()
    with pytest.raises(PackageDamaged, match="is not there"):
        pull_version(origin, found[1], tmp_path / "dest", "model@champion")
    offline = pull_from(replace(origin, offline=True), "model@champion", tmp_path / "offline")
    assert (offline.version, offline.fetched) == (1, True)


def test_what_came_just_now_stays_though_no_manifest_lists_it(tmp_path: Path) -> None:
    pulled(tmp_path, "some", 0)
    part = tmp_path / "cache" / ("ab" * 32 + ".part")
    part.write_bytes(b"half")
    assert clean(tmp_path / "cache", 30) == 0
    assert part.exists()
