"""tokenize on real Ray: ids as `tokenizers` makes them, shards that stand for their text, work done once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model import durable
from model.token_shards import TokenShards
from pipelines import encoding
from pipelines.encoding import HARD, SAMPLE_BYTES, Encoder, sample
from pipelines.engine.fingerprint import digest
from pipelines.engine.step import Damaged
from pipelines.stages import shard, tokenize
from pipelines.stages.tokenize_work import tokenize_shard
from pipelines.tokenizer_files import tokenizer_facts
from tests.model import text, tiny
from tests.pipelines.data_attempts import SHARD, attempt, corpus, rows
from tests.pipelines.test_tokenizer import train

DOCUMENTS = [
    *HARD,
    "plain English text, nothing special.",
    "x" * 20000,
    "<|endoftext|>" * 3,
    "\n\n\n",
    "mixed 漢字 and text " * 200,
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("tokenizer"))[0]


@pytest.fixture(scope="module")
def encoder(folder: Path) -> Encoder:
    return Encoder(folder, tokenizer_facts(folder))


def arrow(texts: list[str], chunk: int = 7) -> Any:
    """Texts as they come from a text shard: in several chunks."""
    import pyarrow as pa

    return pa.chunked_array([pa.array(texts[at : at + chunk], pa.string()) for at in range(0, len(texts), chunk)])


def reference(folder: Path, texts: list[str]) -> list[list[int]]:
    """The ids that `tokenizers` gives, reserved tokens as text, EOT after each."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    return [[*tokenizer.encode(text, add_special_tokens=False).ids, 0] for text in texts]


def lists(encoded: Any) -> list[list[int]]:
    return [
        encoded.tokens[start:end].tolist() for start, end in zip(encoded.offsets, encoded.offsets[1:], strict=False)
    ]


def test_gigatoken_gives_the_ids_of_tokenizers_on_hard_text(folder: Path, encoder: Encoder) -> None:
    encoded = encoder.encode(arrow(DOCUMENTS))
    assert encoded.engine == "gigatoken"
    assert encoded.tokens.dtype == np.uint16
    assert lists(encoded) == reference(folder, DOCUMENTS)


def test_a_slice_of_a_larger_batch_is_encoded_as_itself(folder: Path, encoder: Encoder) -> None:
    assert lists(encoder.encode(arrow(DOCUMENTS)[3:9])) == reference(folder, DOCUMENTS[3:9])


def test_chunks_do_not_show_in_what_is_encoded(encoder: Encoder) -> None:
    one, many = (encoder.encode(arrow(DOCUMENTS, chunk)) for chunk in (len(DOCUMENTS), 1))
    assert one.engine == many.engine == "gigatoken"
    assert np.array_equal(one.tokens, many.tokens) and np.array_equal(one.offsets, many.offsets)


def test_a_difference_on_the_sample_falls_back_to_tokenizers_and_says_why(folder: Path) -> None:
    encoder = Encoder(folder, tokenizer_facts(folder))
    other = train(folder.parents[1] / "other", "quite other words " * 50)[0]
    # The encoder now holds a fast engine that disagrees, as a bug in it would make it.
    encoder._fast = __import__("gigatoken").Tokenizer(str(other / "tokenizer.json"))
    encoded = encoder.encode(arrow(DOCUMENTS))
    assert encoded.engine.startswith("tokenizers: gigatoken differs on ")
    assert lists(encoded) == reference(folder, DOCUMENTS)


def test_a_tokenizer_that_gigatoken_cannot_load_falls_back(folder: Path, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({"<|endoftext|>": 0, "a": 1, "b": 2}, unk_token="<|endoftext|>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.add_special_tokens(["<|endoftext|>"])
    words.save(str(tmp_path / "tokenizer.json"))
    encoded = Encoder(tmp_path, tokenizer_facts(tmp_path)).encode(arrow(["a b", "b"]))
    assert encoded.engine.startswith("tokenizers: gigatoken failed (")
    assert lists(encoded) == [[1, 2, 0], [2, 0]]


def test_the_sample_holds_the_first_and_uncommon_documents_and_spreads() -> None:
    texts = [f"document {index} " * 100 for index in range(5000)]
    texts[1234] = "语" * 100
    chosen = sample(arrow(texts, 1000))
    assert chosen[0] == 0 and 1234 in chosen and len(chosen) == len(set(chosen)) < 64
    assert max(chosen) > 2500
    assert sample(arrow(["only"])) == [0]


def text_shards(root: Path, texts: list[str] | None = None, **config: Any) -> Path:
    import json

    texts = texts or [
        f"Document {index} says {index * 7919 % 1000} things, {'and more ' * (index % 9)}." for index in range(300)
    ]
    path = root / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    work = attempt(root, SHARD | config, corpus(path))
    shard.run(work)
    return work.outputs


def run(root: Path, shards: Path, folder: Path) -> tuple[Path, dict[str, Any]]:
    work = attempt(root, {}, inputs={"train": shards, "heldout": shards, "tokenizer": folder.parent})
    metrics = tokenize.run(work)
    return work.outputs, metrics


def test_token_shards_stand_for_their_text_document_by_document(tmp_path: Path, folder: Path) -> None:
    shards = text_shards(tmp_path)
    outputs, metrics = run(tmp_path, shards, folder)
    for split in ("train", "heldout"):
        expected = rows(tmp_path, shards, split)
        found = list(TokenShards.from_manifest(outputs / f"{split}.json", tmp_path).documents())
        assert [id for id, _ in found] == [row["id"] for row in expected]
        assert [tokens.tolist() for _, tokens in found] == reference(folder, [row["text"] for row in expected])
        assert metrics[f"{split}_tokens"] == sum(len(tokens) for _, tokens in found)
    assert metrics["fallback_shards"] == 0


def test_golden_digest_of_the_tokens(tmp_path: Path, folder: Path) -> None:
    """If this fails you changed what tokenize makes: raise its STAGE.version, then the digest here."""
    shards = text_shards(
        tmp_path, [text for text in DOCUMENTS if text.strip()] * 2, document_bytes=4096, heldout_fraction=0.4
    )
    outputs, _ = run(tmp_path, shards, folder)
    found = [
        [id, tokens.tolist()]
        for split in ("train", "heldout")
        for id, tokens in TokenShards.from_manifest(outputs / f"{split}.json", tmp_path).documents()
    ]
    assert tokenize.STAGE.version == 2
    assert digest(found) == "a391e0327a7e906ef7ece37002325be70f3abb4c6aa5e01a15764f74c302b61b"


def test_golden_keys_of_token_shards(tmp_path: Path) -> None:
    """If this fails every token shard that was made before is made again: was that meant?"""
    plain = tokenizer_facts(tiny.write_tokenizer(tmp_path / "plain"))
    bert = tokenizer_facts(text.tokenizer(tmp_path / "bert", "the end", special_tokens="bert"))
    for facts, options, key in (
        (plain, {}, "08d47820862594bde64d450fa20947ef616683a1ef8a17ab58be9ae8eff9f586"),
        (bert, {"sentences": 1}, "16a5eb84a4f5db2269fff9200feee74afd473385cf2a3656b7f79ab4f5e05f3c"),
    ):
        assert tokenize._key({"sha256": "x" * 64}, replace(facts, digest="t" * 64), options) == key


def test_tokenizers_that_end_documents_otherwise_share_no_token_shards(tmp_path: Path) -> None:
    """A base and its chat model have one tokenizer.json and another `eos_token` beside it."""
    from tokenizers import Tokenizer

    facts = []
    for name, end in (("base", "<|endoftext|>"), ("chat", "<|im_end|>")):
        folder = tiny.write_tokenizer(tmp_path / name)
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.add_special_tokens(["<|im_end|>"])
        tokenizer.save(str(folder / "tokenizer.json"))
        described = durable.read_json(folder / "tokenizer_config.json")
        durable.write_json(folder / "tokenizer_config.json", described | {"eos_token": end})
        facts.append(tokenizer_facts(folder))
    base, chat = facts
    assert base.digest == chat.digest and base.eot != chat.eot
    keys = {tokenize._key({"sha256": "x" * 64}, one, {}) for one in (base, chat, replace(chat, eot=9))}
    assert len(keys) == 3


def test_two_work_directories_get_the_same_bytes(tmp_path: Path, folder: Path) -> None:
    manifests = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        manifests.append((run(tmp_path / name, text_shards(tmp_path / name), folder)[0] / "train.json").read_bytes())
    assert manifests[0] == manifests[1]


def test_a_second_run_tokenizes_nothing_and_more_text_only_itself(tmp_path: Path, folder: Path) -> None:
    shards = text_shards(tmp_path)
    _, first = run(tmp_path, shards, folder)
    _, second = run(tmp_path, shards, folder)
    assert second["shards_reused"] == first["shards"]
    more = [f"Document {index} says {index * 7919 % 1000} things, {'and more ' * (index % 9)}." for index in range(330)]
    _, third = run(tmp_path, text_shards(tmp_path, more), folder)
    assert third["shards"] - third["shards_reused"] <= 4  # the last stretch of the file, which has grown, and its end


def test_datasets_opens_a_token_shard(tmp_path: Path, folder: Path) -> None:
    import datasets

    outputs, metrics = run(tmp_path, text_shards(tmp_path), folder)
    files = [str(tmp_path / unit["path"]) for unit in durable.read_json(outputs / "train.json")["units"]]
    opened = datasets.load_dataset("arrow", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    assert len(opened) == metrics["train_documents"]
    assert opened[0]["tokens"][-1] == 0


def test_a_damaged_text_shard_is_reported_as_damage_of_its_step(tmp_path: Path, folder: Path) -> None:
    shards = text_shards(tmp_path)
    path = durable.read_json(shards / "train.json")["units"][0]["path"]
    (tmp_path / path).write_bytes((tmp_path / path).read_bytes()[:-1] + b"?")
    with pytest.raises(Damaged, match="an output of step shard, is missing or damaged") as raised:
        run(tmp_path, shards, folder)
    assert raised.value.step == "shard" and path in str(raised.value)


def test_the_sample_of_short_documents_is_as_large_as_documented() -> None:
    texts = [f"short {index}" for index in range(50_000)]
    chosen = sample(arrow(texts, 20_000))
    assert len(chosen) == len(set(chosen))
    assert SAMPLE_BYTES[0] <= sum(len(texts[index]) for index in chosen) < SAMPLE_BYTES[0] + 100
    assert max(np.diff(sorted(chosen))) < 8 * len(texts) / len(chosen)


def test_a_token_unit_says_nothing_of_the_engine_that_made_it(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Made once by gigatoken and once by the fallback, in this process: the second finds the first one's unit equal."""
    monkeypatch.setattr(tokenize, "fan_out", lambda _, __, items: [(i, tokenize_shard(x)) for i, x in enumerate(items)])
    shards = text_shards(tmp_path)
    outputs, first = run(tmp_path, shards, folder)
    unit = durable.read_json(outputs / "train.json")["units"][0]["path"]
    certificate = (tmp_path / unit).with_name(Path(unit).name.split(".")[0] + ".json")
    before = certificate.read_bytes()
    encoding.load.cache_clear()
    monkeypatch.setattr(Encoder, "_prove", lambda self: "gigatoken failed (somewhere: else)")
    certificate.unlink()
    _, second = run(tmp_path, shards, folder)
    encoding.load.cache_clear()
    assert certificate.read_bytes() == before
    assert (first["fallback_shards"], second["fallback_shards"]) == (0, 1)
