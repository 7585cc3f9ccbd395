"""A slot's file is whole or not there, and only its owner writes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines import slots
from pipelines.engine import lease
from pipelines.slots import Slot, SlotDamaged, Try

SLOT = Slot("m", 1, "r", "2031-01-01T03:00:00+00:00", "1 new file", new=({"file": "a", "sha256": "0", "group": "corpus"},),
            tries=(Try("2031-01-01T03:00:00+00:00"),))  # fmt: skip


def test_what_was_written_is_read(tmp_path: Path) -> None:
    owned = lease.acquire(slots.folder(tmp_path, "m"), 30)
    slots.write(tmp_path, SLOT, owned.attempt)
    owned.release()
    assert slots.read_all(tmp_path) == [SLOT] == slots.of_model(tmp_path, "m")
    assert slots.read_all(tmp_path / "nowhere") == []


def test_who_was_overtaken_writes_no_slot(tmp_path: Path) -> None:
    folder = slots.folder(tmp_path, "m")
    late = lease.acquire(folder, 0.2)
    late._stop.set()  # it makes no sign of life any more
    late._beat.join()
    (folder / "lease" / "000001.released").touch()
    lease.acquire(folder, 30).release()
    with pytest.raises((FileNotFoundError, NotADirectoryError)):
        slots.write(tmp_path, SLOT, late.attempt)
    assert slots.read_all(tmp_path) == []


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    owned = lease.acquire(slots.folder(tmp_path, "m"), 30)
    slots.write(tmp_path, SLOT, owned.attempt)
    owned.release()
    path = slots.folder(tmp_path, "m") / "slots" / "000001.json"
    path.write_bytes(path.read_bytes().replace(b"1 new file", b"2 new file"))
    with pytest.raises(SlotDamaged, match=r"000001\.json is damaged"):
        slots.read_all(tmp_path)


def test_a_clean_interruption_is_no_failure() -> None:
    tries = tuple(Try("t", how=how) for how in ("interrupted", "failed", "killed", "done"))  # type: ignore[arg-type]
    assert Slot("m", 1, "r", "t", "", tries=tries).failures == 2
