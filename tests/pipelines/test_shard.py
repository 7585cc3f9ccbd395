"""shard on real Ray: what comes out, what is dropped and counted, and what one more source costs."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from model import durable
from pipelines.contamination import Contamination, patterns
from pipelines.documents import content_hash
from pipelines.engine.fingerprint import digest
from pipelines.pieces import cut_file
from pipelines.sources import SourceError, source_file
from pipelines.stages import shard
from tests.pipelines.data_attempts import SHARD, attempt, corpus, rows


def paragraphs(name: str, count: int = 60) -> str:
    return "".join(f"Paragraph {index} of {name} says {index * 7919 % 1000} things.\n\n" for index in range(count))


def folder(tmp_path: Path, files: int = 12) -> Path:
    path = tmp_path / "corpus"
    path.mkdir()
    for index in range(files):
        (path / f"{index}.txt").write_text(paragraphs(f"file {index}"))
    return path


def run(
    root: Path, sources: dict[str, Any], inputs: dict[str, Path] | None = None, **config: Any
) -> tuple[Path, dict[str, Any]]:
    work = attempt(root, SHARD | config, sources, inputs)
    metrics = shard.run(work)
    return work.outputs, metrics


def documents(root: Path, outputs: Path) -> list[dict[str, str]]:
    return [row | {"split": split} for split in ("train", "heldout") for row in rows(root, outputs, split)]


def test_golden_digest_of_the_documents(tmp_path: Path) -> None:
    """If this fails you changed what shard makes: raise its STAGE.version, then the digest here."""
    (tmp_path / "a.txt").write_text("Grüße.\r\n\r\nZwei 漢字.\n\n" + paragraphs("a", 40))
    (tmp_path / "b.jsonl").write_text('{"text": "One record."}\n{"text": "One record."}\n{"text": " "}\n')
    outputs, _ = run(tmp_path, corpus(tmp_path / "a.txt", tmp_path / "b.jsonl"), document_bytes=64, shard_bytes=1024)
    assert shard.STAGE.version == 2
    assert digest(documents(tmp_path, outputs)) == "5372ed5f559138f41502937d17ad532c7f5329012c6a6992dc88b70ff1dc410c"
    assert (
        digest(durable.read_json(outputs / "statistics.json"))
        == "b5dca5f35fc8aefa63732516da52fd4057d90e7a676e24f0c2f0610ce346de06"
    )


def test_two_runs_give_the_same_bytes_in_every_output(tmp_path: Path) -> None:
    sources = corpus(folder(tmp_path))
    first, _ = run(tmp_path / "one", sources)
    second, _ = run(tmp_path / "two", sources)
    names = sorted(os.listdir(first))
    assert names == ["heldout.json", "pieces.json", "rejects.jsonl", "statistics.json", "train.json"]
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in names)


def test_every_document_is_identified_by_its_text_and_none_is_lost(tmp_path: Path) -> None:
    outputs, metrics = run(tmp_path, corpus(folder(tmp_path)))
    found = documents(tmp_path, outputs)
    assert all(row["id"] == content_hash(row["text"].encode()).hex()[:32] for row in found)
    assert sum(row["text"].count("says") for row in found) == 12 * 60
    assert metrics["train_documents"] + metrics["heldout_documents"] == len(found)
    assert metrics["heldout_documents"] == sum(row["split"] == "heldout" for row in found) > 0


def test_one_more_source_file_costs_only_its_own_piece(tmp_path: Path) -> None:
    path = folder(tmp_path, 40)
    _, before = run(tmp_path, corpus(path))
    (path / "new.txt").write_text(paragraphs("the new file"))
    _, after = run(tmp_path, corpus(path))
    assert before["pieces_reused"] == 0 and before["pieces"] > 8
    assert after["pieces"] - after["pieces_reused"] <= 2


def test_a_second_run_makes_nothing_and_damage_makes_its_unit_again(tmp_path: Path) -> None:
    sources = corpus(folder(tmp_path))
    outputs, metrics = run(tmp_path, sources)
    _, again = run(tmp_path, sources)
    assert again["pieces_reused"] == metrics["pieces"]
    victim = tmp_path / durable.read_json(outputs / "train.json")["units"][0]["path"]
    victim.write_bytes(victim.read_bytes()[:-1] + b"?")
    repaired, third = run(tmp_path, sources)
    assert third["pieces_reused"] == metrics["pieces"] - 1
    assert (repaired / "train.json").read_bytes() == (outputs / "train.json").read_bytes()


def test_text_that_cannot_be_cut_before_it_is_read_fills_several_bounded_shards(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    lines = [
        json.dumps({"text": f"Record {index}: {hashlib.sha256(b'%d' % index).hexdigest() * 3}"}) for index in range(400)
    ]
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    outputs, metrics = run(tmp_path, corpus(path))
    units = durable.read_json(outputs / "train.json")["units"]
    assert metrics["pieces"] == 1 and len(units) > 10
    assert max(unit["bytes"] for unit in units) <= SHARD["shard_bytes"] + SHARD["document_bytes"]
    order = [int(row["source"].split(":")[-1]) for row in rows(tmp_path, outputs, "train")]
    assert order == sorted(order)


def test_exact_duplicates_are_dropped_and_counted_within_and_across_pieces(tmp_path: Path) -> None:
    path = folder(tmp_path)
    sources = corpus(path)
    outputs, _ = run(tmp_path, sources)
    twice = tmp_path / "again.jsonl"  # larger than a shard, so it is in pieces of its own
    twice.write_text(
        "".join(json.dumps({"text": row["text"]}) + "\n" for row in documents(tmp_path, outputs) for _ in range(2))
    )
    combined, counted = run(tmp_path, corpus(path, twice))
    assert sorted({row["id"] for row in documents(tmp_path, combined)}) == sorted(
        row["id"] for row in documents(tmp_path, combined)
    )
    assert {row["id"] for row in documents(tmp_path, combined)} == {row["id"] for row in documents(tmp_path, outputs)}
    assert counted["duplicates"] == 2 * len(documents(tmp_path, outputs))


def test_equal_stretches_of_large_files_are_one_piece_and_their_documents_are_counted(tmp_path: Path) -> None:
    text = paragraphs("a large file", 800)
    (tmp_path / "a.txt").write_text(text)
    (tmp_path / "b.txt").write_text(text + paragraphs("an appendix", 20))
    outputs, metrics = run(tmp_path, corpus(tmp_path / "a.txt", tmp_path / "b.txt"))
    found = documents(tmp_path, outputs)
    assert len({row["id"] for row in found}) == len(found)
    _, alone = run(tmp_path, corpus(tmp_path / "b.txt"))
    assert metrics["pieces"] == alone["pieces"] + 1  # the ends of the two files differ
    before = durable.read_json(outputs / "statistics.json")["sources"]["test"]["documents"]
    assert metrics["duplicates"] > before / 3


def test_a_file_that_is_there_twice_is_read_once_and_counted(tmp_path: Path) -> None:
    path = folder(tmp_path)
    (path / "copy.txt").write_bytes((path / "0.txt").read_bytes())
    outputs, metrics = run(tmp_path, corpus(path))
    assert durable.read_json(outputs / "statistics.json")["duplicate_files"] == 1
    assert (metrics["duplicates"], metrics["duplicate_files"]) == (0, 1)


def test_documents_that_contain_evaluation_examples_are_dropped(tmp_path: Path) -> None:
    path = folder(tmp_path)
    (path / "leak.txt").write_text(
        "Before it.\n\nPARAGRAPHS, that SAY one or two things --\nmust never be learned!\n\nAfter it.\n"
    )
    evaluation = tmp_path / "examples"
    evaluation.mkdir()
    examples = [
        "paragraphs that say: one or two things must never be learned",
        "too short to count",
        "not in the corpus at all, in none of its files",
    ]
    (evaluation / "test.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in examples))
    outputs, metrics = run(tmp_path, corpus(path), {"test": evaluation})
    assert metrics["contaminated"] == 1
    assert not any("never be learned" in row["text"] for row in documents(tmp_path, outputs))
    assert durable.read_json(outputs / "statistics.json")["evaluation"] == {"examples": 3, "ignored": 1}


def test_short_examples_and_parts_of_words_contaminate_nothing() -> None:
    known = Contamination(["a b c d e f g art", "short one"], min_words=8)
    assert known.ignored == 1
    assert known.contains("x, A b. C d e F g: Art!")
    assert not known.contains("x a b c d e f g artful") and not known.contains("short one")


def test_long_examples_are_found_by_their_windows_and_scripts_without_spaces_by_character() -> None:
    long = " ".join(f"w{index}" for index in range(100))
    assert Contamination([long], 8).contains(" ".join(f"w{index}" for index in range(30, 70)))
    assert len(patterns([long], 8)[0]) == 4
    assert Contamination(["我们今天去看电影吧"], 8).contains("他说：「我们今天，去看电影吧。」")


def test_an_empty_split_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one document only")
    with pytest.raises(
        shard.EmptySplit, match=r"the (heldout|train) split is empty: 1 documents with heldout_fraction=0\.2.* add text"
    ):
        run(tmp_path, corpus(tmp_path / "a.txt"))


def test_bad_records_fail_the_stage_or_are_kept_as_rejects(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.jsonl"
    lines = [json.dumps({"text": paragraphs(f"record {index}", 3)}) for index in range(80)]
    lines[40] = '{"text": "cut'
    path.write_text("\n".join(lines))
    with pytest.raises(SourceError, match=rf"{path}:41: not valid JSON"):
        run(tmp_path, corpus(path))
    outputs, metrics = run(tmp_path, corpus(path, on_bad_record="skip"))
    assert metrics["rejected"] == 1
    (reject,) = map(json.loads, (outputs / "rejects.jsonl").read_text().splitlines())
    assert (reject["line"], reject["label"], reject["excerpt"]) == (41, "test", '{"text": "cut\n')
    assert f"skipped {path}:41: not valid JSON" in caplog.text


def test_a_format_of_labelled_data_is_no_corpus(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\nx\n")
    with pytest.raises(SourceError, match="csv is no format of a corpus"):
        run(tmp_path, corpus(tmp_path / "a.csv"))


def test_two_columns_of_one_file_are_both_in_the_corpus(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(
        "".join(json.dumps({"title": f"title {index}", "body": f"body {index}"}) + "\n" for index in range(60))
    )
    columns = [corpus(path, text_column=name)["corpus"][0] for name in ("title", "body")]
    outputs, metrics = run(tmp_path, {"corpus": columns})
    assert {row["text"] for row in documents(tmp_path, outputs)} == {
        f"{name} {index}" for name in ("title", "body") for index in range(60)
    }
    assert metrics["duplicate_files"] == 0
    again, _ = run(tmp_path, {"corpus": columns[::-1]})
    assert (again / "train.json").read_bytes() == (outputs / "train.json").read_bytes()


def test_the_order_of_pieces_does_not_depend_on_which_cutting_task_ends_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"a": f"a {index}", "b": f"b {index}"}) + "\n" for index in range(900)))
    files = [source_file(corpus(path, text_column=name)["corpus"][0]) for name in ("a", "b")]
    orders = []
    for turn in (1, -1):
        ends = lambda _, __, items, turn=turn: [(i, cut_file(item)) for i, item in enumerate(items)][::turn]  # noqa: E731
        monkeypatch.setattr(shard, "fan_out", ends)
        found = shard._pieces(attempt(tmp_path, SHARD, {}), files[::turn])
        orders.append([piece.key for piece in sorted(found, key=shard._order)])
    assert orders[0] == orders[1] and len(orders[0]) == len(set(orders[0])) > 4
