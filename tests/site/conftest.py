"""One site for all these tests, since a head and an MLflow server take half a minute to come up."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.site import running


@pytest.fixture(scope="session")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a site that is up."""
    folder = tmp_path_factory.mktemp("head")
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
