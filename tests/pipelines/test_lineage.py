"""From a model to its raw sources, and from a file to every model that stands on it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipelines import lineage, registry
from pipelines.lineage import digests_of, in_words, learned_from, read_all, sources
from pipelines.lineage_text import holding
from pipelines.model_card import Card
from pipelines.package import build_package
from pipelines.pull import From
from tests.mlflow_server import MlflowServer

ROOT = Path(__file__).parents[2]
FILES = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("a", "b", "films", "words", "other words")}


def step(stage: str, **groups: list[str]) -> dict[str, Any]:
    return {"stage": stage, "version": 1, "fingerprint": "f" * 64, "config": {}, "inputs": {}, "sources": groups}


def registered(where: str | Path, folder: Path, name: str, made: dict[str, Any], tokenizer: str = "") -> str:
    """Register a package that says this of its lineage; the digest of its tokenizer."""
    export = folder / name / "export"
    export.mkdir(parents=True)
    (export / "config.json").write_text("{}")
    (export / "tokenizer.json").write_text(json.dumps({"of": tokenizer or name}))
    build_package(export, folder / name / "package", Card(name, "text-generation", "A test.", lineage=made))
    tags = {"gptline.step": name, "gptline.fingerprint": name, "gptline.code": json.dumps({"commit abc": ["shard"]})}
    version = registry.register(where, name, folder / name / "package", tags)
    registry.promote(where, version, [])
    return hashlib.sha256((export / "tokenizer.json").read_bytes()).hexdigest()


def family(where: str | Path, folder: Path) -> None:
    """A base, a classifier that was fine-tuned from it, one that pinned the base's tokenizer, one that has nothing of all that."""
    corpus = step("shard", corpus=[FILES["a"], FILES["b"]])
    data = {"prepare_task": step("prepare_task", labelled=[FILES["films"]]), "shard": corpus,
            "train_tokenizer": step("train_tokenizer", text=[FILES["words"]])}  # fmt: skip
    tokenizer = registered(where, folder, "kin-base", data)
    registered(where, folder, "kin-task", data | {"finetune": step("finetune")}, "kin-base")
    pinned = {
        "shard": step("shard", corpus=[FILES["b"]]),
        "train_tokenizer": step("train_tokenizer", pinned=[tokenizer]),
    }
    registered(where, folder, "kin-pinned", pinned, "kin-base")
    registered(where, folder, "stranger", {"train_tokenizer": step("train_tokenizer", text=[FILES["other words"]])})


@pytest.fixture(scope="module")
def known(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    family(store, tmp_path_factory.mktemp("family"))
    return store


def found(where: str | Path, *digests: str) -> dict[str, set[str]]:
    everybody = read_all(From(where))
    return {
        one.known.listed.version.name: {in_words(use, one.known) for use in one.uses}
        for one in learned_from(digests, everybody)
    }


def test_a_file_is_found_in_every_model_that_stands_on_it(known: Path) -> None:
    pretrained = {"text that it was pre-trained on, or held out for"}
    assert found(known, FILES["a"]) == {"kin-base": pretrained, "kin-task": pretrained}
    assert found(known, FILES["b"]) == {"kin-base": pretrained, "kin-task": pretrained, "kin-pinned": pretrained}
    assert found(known, FILES["b"][:8]) == found(known, FILES["b"])
    assert found(known, "0" * 64) == {}


def test_labelled_examples_are_told_from_those_that_were_only_taken_out_of_the_text(known: Path) -> None:
    said = found(known, FILES["films"])
    assert said["kin-task"] == {"examples that it was fine-tuned and tested on"}
    assert "it has not learned from them" in said["kin-base"].pop()


def test_a_pinned_tokenizer_is_followed_to_its_text_and_to_nothing_else_of_its_model(known: Path) -> None:
    said = found(known, FILES["words"])
    assert set(said) == {"kin-base", "kin-task", "kin-pinned"}
    assert {text.partition(", through")[0] for text in said["kin-pinned"]} == {"text that its tokenizer was trained on"}
    assert "kin-pinned" not in found(known, FILES["a"])


def test_a_model_is_followed_to_every_raw_source(known: Path) -> None:
    everybody = read_all(From(known))
    task = next(one for one in everybody if one.listed.version.name == "kin-task")
    uses = {(use.step, use.group, use.sha256) for use in sources(task, everybody)}
    assert uses == {
        ("prepare_task", "labelled", FILES["films"]), ("shard", "corpus", FILES["a"]), ("shard", "corpus", FILES["b"]),
        ("train_tokenizer", "text", FILES["words"]),
    }  # fmt: skip


def test_the_manifests_are_read_once_and_what_cannot_be_read_is_said(store: Path, tmp_path: Path) -> None:
    made = {"shard": step("shard", corpus=[FILES["a"]])}
    for name in ("read-before", "never-read"):
        registered(store, tmp_path / name, name, made)
    origin = From(store, cache=tmp_path / "cache")
    first = {one.title: one for one in read_all(origin)}
    assert not first["never-read version 1 (candidate, champion)"].trouble
    for one in first.values():
        (Path(one.listed.version.source) / "MANIFEST.json").rename(tmp_path / "aside.json")
        assert {one.title: one.trouble for one in read_all(origin)} == dict.fromkeys(first, "")
        [lost] = [one for one in read_all(From(store)) if one.trouble]
        assert "MANIFEST.json" in lost.trouble and lost.manifest is None
        (tmp_path / "aside.json").rename(Path(one.listed.version.source) / "MANIFEST.json")


def test_a_folder_is_known_by_its_files_and_as_a_dataset(tmp_path: Path) -> None:
    (tmp_path / "data" / "train").mkdir(parents=True)
    (tmp_path / "data" / "train" / "a.jsonl").write_text('{"text": "one"}\n')
    from pipelines.config import Source
    from pipelines.sources import resolve

    [dataset] = resolve(Source(dataset=str(tmp_path / "data")), tmp_path)
    [file] = resolve(Source(path=str(tmp_path / "data" / "train" / "a.jsonl")), tmp_path)
    assert set(digests_of(tmp_path / "data")) == {dataset.sha256, file.sha256}
    [hub] = resolve(Source(dataset="somebody/something", revision="ab" * 20), tmp_path)
    assert lineage.digest_of_revision("ab" * 20) == hub.sha256


def test_a_text_is_found_in_files_of_every_format(tmp_path: Path) -> None:
    import bz2
    import gzip

    import pyarrow as pa
    import pyarrow.parquet as pq

    needle = "Ein Satz,\nder \u201eweg\u201c muß"
    record = json.dumps({"text": f"before {needle} after"}) + "\n"
    plain = json.dumps({"text": "nothing"}) + "\n"
    (tmp_path / "a.txt").write_bytes(b"x\r\n\r\n" + needle.replace("\n", "\r\n").encode())
    (tmp_path / "b.jsonl").write_text(plain + plain + record)
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress((plain + record).encode()))
    pq.write_table(pa.table({"text": ["nothing", f"<{needle}>"]}), tmp_path / "d.parquet")
    (tmp_path / "e.csv.bz2").write_bytes(bz2.compress(b"text\nder \xe2\x80\x9eweg"))
    (tmp_path / "f.txt").write_text("nothing")
    (tmp_path / "g.txt").write_text("line\n" * 500_000 + needle)  # over more than one block
    found = {path.name: line for path, line in holding(tmp_path, needle)}
    assert found == {"a.txt": 3, "b.jsonl": 3, "c.jsonl.gz": 2, "d.parquet": 2, "g.txt": 500_001}
    assert [path.name for path, _ in holding(tmp_path, "der \u201eweg")] == sorted([*found, "e.csv.bz2"])


def told(where: str | Path, what: str, *options: str) -> str:
    command = [sys.executable, "-m", "pipelines", "lineage", what, "--registry", str(where), *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout


def test_the_command_asks_a_server_both_ways(mlflow_server: MlflowServer, tmp_path: Path) -> None:
    uri = mlflow_server.uri
    family(uri, tmp_path)
    (tmp_path / "a.txt").write_text("a")
    said = told(uri, str(tmp_path / "a.txt"))
    assert "kin-task version 1 (candidate, champion)\n    text that it was pre-trained on" in said
    assert f"stand on {tmp_path / 'a.txt'}" in said
    for name in ("a", "b"):
        (tmp_path / "corpus" / f"{name}.txt").parent.mkdir(exist_ok=True)
        (tmp_path / "corpus" / f"{name}.txt").write_text(name)
    answer = json.loads(told(uri, str(tmp_path / "corpus"), "--text", "a", "--json"))
    assert answer["found"] == [f"{tmp_path}/corpus/a.txt:1"]
    assert [model["model"] for model in answer["models"]] == ["kin-base", "kin-task"]
    answer = json.loads(told(uri, "kin-task@champion", "--json"))
    assert answer["code"] == {"commit abc": ["shard"]}
    assert {use["sha256"] for use in answer["sources"]} == {FILES[name] for name in ("a", "b", "films", "words")}
    assert f"{FILES['films']}  prepare_task: examples that it was fine-tuned" in told(uri, "kin-task@1")
