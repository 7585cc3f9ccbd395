"""A site's secrets are searched for where they must not be: logs, command lines, environments, files open to others."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import psutil

from cluster import site as sites
from tests.site import running

MEANT = {"token", "flask_key", "admin", "basic_auth.ini", "database"}  # and users/*: the files that hold them


def files_below(folder: Path) -> Iterator[Path]:
    for root, _, names in os.walk(folder):
        yield from (Path(root, name) for name in names)


def holders(paths: Iterator[Path], secret: str) -> list[str]:
    """The plain files that hold the secret."""
    found = []
    for path in paths:
        with contextlib.suppress(OSError):
            if path.is_file() and not path.is_symlink() and secret.encode() in path.read_bytes():
                found.append(str(path))
    return found


def test_no_secret_is_in_a_log_or_in_a_file_that_is_not_made_for_it(head: Path, team: Path) -> None:
    ray = sites.read(head).ray
    assert ray is not None
    logs = list(files_below(Path(ray.temp)))
    assert logs and list(files_below(head / "logs")), "nothing to search"
    for name, secret in running.secrets_of(head).items():
        assert len(secret) >= 24
        meant = {str(head / file) for file in MEANT} | {str(head / "users" / name)}
        everywhere = [
            *files_below(head),
            *files_below(head.parent / "registry"),
            *files_below(head.parent / "work"),
            *logs,
        ]
        assert set(holders(iter(everywhere), secret)) <= meant, name


def test_no_secret_is_on_a_command_line_and_only_its_user_has_it_in_its_environment(head: Path, team: Path) -> None:
    found = sites.read(head)
    processes = running.members(head)
    assert len(processes) > 5
    for name, secret in running.secrets_of(head).items():
        for one in processes:
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                assert secret not in " ".join(one.cmdline()), f"{name} is on the command line of {one}"
                served = found.mlflow is not None and one.environ().get("GPTLINE_SERVICE") == found.mlflow.mark
                if not (served and name == "flask_key"):  # MLflow can be told this one in no other way
                    assert secret not in str(one.environ()), f"{name} is in the environment of {one}"


def test_only_the_owner_can_look_into_a_site_and_its_secrets(head: Path, team: Path) -> None:
    ray = sites.read(head).ray
    assert ray is not None
    for folder in (head, head / "users", head / "logs", Path(ray.temp)):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700, folder
    for path in [*(head / name for name in MEANT), *(head / "users").iterdir()]:
        assert not path.exists() or stat.S_IMODE(path.stat().st_mode) == 0o600, path
