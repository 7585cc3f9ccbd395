"""Sources: what is found, what is read, and what is said when it cannot be."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from model import durable
from pipelines.config import Source
from pipelines.corpus import Document, documents, refuse
from pipelines.records import Reject, is_damage
from pipelines.sources import SourceError, SourceFile, resolve
from pipelines.stretches import Checked, Stretch, whole


def files(path: Path, **options: Any) -> list[SourceFile]:
    return resolve(Source(path=str(path), label="t", **options), path)


def found(path: Path, limit: int = 4096, **options: Any) -> list[Document | Reject]:
    (file,) = files(path, **options)
    return list(documents(whole(file), limit))


def texts(path: Path, limit: int = 4096, **options: Any) -> list[str]:
    return [document.text for document in found(path, limit, **options) if isinstance(document, Document)]


def rejects(path: Path, **options: Any) -> list[Reject]:
    return [item for item in found(path, on_bad_record="skip", **options) if isinstance(item, Reject)]


def failure(path: Path, **options: Any) -> str:
    """The message that a reader of `path` gets under the policy `fail`."""
    (file,) = files(path, **options)
    with pytest.raises(SourceError) as raised:
        for item in documents(whole(file), 4096):
            if isinstance(item, Reject):
                refuse(item, whole(file))
    return str(raised.value)


def write_jsonl(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_every_format_gives_the_same_documents(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    lines = [{"text": "first\r\nline"}, {"text": "second é"}]
    plain = write_jsonl(tmp_path / "a.jsonl", *lines).read_bytes()
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(plain))
    with pa.CompressedOutputStream(str(tmp_path / "a.jsonl.zst"), "zstd") as out:
        out.write(plain)
    pq.write_table(pa.table({"text": [line["text"] for line in lines]}), tmp_path / "a.parquet")
    (tmp_path / "a.txt").write_bytes("first\r\nline\r\n\r\nsecond é\r\n".encode())
    for name in ("a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet"):
        assert texts(tmp_path / name) == ["first\nline", "second é"], name
    assert texts(tmp_path / "a.txt", limit=12) == ["first\nline", "second é"]


def test_a_directory_a_glob_and_a_file_are_found_and_sorted_by_content(tmp_path: Path) -> None:
    for name in ("b.txt", "a.md", "c.jsonl", "ignored.bin", ".hidden.txt"):
        (tmp_path / name).write_text(name)
    assert {Path(file.path).name for file in files(tmp_path)} == {"a.md", "b.txt", "c.jsonl"}
    assert [Path(file.path).name for file in files(tmp_path / "*.txt")] == ["b.txt"]
    digests = [file.sha256 for file in files(tmp_path)]
    assert digests == sorted(digests)


def test_identity_is_the_content_and_never_the_name(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a.txt").write_text("same")
    (tmp_path / "b.txt").write_text("same")
    assert files(tmp_path / "one")[0].identity == files(tmp_path / "b.txt")[0].identity


@pytest.mark.parametrize(
    ("pattern", "says"), [("none/here", "does not exist"), ("*.txt", "no file matches"), ("", "no file that ends in")]
)
def test_sources_that_are_not_there_say_where_they_were_looked_for(tmp_path: Path, pattern: str, says: str) -> None:
    with pytest.raises(SourceError, match=says) as raised:
        files(tmp_path / pattern)
    assert str(tmp_path) in str(raised.value)


def test_an_unknown_ending_is_refused_unless_the_format_is_given(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_text("text")
    with pytest.raises(SourceError, match="unknown file ending"):
        files(tmp_path / "a.log")
    assert texts(tmp_path / "a.log", format="txt") == ["text"]


def test_an_empty_file_is_refused_when_planned_or_counted(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    with pytest.raises(SourceError, match=r"a\.txt is empty"):
        files(tmp_path / "a.txt")
    assert [reject.reason for reject in rejects(tmp_path / "a.txt")] == ["the file is empty; remove it or fill it"]


def test_undecodable_bytes_name_file_line_and_byte(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"good\n\nalso good\nbad \xff here\n")
    message = failure(tmp_path / "a.txt")
    assert f"{tmp_path}/a.txt:4: byte 5 of the line (0xff) is not valid UTF-8" in message
    assert "on_bad_record='skip'" in message


def test_a_skipped_document_leaves_the_others(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"good one\n\nbad \xff\n\ngood two\n")
    assert texts(tmp_path / "a.txt", limit=8, on_bad_record="skip") == ["good one", "good two"]
    (reject,) = [item for item in found(tmp_path / "a.txt", 8, on_bad_record="skip") if isinstance(item, Reject)]
    assert (reject.line, reject.excerpt) == (3, "bad \\xff")


def test_a_broken_json_line_names_its_line_and_shows_it(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "good"}\n\n{"text": "cut\n{"text": "good"}\n')
    assert f"{tmp_path}/a.jsonl:3: not valid JSON" in failure(tmp_path / "a.jsonl")
    assert [reject.line for reject in rejects(tmp_path / "a.jsonl")] == [3]
    assert texts(tmp_path / "a.jsonl", on_bad_record="skip") == ["good", "good"]


def test_a_missing_field_names_the_fields_that_are_there(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", {"text": "x"}, {"body": "x", "id": 1})
    assert "a.jsonl:2: no field 'text'; the fields are body, id (see text_column)" in failure(tmp_path / "a.jsonl")
    assert texts(tmp_path / "a.jsonl", text_column="body", on_bad_record="skip") == ["x"]


def test_a_missing_column_names_the_columns_that_are_there(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"body": ["x"], "id": [1]}), tmp_path / "a.parquet")
    assert "no column 'text'; the columns are body, id (see text_column)" in failure(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (7, "is not text but int"),
        (None, "is not text but null"),
        (["x"], "is not text but list"),
        ("\ud800", "half of a surrogate pair"),
    ],
)
def test_a_value_that_is_no_text_is_a_bad_record(tmp_path: Path, value: Any, says: str) -> None:
    write_jsonl(tmp_path / "a.jsonl", {"text": value})
    assert says in failure(tmp_path / "a.jsonl")


def test_a_json_line_that_is_no_object_is_a_bad_record(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", ["text"])
    assert "a JSON object is expected, this is a list" in failure(tmp_path / "a.jsonl")


def test_null_and_undecodable_rows_of_parquet_are_bad_records(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    raw = pa.Array.from_buffers(pa.string(), 3, pa.array([b"ok", b"\xff", None], pa.binary()).buffers())
    pq.write_table(pa.table({"text": raw}), tmp_path / "a.parquet")
    assert [(reject.line, reject.reason) for reject in rejects(tmp_path / "a.parquet")] == [
        (2, "'text' is not text but bytes"),
        (3, "'text' is not text but null"),
    ]
    assert texts(tmp_path / "a.parquet", on_bad_record="skip") == ["ok"]


@pytest.mark.parametrize("ending", ["gz", "zst"])
def test_a_truncated_stream_says_how_far_it_was_readable(tmp_path: Path, ending: str) -> None:
    import pyarrow as pa

    plain = write_jsonl(
        tmp_path / "a.jsonl", *({"text": hashlib.sha512(b"%d" % index).hexdigest() * 2} for index in range(4000))
    ).read_bytes()
    packed = gzip.compress(plain) if ending == "gz" else pa.compress(plain, "zstd", asbytes=True)
    path = tmp_path / f"a.jsonl.{ending}"
    path.write_bytes(packed[: len(packed) // 2])
    assert "the compressed data is truncated or damaged after line" in failure(path)
    (reject,) = rejects(path)
    assert len(texts(path, on_bad_record="skip")) == reject.line - 1 > 0


def test_a_file_that_is_no_gzip_is_said_to_be_none(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(b'{"text": "plain"}\n')
    assert "Not a gzipped file" in failure(tmp_path / "a.jsonl.gz")


def test_a_file_that_is_no_parquet_is_said_to_be_none(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 not really")
    assert "not a readable Parquet file" in failure(tmp_path / "a.parquet")


def test_a_utf8_byte_order_mark_is_dropped_and_a_utf16_one_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbftext")
    (tmp_path / "b.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "text"}\n')
    (tmp_path / "c.txt").write_bytes("text".encode("utf-16"))
    assert texts(tmp_path / "a.txt") == texts(tmp_path / "b.jsonl") == ["text"]
    assert "UTF-16 (little-endian), by its byte order mark; convert it to UTF-8" in failure(tmp_path / "c.txt")


def test_a_file_that_changed_after_planning_is_an_error(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", {"text": "planned"})
    (planned,) = files(path)
    write_jsonl(path, {"text": "changed"})
    with pytest.raises(SourceError, match="changed or removed after this run was planned"):
        list(documents(whole(planned), 4096))
    path.unlink()
    with pytest.raises(SourceError, match="changed or removed after this run was planned"):
        list(documents(whole(planned), 4096))


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.jsonl.gz"])
def test_reading_a_larger_file_needs_no_more_memory(tmp_path: Path, name: str) -> None:
    import tracemalloc

    peaks = []
    for size in (2_000, 8_000):
        plain = b"".join(b'{"text": "line %d%s"}\n' % (index, b" of a large file" * 60) for index in range(size))
        (tmp_path / name).write_bytes(gzip.compress(plain, 1) if name.endswith("gz") else plain)
        del plain
        (file,) = files(tmp_path / name)
        tracemalloc.start()
        for _ in documents(whole(file), 4096):
            pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] * 1.2 + (1 << 20)


def test_origin_names_label_content_and_line(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one\n\n\ntwo\n\nthree\n")
    digest = durable.sha256(path)[:12]
    sources = [document.source for document in found(path, 5) if isinstance(document, Document)]
    assert sources == [f"t:{digest}:1", f"t:{digest}:4", f"t:{digest}:6"]


def test_a_long_record_is_cut_and_its_parts_are_numbered(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", {"text": "short"}, {"text": "one\n\ntwo\n\nthree"})
    sources = [document.source.split(":")[-1] for document in found(path, 9) if isinstance(document, Document)]
    assert sources == ["1", "2", "2.2"]


def test_a_local_dataset_is_read_through_the_datasets_library(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    write_jsonl(tmp_path / "set" / "train.jsonl", {"text": "from a dataset"}, {"text": "second"})
    write_jsonl(tmp_path / "set" / "test.jsonl", {"text": "other split"})
    (file,) = resolve(Source(dataset=str(tmp_path / "set"), label="d"), tmp_path)
    assert [document.text for document in documents(whole(file), 99) if isinstance(document, Document)] == [
        "from a dataset",
        "second",
    ]


def test_a_dataset_that_was_saved_to_disk_is_read_too(tmp_path: Path) -> None:
    import datasets

    split = datasets.Dataset.from_dict({"text": ["one", "two"]})
    split.save_to_disk(str(tmp_path / "plain"))
    datasets.DatasetDict({"train": split}).save_to_disk(str(tmp_path / "splits"))
    for name in ("plain", "splits"):
        (file,) = resolve(Source(dataset=str(tmp_path / name)), tmp_path)
        assert [document.text for document in documents(whole(file), 99) if isinstance(document, Document)] == [
            "one",
            "two",
        ]


def test_a_dataset_with_another_file_is_another_dataset(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", {"text": "x"})
    source = Source(dataset=str(tmp_path))
    before = resolve(source, tmp_path)
    write_jsonl(tmp_path / "train-2.jsonl", {"text": "y"})
    assert resolve(source, tmp_path)[0].sha256 != before[0].sha256


def test_a_dataset_that_cannot_be_opened_says_so_in_the_librarys_words(tmp_path: Path) -> None:
    (tmp_path / "README").write_text("nothing here")
    (file,) = resolve(Source(dataset=str(tmp_path)), tmp_path)
    with pytest.raises(SourceError, match="cannot be opened"):
        list(documents(whole(file), 99))


@pytest.mark.parametrize(
    ("error", "damaged"),
    [
        (OSError("Corrupt snappy compressed data."), True),
        (gzip.BadGzipFile("CRC check failed"), True),
        (EOFError("ended early"), True),
        (OSError(5, "Input/output error"), False),
        (TimeoutError("the read timed out"), False),
        (ConnectionError("reset"), False),
        (RuntimeError("unknown"), False),
    ],
)
def test_only_damaged_data_is_a_bad_record_and_never_a_disk_or_network_that_failed(
    error: Exception, damaged: bool
) -> None:
    assert is_damage(error) is damaged


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.jsonl.gz"])
def test_a_disk_that_fails_while_reading_is_an_error_although_bad_records_are_skipped(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = b'{"text": "x"}\n'
    (tmp_path / name).write_bytes(gzip.compress(plain) if name.endswith("gz") else plain)
    (file,) = files(tmp_path / name, on_bad_record="skip")
    real = Checked.__init__

    def failing(self: Checked, stretch: Stretch) -> None:
        real(self, stretch)
        self._file.close()
        self._file = FailingDisk()  # type: ignore[assignment]

    monkeypatch.setattr(Checked, "__init__", failing)
    with pytest.raises(SourceError, match=r"cannot be read: .*Input/output error"):
        list(documents(whole(file), 99))


class FailingDisk:
    """A file on a disk that fails."""

    def readinto(self, view: Any) -> int:
        raise OSError(5, "Input/output error")

    def close(self) -> None:
        pass


def test_a_dataset_whose_stream_breaks_off_is_an_error_although_bad_records_are_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    def rows() -> Iterator[dict[str, str]]:
        yield {"text": "first"}
        raise ConnectionError("the hub went away")

    monkeypatch.setattr("pipelines.records.open_dataset", lambda file: datasets.IterableDataset.from_generator(rows))
    file = SourceFile("hub/name", "0" * 64, 0, "t", "dataset", on_bad_record="skip")
    with pytest.raises(SourceError, match="cannot be read on after row 1: the hub went away"):
        list(documents(whole(file), 99))


def test_files_of_a_directory_that_are_passed_over_are_named_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a.txt", *(f"{index}.log" for index in range(7))):
        (tmp_path / name).write_text(name)
    assert len(files(tmp_path)) == 1
    assert "7 files are passed over because of their endings: 0.log, 1.log, 2.log, 3.log, 4.log, ..." in caplog.text


def test_a_rejected_record_is_kept_whole_up_to_its_bound(tmp_path: Path) -> None:
    line = '{"text": "' + "x" * 5000
    (tmp_path / "a.jsonl").write_text(f"{line}\n{line * 20}\n")
    first, second = rejects(tmp_path / "a.jsonl")
    assert first.excerpt == f"{line}\n" and len(second.excerpt) == 64 << 10


def test_parquet_and_datasets_without_a_row_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "a.parquet")
    assert "a.parquet:1: no row in the file" in failure(tmp_path / "a.parquet")
    empty = datasets.IterableDataset.from_generator(lambda: iter(()))
    monkeypatch.setattr("pipelines.records.open_dataset", lambda file: empty)
    file = SourceFile("hub/name", "0" * 64, 0, "t", "dataset")
    assert list(documents(whole(file), 99)) == [Reject(1, "no row in the file")]


@pytest.mark.parametrize("as_dataset", [False, True])
def test_a_link_to_a_folder_or_to_nothing_is_refused_and_one_to_a_file_is_read(
    as_dataset: bool, tmp_path: Path
) -> None:
    elsewhere, corpus = tmp_path / "elsewhere", tmp_path / "corpus"
    elsewhere.mkdir()
    corpus.mkdir()
    (elsewhere / "a.txt").write_text("far")
    (corpus / "b.txt").symlink_to(elsewhere / "a.txt")

    def found() -> list[SourceFile]:
        return resolve(Source(dataset=str(corpus)), tmp_path) if as_dataset else files(corpus)

    assert [file.size for file in found()] == [3]
    (corpus / ".hidden").symlink_to(elsewhere)
    (corpus / ".gone").symlink_to("nowhere")
    assert [file.size for file in found()] == [3]
    (corpus / "more").symlink_to(elsewhere)
    with pytest.raises(SourceError) as raised:
        found()
    assert str(raised.value).startswith(
        f"{corpus}/more is a symbolic link to a folder, {elsewhere}, and is not followed; give"
    )
    (corpus / "more").unlink()
    (corpus / "gone.txt").symlink_to("nowhere")
    with pytest.raises(
        SourceError, match=rf"^{corpus}/gone.txt is a symbolic link to nowhere, which is not there; mend"
    ):
        found()


def test_lineage_does_not_answer_for_a_folder_whose_files_it_cannot_see_all(tmp_path: Path) -> None:
    from pipelines.lineage import digests_of
    from pipelines.lineage_text import holding

    (tmp_path / "a.txt").write_text("near")
    (tmp_path / "more").symlink_to(tmp_path)
    for ask in (lambda: digests_of(tmp_path), lambda: list(holding(tmp_path, "near"))):
        with pytest.raises(SourceError, match=r"/more is a symbolic link to a folder, .*; give that folder by itself"):
            ask()


def test_a_glob_does_not_lose_a_link_to_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("here")
    (tmp_path / "b.txt").symlink_to("nowhere")
    with pytest.raises(SourceError, match=r"b\.txt is a symbolic link to nowhere, which is not there; mend"):
        files(tmp_path / "*.txt")


def test_what_is_advised_is_possible_for_a_task_too(tmp_path: Path) -> None:
    (tmp_path / "a.csv").touch()
    with pytest.raises(
        SourceError, match=r"a\.csv is empty; remove it or fill it \(a corpus may also have on_bad_record="
    ):
        files(tmp_path / "a.csv")
    (tmp_path / "a.log").write_text("text")
    with pytest.raises(
        SourceError, match=r"txt, md, and of a task's data also csv\.bz2, csv, tab, json\. Rename it or give"
    ):
        files(tmp_path / "a.log")
    with pytest.raises(
        SourceError, match=r"check the path\. Of csv\.bz2, csv, tab, json, .*: give a glob, such as .*/\*\.csv"
    ):
        files(tmp_path)


@pytest.mark.parametrize(
    ("encoding", "says"),
    [("utf-16-le", "UTF-16 (little-endian)"), ("utf-16-be", "UTF-16 (big-endian)"),
     ("utf-32-le", "UTF-32 (little-endian)"), ("utf-32-be", "UTF-32 (big-endian)")],
)  # fmt: skip
def test_a_byte_order_mark_is_called_by_its_encoding(encoding: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffText.".encode(encoding))
    assert f"a.txt:1: the file is in {says}, by its byte order mark; convert it to UTF-8" in failure(tmp_path / "a.txt")


def test_json_of_too_many_brackets_is_a_bad_record(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "good"}\n{"text": ' + "[" * 100_000 + "\n")
    assert "a.jsonl:2: not readable JSON: it has more brackets within brackets than can be read" in failure(
        tmp_path / "a.jsonl"
    )


def test_a_dataset_of_one_split_is_not_read_for_another(tmp_path: Path) -> None:
    import datasets

    one = datasets.Dataset.from_dict({"text": ["first"]}, split=datasets.Split.VALIDATION)
    one.save_to_disk(str(tmp_path / "one"))

    def read(split: str) -> list[Document | Reject]:
        (file,) = resolve(Source(dataset=str(tmp_path / "one"), split=split), tmp_path)
        return list(documents(whole(file), 99))

    assert len(read("train")) == len(read("validation")) == 1, "train is what nobody chose"
    with pytest.raises(SourceError, match=r"one \(split test\) cannot be opened: Dataset.save_to_disk wrote one split there \(validation\), and it is read whole; leave"):  # fmt: skip
        read("test")
