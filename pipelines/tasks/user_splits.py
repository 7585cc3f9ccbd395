"""Which rows of your own data are for training, validation and test: as you say, or by a hash of the group.

The one idea: a split that is a file of its own stays whole; the others are split off the training data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.tasks.examples import SPLITS, split_of


def placed(
    files: Mapping[str, Sequence[Path]],
    read: Callable[[Sequence[Path]], list[Any]],
    group: Callable[[Any], str],
    validation: float,
    test: float,
) -> dict[str, list[Any]]:
    """The rows of each split: those of its own files, or else of the training files by the hash of their group."""
    splits: dict[str, list[Any]] = {name: read(files[name]) if files[name] else [] for name in SPLITS}
    shares = {name: 0.0 if files[name] else share for name, share in (("validation", validation), ("test", test))}
    rows, splits["train"] = splits["train"], []
    for row in rows:
        splits[split_of(group(row), shares["validation"], shares["test"])].append(row)
    return splits
