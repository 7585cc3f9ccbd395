"""One site for all these tests, since a head and an MLflow server take half a minute to come up."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines import registry, store
from pipelines.model_card import Card
from pipelines.package import build_package
from tests.pipelines.tiny_exports import write_classifier
from tests.site import running


def used_before(folder: Path, empty_store: Path) -> registry.ModelVersion:
    """A registry folder with a champion, `before`, that was registered in it without a server."""
    shutil.copytree(empty_store, folder / "registry")
    (folder / "registry" / "artifacts" / "gptline").mkdir(parents=True, exist_ok=True)
    store.settle(store.tracking_uri(folder / "registry"))  # it was moved
    package, card = folder / "package", Card("before", "text-classification", "A test.")
    build_package(write_classifier(folder / "export"), package, card)
    version = registry.register(folder / "registry", "before", package, {})
    assert registry.promote(folder / "registry", version, [])
    return version


@pytest.fixture(scope="session")
def head(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a site that is up, over a registry that was used before."""
    folder = tmp_path_factory.mktemp("head")
    used_before(folder, empty_store)
    try:
        running.done("up", *running.head_options(folder, running.HEAD))
        yield folder / "site"
    finally:
        running.down(folder / "site")


@pytest.fixture(scope="session")
def team(head: Path) -> Path:
    """The credentials of a team that may read the head's registry."""
    running.done("user", "team", "--site", str(head))
    return head / "users" / "team"
