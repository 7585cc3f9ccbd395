"""A local store that was moved finds its artifacts again.

The one idea: MLflow writes absolute paths into its database, but database and artifacts lie side by side and move
together. Where the folder of artifacts beside the database is not the one that the database names, ours is right:
all paths are rewritten, in one transaction. A store whose artifacts were put elsewhere on purpose is left alone.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from pathlib import Path

# Every place at which MLflow keeps the address of files.
PATHS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
    ("logged_models", "artifact_location"),
)

log = logging.getLogger(__name__)


def follow_the_move(database: Path) -> None:
    """Rewrite the paths in `database` if its folder was moved or copied. Call it under the store's lock. sqlite3.Error."""
    ours = database.parent / "artifacts"
    with contextlib.closing(sqlite3.connect(database, timeout=20)) as store:
        for old in _named(store, "gptline"):
            if old == ours or not (ours / "gptline").is_dir():
                continue
            if old.is_dir() and old.samefile(ours):
                continue  # the same folder under another name, through a link: both are right
            with store:  # one transaction
                for table, column in PATHS:
                    rewrite(store, table, column, str(old), str(ours))
            log.warning("the MLflow store was moved: its database named files in %s, now it names %s", old, ours)


def _named(store: sqlite3.Connection, experiment: str) -> list[Path]:
    """The folder of artifacts that the database names, if it is a plain path that ends as we make it."""
    rows = store.execute("select artifact_location from experiments where name = ?", (experiment,)).fetchall()
    found = [str(row[0]) for row in rows if str(row[0]).startswith("/")]
    return [Path(location).parent for location in found if location.endswith(f"/artifacts/{experiment}")]


def rewrite(store: sqlite3.Connection, table: str, column: str, old: str, new: str) -> None:
    """Replace the beginning `old` of the addresses in a column, where a "/" follows it, by `new`."""
    # Table and column are ours; the values are bound.
    store.execute(
        f"update {table} set {column} = ? || substr({column}, ?) where substr({column}, 1, ?) = ?",
        (new, len(old) + 1, len(old) + 1, f"{old}/"),
    )
