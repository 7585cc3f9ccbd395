"""A registry folder that was used directly, from now on behind an MLflow server.

The one idea: a folder's database names its files by path, which means nothing to a client on another host. Before a
server starts on it, every such path becomes an address that the server resolves to the same file, in one transaction.
Nothing is copied or moved.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from pathlib import Path

from pipelines import moved_store, store
from pipelines.config import ConfigError

SERVED = "mlflow-artifacts:"
log = logging.getLogger(__name__)


def name_by_address(database: Path) -> None:
    """Rewrite the paths of the store's own artifacts folder in this database, if it is there. StoreDamaged."""
    if not database.exists():
        return
    uri = f"{store.SQLITE}{database}"
    with store.lock(uri), store.damage_named(uri):
        moved_store.follow_the_move(database)
        folder = str(database.parent / "artifacts")
        with contextlib.closing(sqlite3.connect(database, timeout=20)) as opened:
            before = opened.total_changes
            with opened:
                for table, column in moved_store.PATHS:
                    moved_store.rewrite(opened, table, column, folder, SERVED)
            if changed := opened.total_changes - before:
                log.info("%d addresses in %s are the server's from now on", changed, database)


def assert_direct(database: Path) -> None:
    """ConfigError if this store's files are named by a server's addresses, which nobody resolves without the server."""
    where = "select 1 from experiments where name = ? and artifact_location like ?"
    if store.select(f"{store.SQLITE}{database}", where, store.EXPERIMENT, f"{SERVED}%"):
        raise ConfigError(
            f"execution.registry={database.parent} belongs to an MLflow server since `make up`; "
            "next: give SITE=site where the server is up (make up), or its address as execution.registry"
        )
