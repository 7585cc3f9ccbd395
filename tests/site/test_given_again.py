"""What is given to a site again: the same while it is up is no change, another is refused; what is down takes the new one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cluster import processes
from cluster.site import RayService
from pipelines import mlflow_server, site_files, site_life
from pipelines.config import ConfigError

DATABASE = "postgresql://gptline:planted-9f3c@db.example:5432/mlflow"


def is_up(site: Path, role: str) -> None:
    """Say that a service of the site runs; it is this process."""
    ours = processes.known(os.getpid())
    service = RayService(role, "127.0.0.1:6379", "127.0.0.1", None, str(site / "token"), "log", "temp", ours, "mark")
    site_files.record_service(site, "ray", service)


def test_the_database_that_a_site_has_may_be_given_again_while_it_is_up(tmp_path: Path) -> None:
    site, head = site_files.folder(tmp_path / "site"), {"role": "head"}
    asked = site_life._settled(site, head, database=DATABASE)
    assert mlflow_server.database(site, asked) == DATABASE.replace("://", "+psycopg2://")
    is_up(site, "head")
    for same in (DATABASE, mlflow_server.database(site, asked), None):
        assert site_life._settled(site, head, database=same) == asked
    (site / "database").write_text(f"{DATABASE}\n")  # as people write it themselves
    assert site_life._settled(site, head, database=DATABASE) == asked
    with pytest.raises(ConfigError, match="is up with another database; next: make down") as refused:
        site_life._settled(site, head, database=DATABASE.replace("9f3c", "other"))
    assert "planted" not in str(refused.value)
    with pytest.raises(ConfigError, match="MLFLOW_DB is not the address"):
        site_life._settled(site, head, database="mysql://planted")
    (site / "database").unlink()
    with pytest.raises(ConfigError, match="is up with another database"):
        site_life._settled(site, head, database=DATABASE)


def test_a_token_that_is_given_takes_the_place_of_an_old_one_unless_the_worker_is_up(tmp_path: Path) -> None:
    site, worker, new = site_files.folder(tmp_path / "site"), {"role": "worker"}, tmp_path / "new"
    for token in ("of last year", "of this year"):
        new.touch(mode=0o600)
        new.write_text(f"{token}\n")
        site_life._settled(site, worker, token=new)
        assert (site / "token").read_text() == token
    is_up(site, "worker")
    site_life._settled(site, worker, token=new)
    new.write_text("of next year")
    with pytest.raises(ConfigError, match="is up with another token; next: make down"):
        site_life._settled(site, worker, token=new)
    assert (site / "token").read_text() == "of this year"
