"""A user's own data become examples without code, and what is wrong with them is said by file, line and field."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model import durable
from pipelines import flow
from pipelines.config import Source, TaskConfig
from pipelines.sources import SourceError, described
from pipelines.stages import prepare_task
from pipelines.tasks import examples, labelled, messages, responses, spans
from tests.pipelines.data_attempts import attempt

ROWS = [{"text": f"The {noun} was {word}, said guest {number}.", "label": label}
        for number in range(12) for noun in ("room", "food", "view") for word, label in (("fine", "good"), ("poor", "bad"))]  # fmt: skip


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def as_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def gzipped(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_bytes(gzip.compress(jsonl(path, rows).read_bytes()))
    return path


def zstandard(path: Path, rows: list[dict[str, Any]]) -> Path:
    import pyarrow as pa

    plain = jsonl(path, rows).read_bytes()
    with pa.CompressedOutputStream(str(path), "zstd") as file:
        file.write(plain)
    return path


def bzipped(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_bytes(bz2.compress(as_csv(path, rows).read_bytes()))
    return path


def marked(write: Callable[[Path, list[dict[str, Any]]], Path]) -> Callable[[Path, list[dict[str, Any]]], Path]:
    """The same file with a byte order mark, as spreadsheets write them."""

    def marked_file(path: Path, rows: list[dict[str, Any]]) -> Path:
        path.write_bytes(b"\xef\xbb\xbf" + write(path, rows).read_bytes())
        return path

    return marked_file


WRITERS: dict[str, Callable[[Path, list[dict[str, Any]]], Path]] = {
    "jsonl": jsonl, "csv": as_csv, "parquet": parquet, "jsonl.gz": gzipped, "csv.bz2": bzipped, "jsonl.zst": zstandard,
    "marked.jsonl": marked(jsonl), "marked.csv": marked(as_csv),
}  # fmt: skip


@pytest.mark.parametrize("ending", WRITERS)
def test_the_same_records_give_the_same_examples_in_every_format(ending: str, tmp_path: Path) -> None:
    rows = [*ROWS, {"text": 'Two lines,\nand "quotes".', "label": "good"}]
    expected = labelled.prepare([jsonl(tmp_path / "reference.jsonl", rows)], 0.2, 0.2)
    prepared = labelled.prepare([WRITERS[ending](tmp_path / f"mine.{ending}", rows)], 0.2, 0.2)
    assert (prepared.splits, prepared.labels) == (expected.splits, ("bad", "good"))
    assert sum(map(len, prepared.splits.values())) == len(rows) == prepared.report["rows"]
    texts = [one.text for part in prepared.splits.values() for one in part]
    assert 'Two lines,\nand "quotes".' in texts


def prepared_by_the_stage(tmp_path: Path, config: TaskConfig) -> Path:
    """The outputs of the stage for a task, run as an attempt."""
    sources = {group: described(source, tmp_path, durable.sha256, True) for group, source in config.sources.items()}
    one = attempt(tmp_path, flow.task_settings(config), sources)
    prepare_task.run(one)
    return one.outputs


def test_columns_and_files_of_splits_are_named_in_the_recipe_alone(tmp_path: Path) -> None:
    def renamed(rows: list[dict[str, str]], tag: str) -> list[dict[str, str]]:
        return [{"review": f"{tag} {row['text']}", "stars": row["label"], "who": row["text"][-4:]} for row in rows]

    config = TaskConfig(
        name="labelled",
        source=Source(path=str(as_csv(tmp_path / "train.csv", renamed(ROWS, "One")))),
        test_source=Source(path=str(parquet(tmp_path / "test.parquet", renamed(ROWS[:6], "Two")))),
        text_column="review",
        label_column="stars",
        group_column="who",
    )
    outputs = prepared_by_the_stage(tmp_path, config)
    splits = {name: examples.read(outputs / f"{name}.jsonl", "classification") for name in examples.SPLITS}
    assert sorted(example.text for example in splits["test"]) == sorted(f"Two {row['text']}" for row in ROWS[:6])
    groups = [{example.group for example in splits[name]} for name in ("train", "validation")]
    assert len(splits["train"]) + len(splits["validation"]) == len(ROWS) and not groups[0] & groups[1]
    assert groups[0] | groups[1] == {row["text"][-4:].strip() for row in ROWS}


def test_a_datasets_folder_is_read_with_the_names_of_its_classes(tmp_path: Path) -> None:
    import datasets

    names = ["bad", "good"]
    table = {"text": [row["text"] for row in ROWS], "label": [names.index(row["label"]) for row in ROWS]}
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})
    datasets.Dataset.from_dict(table, features=features).save_to_disk(str(tmp_path / "reviews"))
    config = TaskConfig(name="labelled", source=Source(dataset=str(tmp_path / "reviews")), validation_fraction=0.2, test_fraction=0.2)  # fmt: skip
    outputs = prepared_by_the_stage(tmp_path, config)
    expected = labelled.prepare([jsonl(tmp_path / "reference.jsonl", ROWS)], 0.2, 0.2)
    assert examples.read(outputs / "train.jsonl", "classification") == expected.splits["train"]
    assert json.loads((outputs / "labels.json").read_text()) == names


@pytest.mark.parametrize("unknown", ["label", "who"])
def test_a_class_that_a_dataset_does_not_know_is_an_error_in_the_column_that_is_asked_for(
    unknown: str, tmp_path: Path
) -> None:
    import datasets

    known = [index % 2 for index in range(len(ROWS))]
    columns = {"label": known, "who": known} | {unknown: [*known[:3], -1, *known[4:]]}
    kinds = {name: datasets.ClassLabel(names=["bad", "good"]) for name in columns}
    features = datasets.Features({"text": datasets.Value("string"), **kinds})
    folder = tmp_path / "reviews"
    table = {"text": [row["text"] for row in ROWS], **columns}
    datasets.Dataset.from_dict(table, features=features).save_to_disk(str(folder))
    config = TaskConfig(name="labelled", source=Source(dataset=str(folder)), validation_fraction=0.2, test_fraction=0.2)
    if unknown == "label":
        with pytest.raises(
            SourceError, match=rf"^{folder}:4: field 'label' is null; it has to be text, an integer or true/false; fill"
        ):
            prepared_by_the_stage(tmp_path, config)
    else:
        assert json.loads((prepared_by_the_stage(tmp_path, config) / "labels.json").read_text()) == ["bad", "good"]


def test_an_error_names_the_file_that_was_given_not_its_copy(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "mine.jsonl", [*ROWS, {"text": "No label here."}])
    with pytest.raises(SourceError) as error:
        prepared_by_the_stage(tmp_path, TaskConfig(name="labelled", source=Source(path=str(path))))
    assert str(error.value).startswith(f"{path}:{len(ROWS) + 1}: no field 'label'; it has 'text'.")
    assert "task.label_column" in str(error.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "Fine."}', r":1: no field 'label'; it has 'text'. Name the right one with task.label_column"),
        (b'{"text": "  ", "label": "good"}', r":1: field 'text' is empty; remove the record or fill it"),
        (b'{"text": 7, "label": "good"}', r":1: field 'text' is 7, a int; it has to be text"),
        (b'{"text": null, "label": "good"}', r":1: field 'text' is null; it has to be text"),
        (b'{"text": "Fine.", "label": ["good"]}', r":1: field 'label' is \['good'\], a list; it has to be text"),
        (b'{"text": "Fine.", "label": 0.5}', r":1: field 'label' is 0.5, a float; it has to be text"),
        (b'{"text": "\\ud83d", "label": "good"}', r":1: field 'text' holds half of a surrogate pair"),
        (b'{"text": "Fine\xff", "label": "good"}', r":1: byte 15 of the line \(0xff\) is not valid UTF-8; convert"),
        (b'{"text": "Fine.", "label": "good"', r":1: not valid JSON"),
        (
            b'{"text": "Fine.", "label": "good", "text": "Bad."}',
            r":1: the field 'text' is there more than once; keep one",
        ),
        (b'["Fine.", "good"]', r":1: a JSON object is expected, this is \['Fine.', 'good'\], a list"),
        (b"", r"mine.jsonl: no record in the file"),
        (b"\xff\xfeF\x00", r"mine.jsonl: the file is in UTF-16"),
    ],
)
def test_a_bad_record_is_named_by_file_line_and_field(line: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_bytes(line + b"\n" if line else line)
    with pytest.raises(ValueError, match=message):
        labelled.prepare([path], 0.1, 0.1)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("mine.csv", b"text,label\nFine, we said,good\n", r"mine.csv:2: not as many fields as the header has \(2\)"),
        ("mine.csv", b'text,label\n"Fine,good\n', r"mine.csv: the record after line 1 is not valid CSV"),
        ("mine.csv", b"text,label\nFine\xe9,good\n", r"mine.csv:2: byte 5 of the line \(0xe9\) is not valid UTF-8"),
        ("mine.csv", b"text,label\n", r"mine.csv: no record in the file"),
        ("mine.csv", b'text,label\n"two\nlines",good\nFine,\n', r"mine.csv:4: field 'label' is empty"),
        (
            "mine.csv",
            b"text,label,label\nFine,good,bad\n",
            r"mine.csv: the header has the column 'label' 2 times; rename",
        ),
        ("mine.parquet", b"PAR1 not really", r"mine.parquet: not a readable Parquet file"),
        (
            "mine.jsonl.gz",
            gzip.compress(b'{"text": "Fine."}', mtime=0)[:-9],
            r"mine.jsonl.gz: the packed data is damaged",
        ),
        ("mine.docx", b"PK", r"mine.docx: not a file of records by its ending; readable are jsonl"),
    ],
)
def test_a_file_that_is_not_what_it_says_is_named(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        labelled.prepare([tmp_path / name], 0.1, 0.1)


def test_two_fields_of_one_name_are_refused_wherever_they_stand(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_arrays([["a"], ["x"], ["b"]], names=["text", "label", "text"]), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a.parquet: the column 'text' is there more than once; keep one"):
        labelled.prepare([tmp_path / "a.parquet"], 0.1, 0.1)
    turn = '{"role": "user", "role": "assistant", "content": "Yes."}'
    with pytest.raises(ValueError, match=r"b.csv:2: the field 'role' is there more than once; keep one"):
        messages.prepare([as_csv(tmp_path / "b.csv", [{"messages": f"[{turn}]"}])], 0.1, 0.1)
    (tmp_path / "c.json").write_text('{"data": [], "data": []}')
    with pytest.raises(ValueError, match=r"c.json: the field 'data' is there more than once; keep one"):
        spans.prepare([tmp_path / "c.json"], 0.1, 0.1)


def test_a_field_of_a_csv_file_may_be_as_long_as_a_book(tmp_path: Path) -> None:
    usual = csv.field_size_limit()
    rows = [
        row | {"text": f"{row['text']} {'and so on ' * (20_000 if place == 5 else 1)}"}
        for place, row in enumerate(ROWS)
    ]
    prepared = labelled.prepare([as_csv(tmp_path / "mine.csv", rows)], 0.2, 0.2)
    assert max(len(one.text) for part in prepared.splits.values() for one in part) > 200_000
    assert csv.field_size_limit() == usual


def test_columns_without_a_name_may_stand_there_several_times(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("text,label,,\n" + "".join(f'"{row["text"]}",{row["label"]},,\n' for row in ROWS))
    expected = labelled.prepare([jsonl(tmp_path / "reference.jsonl", ROWS)], 0.2, 0.2)
    assert labelled.prepare([path], 0.2, 0.2).splits == expected.splits


def test_data_of_one_class_are_refused(tmp_path: Path) -> None:
    rows = [row for row in ROWS if row["label"] == "good"]
    with pytest.raises(ValueError, match=r"training examples are of one class \(good\).*task.label_column"):
        labelled.prepare([jsonl(tmp_path / "mine.jsonl", rows)], 0.1, 0.1)


def test_a_class_that_only_the_test_split_has_is_refused_with_its_line(tmp_path: Path) -> None:
    test = jsonl(tmp_path / "test.jsonl", [ROWS[0], {"text": "So so.", "label": "middling"}])
    with pytest.raises(ValueError, match=r"test.jsonl:2: label is 'middling' in the test split.*'bad', 'good'"):
        labelled.prepare([jsonl(tmp_path / "mine.jsonl", ROWS)], 0.1, 0.1, test_files=[test])


def test_repeated_and_contradicting_texts_are_dropped_and_counted(tmp_path: Path) -> None:
    test = [
        *({"text": f"Another {row['text']}", "label": row["label"]} for row in ROWS[:6]),
        ROWS[0] | {"text": ROWS[0]["text"].upper()},
    ]
    rows = [*ROWS, ROWS[1], {"text": "Well, well!", "label": "good"}, {"text": "well well", "label": "bad"}]
    prepared = labelled.prepare(
        [jsonl(tmp_path / "mine.jsonl", rows)], 0.2, 0.1, test_files=[jsonl(tmp_path / "test.jsonl", test)]
    )
    assert prepared.report["dropped"] == {
        "contradicting_labels": 2, "repeated_within_split": 1, "repeated_across_splits": 1,
    }  # fmt: skip
    assert len(prepared.splits["test"]) == 7, "of equal texts on two sides the one in the test split is kept"
    texts = {name: {examples.normalised(example.text) for example in part} for name, part in prepared.splits.items()}
    assert not texts["train"] & texts["test"] and not texts["train"] & texts["validation"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "labelled", "prompt_column": "q"}, "task labelled has no prompt_column: it takes text_column"),
        ({"name": "sentiment", "test_source": Source(path="x")}, "task sentiment has no test_source: it takes none"),
        (
            {"name": "labelled", "test_source": Source(path="x"), "test_fraction": 0.2},
            "task.test_fraction=0.2 splits nothing off: task.test_source is the test split",
        ),
        ({"name": "labelled", "options": {"colour": 1}}, "task labelled has no option 'colour'"),
        ({"name": "haiku"}, "no task is called 'haiku'; there are .*labelled, messages, .*responses, .*sentiment"),
    ],
)
def test_a_setting_that_the_task_does_not_know_is_refused_when_the_recipe_is_read(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        TaskConfig(source=Source(path="mine.jsonl"), **settings)


def test_all_responses_to_a_prompt_count_and_a_prompt_is_on_one_side_only(tmp_path: Path) -> None:
    pairs = [{"prompt": f"What is {number} and {number}?", "response": answer}
             for number in range(40) for answer in (str(2 * number), f"It is {2 * number}.")]  # fmt: skip
    prepared = responses.prepare([jsonl(tmp_path / "mine.jsonl", pairs)], 0.2, 0.2)
    prompts = {name: [example.prompt for example in part] for name, part in prepared.splits.items()}
    assert not set(prompts["train"]) & set(prompts["test"]) and len(set(prompts["test"])) == len(prompts["test"])
    assert all(len(example.references) == 2 for part in prepared.splits.values() for example in part)
    assert len(prompts["train"]) == 2 * len(set(prompts["train"]))
    dropped, asked = prepared.report["dropped"], len(prompts["validation"]) + len(prompts["test"])
    assert (dropped["prompts_across_splits"], dropped["merged_as_references"]) == (0, asked) and asked > 5
    assert sum(map(len, prompts.values())) + sum(dropped.values()) == prepared.report["rows"] == 80


def test_a_prompt_that_is_also_on_another_side_is_counted_apart_from_what_is_a_reference(tmp_path: Path) -> None:
    def pairs(first: int, last: int, said: str) -> list[dict[str, str]]:
        return [{"prompt": f"What is {n} and {n}?", "response": f"{said} {2 * n}."} for n in range(first, last)]

    test = jsonl(tmp_path / "test.jsonl", pairs(0, 10, "It is") + pairs(0, 4, "That makes"))
    train = jsonl(tmp_path / "train.jsonl", pairs(7, 40, "I say"))
    report = responses.prepare([train], 0.2, 0.2, test_files=[test]).report
    dropped = report["dropped"]
    assert (dropped["prompts_across_splits"], dropped["merged_as_references"]) == (3, 4)
    assert sum(one["examples"] for one in report["splits"].values()) + sum(dropped.values()) == report["rows"] == 47


def test_conversations_are_read_from_lists_from_json_in_csv_and_from_parquet(tmp_path: Path) -> None:
    talks = [
        [{"role": "user", "content": f"Are you {n}?"}, {"role": "assistant", "content": f"No, {n + 1}."}]
        for n in range(30)
    ]
    lists = messages.prepare([jsonl(tmp_path / "a.jsonl", [{"messages": talk} for talk in talks])], 0.2, 0.2)
    written = as_csv(tmp_path / "b.csv", [{"messages": json.dumps(talk)} for talk in talks])
    assert messages.prepare([written], 0.2, 0.2).splits == lists.splits
    nested = parquet(tmp_path / "c.parquet", [{"messages": talk} for talk in talks])
    assert messages.prepare([nested], 0.2, 0.2).splits == lists.splits
    assert sum(map(len, lists.splits.values())) == 30
    assert lists.report["turns_after_the_last_reply"] == 0


def test_what_nobody_replied_to_is_counted(tmp_path: Path) -> None:
    talks = [
        [{"role": role, "content": f"{role} {n} {place}"} for place, role in enumerate(("user", "assistant", "user")[: 3 - n % 2])]
        for n in range(50)
    ]  # fmt: skip
    path = jsonl(tmp_path / "a.jsonl", [{"messages": talk} for talk in talks])
    assert messages.prepare([path], 0.2, 0.2).report["turns_after_the_last_reply"] == 25


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([], r":1: field 'messages' has to be a list of turns"),
        ([{"role": "user"}], r":1: field 'messages', turn 1 is .*a turn is an object with role and content"),
        ([{"role": "bot", "content": "Hi."}], r":1: field 'messages', turn 1: role is 'bot'; expected one of system, user"),
        ([{"role": "user", "content": "Hi."}], r":1: field 'messages' has no turn of the assistant"),
        ([{"role": "user", "content": "Hi."}] * 2, r":1: field 'messages': roles are user, user; .*alternate"),
    ],
)  # fmt: skip
def test_a_bad_turn_is_named(turns: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        messages.prepare([jsonl(tmp_path / "mine.jsonl", [{"messages": turns}])], 0.1, 0.1)


def test_prompts_and_conversations_of_one_group_are_on_one_side(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"Is it {n}?", "response": f"It is {n}.", "who": f"author {n % 9}",
         "messages": [{"role": "user", "content": f"Is it {n}?"}, {"role": "assistant", "content": f"It is {n}."}]}
        for n in range(60)
    ]  # fmt: skip
    path = jsonl(tmp_path / "mine.jsonl", rows)
    for prepare in (responses.prepare, messages.prepare):
        sides = [{one.group for one in part} for part in prepare([path], 0.3, 0.3, group_column="who").splits.values()]
        assert sum(map(len, sides)) == len(set.union(*sides)) == 9 and set.union(*sides) == {row["who"] for row in rows}


def test_fewer_examples_are_an_even_sample_and_not_the_first_ones_of_the_file() -> None:
    part = [examples.Labelled(examples.identifier(str(n)), str(n), 0, str(n)) for n in range(200)]
    kept = examples.first({"train": part}, 50)["train"]
    assert kept == examples.first({"train": part[::-1]}, 50)["train"] and len(kept) == 50
    assert 60 < sum(int(one.text) for one in kept) / 50 < 140
