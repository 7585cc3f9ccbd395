"""Files of a user's own that are unusual: named otherwise, with columns that nobody asks for, cut, or too small to be split."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from model import durable
from pipelines.config import Source, TaskConfig
from pipelines.sources import SourceError, SourceFile
from pipelines.tasks import examples, labelled, messages, spans
from pipelines.tasks.user_data import Record, Unreadable
from pipelines.tasks.user_datasets import write_dataset
from tests.pipelines.test_user_data import ROWS, as_csv, jsonl, parquet, prepared_by_the_stage


@pytest.mark.parametrize("name", ["x.dat", "x", "x.tsv", "x.json.gz", "x.txt"])
@pytest.mark.parametrize("format", ["jsonl", "csv", "parquet", "jsonl.gz"])
def test_a_file_of_any_name_is_read_by_the_format_that_is_given(name: str, format: str, tmp_path: Path) -> None:
    writers = {"jsonl": jsonl, "csv": as_csv, "parquet": parquet}
    path = writers[format.removesuffix(".gz")](tmp_path / name, ROWS)
    if format.endswith(".gz"):
        path.write_bytes(gzip.compress(path.read_bytes()))
    config = TaskConfig(name="labelled", source=Source(path=str(path), format=format), validation_fraction=0.2, test_fraction=0.2)  # type: ignore[arg-type]  # fmt: skip
    outputs = prepared_by_the_stage(tmp_path, config)
    expected = labelled.prepare([jsonl(tmp_path / "reference.jsonl", ROWS)], 0.2, 0.2)
    assert examples.read(outputs / "train.jsonl", "classification") == expected.splits["train"]


def test_questions_in_a_file_of_another_name_are_read_as_squads_json(tmp_path: Path) -> None:
    def article(n: int) -> dict[str, Any]:
        asked = {"question": f"Who came {n}?", "answers": [{"text": "Ada", "answer_start": 0}]}
        return {"title": f"t{n}", "paragraphs": [{"context": f"Ada came at {n}.", "qas": [asked]}]}

    path = tmp_path / "x.squad"
    path.write_text(json.dumps({"data": [article(n) for n in range(30)]}))
    config = TaskConfig(name="spans", source=Source(path=str(path), format="json"), validation_fraction=0.2, test_fraction=0.2)  # fmt: skip
    report = durable.read_json(prepared_by_the_stage(tmp_path, config) / "report.json")
    assert report["rows"] == 30


def strange_columns() -> dict[str, Any]:
    """Columns of one row that Parquet holds and Python cannot, by the reason."""
    import pyarrow as pa
    import pyarrow.compute as pc

    return {
        "year": pa.array([2**58], pa.timestamp("us")),
        "day": pa.array([2**31 - 1], pa.date32()),
        "zone": pa.array([0], pa.timestamp("us", "Mars/Olympus")),
        "twice": pa.StructArray.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"]),
        "bytes": pc.cast(pa.array([b"Fine\xff"]), pa.string(), safe=False),
    }


@pytest.mark.parametrize("strange", ["year", "day", "zone", "twice", "bytes"])
def test_a_column_that_python_cannot_represent_is_an_error_only_where_it_is_asked_for(
    strange: str, tmp_path: Path
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    column = pa.concat_arrays([pa.nulls(len(ROWS) - 1, strange_columns()[strange].type), strange_columns()[strange]])
    plain = {name: [row[name] for row in ROWS] for name in ("text", "label")}
    path = tmp_path / "mine.parquet"
    pq.write_table(pa.table(plain | {strange: column}), path)
    expected = labelled.prepare([jsonl(tmp_path / "reference.jsonl", ROWS)], 0.2, 0.2)
    assert labelled.prepare([path], 0.2, 0.2).splits == expected.splits
    names = {"label_column": strange}
    pq.write_table(pa.table(plain | {strange: column}).slice(len(ROWS) - 1), path)
    place = "not valid UTF-8" if strange == "bytes" else "nothing that Python can represent"
    with pytest.raises(ValueError, match=rf"^{path}: row 1: field '{strange}'.* is {place} \("):
        labelled.prepare([path], 0.2, 0.2, **names)
    with pytest.raises(ValueError, match=rf"^{path}: row 1: field '{strange}'"):
        messages.prepare([path], 0.2, 0.2, messages_column=strange)


def test_other_values_of_a_column_with_one_that_cannot_be_represented_are_read(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    said = pc.cast(pa.array([b"Fine.", b"Fine\xff"]), pa.string(), safe=False)
    pq.write_table(pa.table({"text": said, "label": ["good", "bad"]}), tmp_path / "mine.parquet")
    with pytest.raises(
        ValueError, match=r"mine.parquet: row 2: field 'text' is not valid UTF-8 \(.*0xff in position 4"
    ):
        labelled.prepare([tmp_path / "mine.parquet"], 0.1, 0.1)


def test_a_title_that_cannot_be_represented_is_not_written_into_a_group() -> None:
    title = Unreadable("a.parquet: row 1: field 'title' is not valid UTF-8")
    fields = {"question": "Who?", "context": "Ada.", "answers": [{"text": "Ada", "start": 0}], "title": title}
    with (
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(ValueError, match=r"row 1: field 'title' is not valid UTF"),
    ):
        patch.setattr(spans, "records", lambda files: [Record("a.parquet: row 1", fields)])
        list(spans.questions([Path("a.parquet")]))


def test_a_dataset_that_breaks_off_is_named_with_the_row_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    def rows() -> Iterator[dict[str, str]]:
        yield {"text": "first"}
        raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")

    stream = datasets.IterableDataset.from_generator(rows)
    monkeypatch.setattr("pipelines.tasks.user_datasets.open_dataset", lambda file: stream)
    with pytest.raises(SourceError, match=r"^dataset mine cannot be read on after row 1: 'utf-8' codec can't decode"):
        write_dataset(SourceFile("mine", "0" * 64, 0, "t", "dataset"), tmp_path / "out.jsonl")


def test_a_folder_of_csv_that_the_library_cannot_parse_is_an_error_of_the_source(tmp_path: Path) -> None:
    folder = tmp_path / "reviews"
    folder.mkdir()
    (folder / "train.csv").write_text('text,label\nFine,good\nFine,good,"more\n')
    config = TaskConfig(name="labelled", source=Source(dataset=str(folder)))
    with pytest.raises(SourceError, match=rf"^dataset {folder} .*cannot be (opened|read on after row 0): "):
        prepared_by_the_stage(tmp_path, config)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("9" * 5000, r"mine.jsonl:2: an integer of 5000 digits, which is more than can be read; write it as text"),
        ("-" + "9" * 5000, r"mine.jsonl:2: an integer of 5000 digits"),
        ("[" * 100_000, r"mine.jsonl:2: the JSON has more brackets within brackets than can be read; flatten it"),
    ],
    ids=["digits", "negative", "brackets"],
)
def test_json_that_python_cannot_hold_is_named_by_file_and_line(value: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(f'{json.dumps(ROWS[0])}\n{{"text": "Fine.", "label": "good", "id": {value}}}\n')
    with pytest.raises(ValueError, match=message):
        labelled.prepare([path], 0.1, 0.1)
    nested = as_csv(tmp_path / "b.csv", [{"messages": f"[{value}]"}])
    with pytest.raises(ValueError, match=message.replace("mine.jsonl", "b.csv")):
        messages.prepare([nested], 0.1, 0.1)


@pytest.mark.parametrize(("encoding", "says"), [("utf-16-le", "UTF-16"), ("utf-32-le", "UTF-32"), ("utf-32-be", "UTF-32")])  # fmt: skip
def test_the_encoding_of_a_byte_order_mark_is_said(encoding: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_bytes("\ufefftext,label\n".encode(encoding))
    with pytest.raises(
        ValueError, match=rf"mine.csv: the file is in {says} \((little|big)-endian\), by its byte order"
    ):
        labelled.prepare([tmp_path / "mine.csv"], 0.1, 0.1)


def test_a_class_that_is_a_float_is_refused_with_what_a_name_may_be(tmp_path: Path) -> None:
    path = parquet(tmp_path / "mine.parquet", [{"text": "Fine.", "label": 1.0}])
    with pytest.raises(ValueError) as raised:
        labelled.prepare([path], 0.1, 0.1)
    assert str(raised.value) == (
        f"{path}: row 1: field 'label' is 1.0, a float; it has to be text, an integer or true/false; convert the column, "
        "and fill what is missing in it"
    )


def cut(count: int, labels: tuple[str, ...] = ("a", "b", "c")) -> examples.Prepared:
    """Texts whose ids come in the order of their numbers; only the last of each split is of the last class."""

    def part(name: str, size: int) -> list[examples.Labelled]:
        last = len(labels) - 1
        return [examples.Labelled(f"{n:03}", f"{name} {n}", last if n == size - 1 else n % last, f"{name} {n // 2}") for n in range(size)]  # fmt: skip

    splits = {"train": part("train", 30), "validation": part("validation", 20), "test": part("test", 12)}
    report = {"splits": "of all", "labels_not_in": "of all", "rows": 62}
    return examples.cut(examples.Prepared(splits, report, labels), count)


def test_the_report_of_fewer_examples_counts_those() -> None:
    report = cut(10).report
    assert report == {
        "rows": 62,
        "splits": {
            name: {"examples": 10, "groups": 5, "labels": {"a": 5, "b": 5, "c": 0}} for name in ("train", "validation", "test")
        },
        "labels_not_in": {"train": ["c"], "validation": ["c"], "test": ["c"]},
        "over_max_examples": {"train": 20, "validation": 10, "test": 2},
    }  # fmt: skip


def test_a_held_out_class_that_training_lost_by_the_cut_is_refused() -> None:
    with pytest.raises(ValueError) as raised:
        cut(12)
    assert str(raised.value) == (
        "task.max_examples=12 leaves no training example of 'c' (1 of 3 classes), and the test split has some; give a larger "
        "task.max_examples, or leave it out"
    )
    assert cut(30).report["labels_not_in"] == {"train": [], "validation": [], "test": []}


def test_a_cut_that_leaves_one_class_is_refused() -> None:
    labels = ("a", "b")
    rare = [examples.Labelled(f"{n:03}", f"text {n}", int(n == 29), f"{n}") for n in range(30)]
    splits = dict.fromkeys(("train", "validation", "test"), rare[:])
    with pytest.raises(ValueError, match=r"max_examples=10 leaves examples of one class in the train split \('a'\)"):
        examples.cut(examples.Prepared(splits, {}, labels), 10)
    several = [replace(one, label=n % 2) for n, one in enumerate(rare)]
    with pytest.raises(ValueError, match=r"max_examples=10 leaves examples of one class in the test split \('a'\)"):
        examples.cut(examples.Prepared(splits | {"train": several, "validation": several}, {}, labels), 10)
    assert examples.cut(examples.Prepared(splits, {}, labels), 30).report["over_max_examples"]["train"] == 0


def test_the_report_of_a_benchmark_that_is_cut_counts_what_is_left_and_the_stage_cuts(tmp_path: Path) -> None:
    rows = [{"question": f"Who came {n}?", "context": f"Ada came at {n}.", "answers": [{"text": "Ada", "answer_start": 0}]}
            for n in range(120)]  # fmt: skip
    theirs = [
        {
            "question": f"Who left {n}?",
            "context": f"At {n} Ada left.",
            "answers": [{"text": "Ada", "answer_start": len(f"At {n} ")}],
        }
        for n in range(25)
    ]
    config = TaskConfig(
        name="spans",
        source=Source(path=str(jsonl(tmp_path / "mine.jsonl", rows))),
        benchmark_source=Source(path=str(jsonl(tmp_path / "theirs.jsonl", theirs))),
        validation_fraction=0.2,
        test_fraction=0.2,
        max_examples=10,
    )
    report = durable.read_json(prepared_by_the_stage(tmp_path, config) / "report.json")
    assert (report["benchmark"]["questions"], report["benchmark"]["examples"]) == (25, 10)
    assert {name: split["examples"] for name, split in report["splits"].items()} == dict.fromkeys(examples.SPLITS, 10)
    assert report["over_max_examples"]["benchmark"] == 15 and sum(report["over_max_examples"].values()) == 120 - 30 + 15


def test_the_stage_refuses_a_cut_that_takes_a_class_from_training(tmp_path: Path) -> None:
    rows = [{"text": f"Text {n}.", "label": f"class {n % 30:02}"} for n in range(900)]
    config = TaskConfig(name="labelled", source=Source(path=str(jsonl(tmp_path / "mine.jsonl", rows))), max_examples=12)
    with pytest.raises(
        SourceError, match=r"^task.max_examples=12 leaves no training example of 'class \d\d', .*of 30 classes"
    ):
        prepared_by_the_stage(tmp_path, config)


def test_a_split_that_is_too_small_is_named_with_its_file_and_the_classes_it_lacks(tmp_path: Path) -> None:
    train = jsonl(tmp_path / "mine.jsonl", ROWS)
    one = jsonl(tmp_path / "test.jsonl", [{"text": f"Other {n}.", "label": "good"} for n in range(5)])
    with pytest.raises(ValueError) as raised:
        labelled.prepare([train], 0.2, 0.2, test_files=[one])
    assert str(raised.value) == (
        f"{one}: the test split has 5 examples of 1 of the 2 classes, repeated ones dropped, and none of 'bad'; add some to the "
        "files of this split"
    )


@pytest.mark.parametrize(("author", "split"), [("a", "validation"), ("h", "train")])
def test_data_of_one_group_are_not_told_to_have_more_data(author: str, split: str, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "mine.jsonl", [row | {"who": author} for row in ROWS])
    with pytest.raises(ValueError) as raised:
        labelled.prepare([path], 0.2, 0.2, group_column="who")
    said = str(raised.value)
    assert said.startswith(f"{path}: the {split} split has ") and "more data" not in said
    assert (
        "; 1 group is there for the 3 splits train, validation, test, and none is divided: let task.group_column"
        in said
    )
