"""Units: done if the name exists, compared when made twice, made again when damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.engine.units import DeterminismError, UnitStore, unit_key


def publish(store: UnitStore, key: str, text: str, info: dict[str, int] | None = None) -> None:
    draft = store.root / "draft"
    draft.write_text(text)
    store.publish("toy", key, {"txt": draft}, info or {})


def test_a_published_unit_is_found_with_what_was_counted(tmp_path: Path) -> None:
    store, key = UnitStore(tmp_path), unit_key("toy", 1, {"a": 1}, "input")
    assert store.find("toy", key) is None
    publish(store, key, "content", {"rows": 3})
    unit = store.find("toy", key)
    assert unit is not None and unit.info == {"rows": 3}
    assert (tmp_path / unit.files["txt"].path).read_text() == "content"
    assert not (tmp_path / "draft").exists()


def test_equal_work_twice_is_one_unit_and_other_bytes_raise(tmp_path: Path) -> None:
    store = UnitStore(tmp_path)
    publish(store, "ab12", "content")
    publish(store, "ab12", "content")
    with pytest.raises(DeterminismError, match="not in its key"):
        publish(store, "ab12", "other")


def test_equal_bytes_that_were_counted_differently_raise(tmp_path: Path) -> None:
    store = UnitStore(tmp_path)
    publish(store, "ab12", "content", {"rows": 1})
    with pytest.raises(DeterminismError, match="counted differently"):
        publish(store, "ab12", "content", {"rows": 2})


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
def test_a_damaged_unit_counts_as_absent_and_is_made_again(tmp_path: Path, damage: str) -> None:
    store = UnitStore(tmp_path)
    publish(store, "ab12", "content")
    path = tmp_path / store.find("toy", "ab12").files["txt"].path  # type: ignore[union-attr]
    if damage == "delete":
        path.unlink()
    else:
        path.write_text("cOntent" if damage == "flip" else "cont")
    assert store.find("toy", "ab12") is None
    publish(store, "ab12", "content")
    assert store.find("toy", "ab12") is not None


def test_a_file_without_its_certificate_is_not_a_unit(tmp_path: Path) -> None:
    store = UnitStore(tmp_path)
    publish(store, "ab12", "content")
    (tmp_path / "units/toy/ab/ab12.json").unlink()
    assert store.find("toy", "ab12") is None
