"""Pieces: what one more file, or one more paragraph, costs."""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import asdict
from pathlib import Path

import pytest

from model import durable
from pipelines.pieces import cut_file, group, unique_files
from pipelines.records import Text, read
from pipelines.sources import SourceError, SourceFile
from pipelines.stretches import Stretch, stretch_from

SHARD_BYTES = 10_000


def small(name: str, size: int = 700) -> SourceFile:
    return SourceFile(name, hashlib.sha256(name.encode()).hexdigest(), size, "t", "txt")


def keys(pieces: list[list[Stretch]]) -> set[tuple[str, ...]]:
    return {tuple(stretch.sha256 for stretch in piece) for piece in pieces}


def cut(path: Path, shard_bytes: int = 2000, document_bytes: int = 100) -> list[Stretch]:
    format = path.suffix[1:]
    file = SourceFile(str(path), durable.sha256(path), path.stat().st_size, "t", format)
    return [
        stretch_from(value)
        for value in cut_file({"file": asdict(file), "shard_bytes": shard_bytes, "document_bytes": document_bytes})
    ]


def content(stretch: Stretch) -> bytes:
    return b"".join(block for text in read(stretch) if isinstance(text, Text) for block in text.blocks)


def test_small_files_are_grouped_to_about_the_size_of_a_shard() -> None:
    pieces = list(group([small(f"f{index}") for index in range(2000)], SHARD_BYTES))
    sizes = [sum(stretch.file.size for stretch in piece) for piece in pieces]
    assert max(sizes) <= 4 * SHARD_BYTES
    assert 0.5 * SHARD_BYTES < sum(sizes) / len(sizes) < 1.5 * SHARD_BYTES


def test_groups_do_not_depend_on_the_order_in_which_files_are_found() -> None:
    files = [small(f"f{index}") for index in range(300)]
    assert list(group(files, SHARD_BYTES)) == list(group(files[::-1], SHARD_BYTES))


def test_one_more_file_costs_its_own_group_and_no_other() -> None:
    files = [small(f"f{index}") for index in range(500)]
    before = keys(list(group(files, SHARD_BYTES)))
    changed = [len(keys(list(group([*files, small(f"new{index}")], SHARD_BYTES))) - before) for index in range(40)]
    # Two where the file opens a piece in the middle of one; more only behind a piece that has reached its cap.
    assert max(changed) <= 3 and sum(count <= 2 for count in changed) > 36


def test_a_large_text_is_cut_at_paragraphs_into_stretches_that_cover_it(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("".join(f"paragraph {index}\nsecond line\n\n" for index in range(600)))
    found = cut(path)
    assert found[0].start == 0 and found[-1].stop == path.stat().st_size
    assert all(before.stop == after.start for before, after in itertools.pairwise(found))
    for stretch in found:
        assert content(stretch).startswith(b"paragraph ")
        assert path.read_bytes()[: stretch.start].count(b"\n") == stretch.first_line - 1


@pytest.mark.parametrize("unit", ["one long line ", "語" * 7])
def test_a_large_text_without_paragraphs_is_cut_between_characters_at_the_least(tmp_path: Path, unit: str) -> None:
    path = tmp_path / "a.txt"
    path.write_text(unit * 1000)
    pieces = [content(stretch).decode() for stretch in cut(path)]
    assert len(pieces) > 1 and "".join(pieces) == unit * 1000


def test_a_large_jsonl_is_cut_between_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f'{{"text": "{"x" * (index % 90)}"}}\n' for index in range(500)))
    lines = [text.line for stretch in cut(path) for text in read(stretch)]
    assert lines == list(range(1, 501))


def test_appending_to_a_large_file_costs_its_last_stretch(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("".join(f"paragraph {index}\n\n" for index in range(900)))
    before = [stretch.identity for stretch in cut(path)]
    path.write_text(path.read_text() + "one more\n\n")
    after = [stretch.identity for stretch in cut(path)]
    assert len(before) == len(after) > 3
    assert before[:-1] == after[:-1] and before[-1] != after[-1]


def test_large_parquet_is_cut_in_row_groups(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [f"row {index} {'y' * 50}" for index in range(400)]}), path, row_group_size=30)
    found = cut(path)
    assert len(found) > 3
    assert [text.line for stretch in found for text in read(stretch)] == list(range(1, 401))


def test_cutting_a_file_that_changed_after_planning_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("x\n\n" * 5000)
    file = SourceFile(str(path), "0" * 64, path.stat().st_size, "t", "txt")
    with pytest.raises(SourceError, match="was changed or removed after this run was planned"):
        cut_file({"file": asdict(file), "shard_bytes": 2000, "document_bytes": 100})


def test_another_column_or_split_of_the_same_bytes_is_another_file_whatever_the_order_of_declaration() -> None:
    body, title = (SourceFile("a", "1" * 64, 9, "t", "jsonl", column) for column in ("body", "title"))
    train, test = (
        SourceFile("d", "2" * 64, 9, "t", "dataset", options=(None, split, None)) for split in ("train", "test")
    )
    copy = SourceFile("b", "1" * 64, 9, "another label", "jsonl", "body", "skip")
    kept = unique_files([title, test, body, train, copy])
    assert kept == unique_files([copy, train, body, test, title]) and len(kept) == 4
    assert {(file.text_column, file.options) for file in kept[:2]} == {("body", ()), ("title", ())}
    assert {file.options[1] for file in kept[2:]} == {"train", "test"}
    assert list(group([title, body], 1)) == list(group([body, title], 1))
