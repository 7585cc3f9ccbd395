"""A host that does not see the shared folder as the one that stamped it is told what it sees instead."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from cluster.shared_folder import STAMPS, NotShared, check
from pipelines.stamps import stamp
from pipelines.verification import verify


def test_a_stamp_is_seen_and_those_of_other_runs_stay(tmp_path: Path) -> None:
    first, second = stamp(tmp_path / "work"), stamp(tmp_path / "work")
    for one in (first, second):
        check(tmp_path / "work", one, patience=0)
    assert {path.name for path in (tmp_path / "work" / STAMPS).iterdir()} == {first, second}


def test_an_older_state_another_folder_and_no_folder_are_told_apart(tmp_path: Path) -> None:
    stamp(tmp_path / "work")
    shutil.copytree(tmp_path / "work", tmp_path / "older")
    (tmp_path / "empty").mkdir()
    fresh = stamp(tmp_path / "work")
    with pytest.raises(NotShared, match=r"not the stamp .* \(there: 1 older ones, .*an older state of this one"):
        check(tmp_path / "older", fresh, patience=0)
    with pytest.raises(NotShared, match="there: none at all"):
        check(tmp_path / "empty", fresh, patience=0)
    with pytest.raises(NotShared, match="does not see the work directory"):
        check(tmp_path / "nothing", fresh, patience=0)


def test_stamps_of_last_month_go_and_no_stamp_is_unowned(tmp_path: Path) -> None:
    (tmp_path / "units").mkdir()
    old, new = stamp(tmp_path), stamp(tmp_path)
    os.utime(tmp_path / STAMPS / old, (0, 0))
    fresh = stamp(tmp_path)
    assert sorted(path.name for path in (tmp_path / STAMPS).iterdir()) == sorted([new, fresh])
    assert verify(tmp_path).unowned == []
