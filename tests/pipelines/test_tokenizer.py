"""The tokenizer: the same bytes from the same text, the same ids in every library, or a pinned one as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from model import durable
from model.vocabulary import FILES, TEMPLATE_FILE
from pipelines.config import Source
from pipelines.encoding import HARD
from pipelines.sources import SourceError, described
from pipelines.stages import train_tokenizer
from pipelines.tokenizer_files import EOT, tokenizer_facts
from tests.pipelines.data_attempts import attempt

CONFIG = {"vocab_size": 400, "min_frequency": 2, "max_bytes": 1 << 20, "digest": None}
TEXT = "The quick brown fox jumps over the lazy dog; don't ask why.\nDer schnelle Fuchs, das Äffchen, 漢字かな.\n" * 30


def train(root: Path, text: str = TEXT, **config: Any) -> tuple[Path, dict[str, Any]]:
    root.mkdir(exist_ok=True)
    (root / "text.txt").write_text(text)
    sources = {"text": described(Source(path=str(root / "text.txt")), root, durable.sha256, True)}
    work = attempt(root, CONFIG | config, sources)
    metrics = train_tokenizer.run(work)
    return work.outputs / "tokenizer", metrics


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("tokenizer"))[0]


def test_golden_digest_of_the_vocabulary(trained: Path) -> None:
    """If this fails you changed what train_tokenizer makes: raise its STAGE.version, then the digest here."""
    assert train_tokenizer.STAGE.version == 2
    assert durable.sha256(trained / "merges.txt") == "048e9f8ee8db517115d0f5fcffe32365683cb0797709b1bb64d087519afa7198"
    assert durable.sha256(trained / "vocab.json") == "f52d804ebc0a53e5e960bf7451f035dd7a185908b7a980dbedc45517fe3ead64"


def test_equal_text_gives_equal_bytes_in_every_file(trained: Path, tmp_path: Path) -> None:
    again, metrics = train(tmp_path / "again")
    assert sorted(path.name for path in again.iterdir()) == sorted({*FILES} - {TEMPLATE_FILE})
    assert all((again / path.name).read_bytes() == path.read_bytes() for path in trained.iterdir())
    assert metrics["digest"] == tokenizer_facts(trained).digest
    assert metrics["trained_on_bytes"] == len(TEXT.encode()) - 1  # the last newline belongs to no document


def test_transformers_and_tokenizers_give_the_same_ids_and_give_the_text_back(trained: Path) -> None:
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer, GPT2Tokenizer

    ours = Tokenizer.from_file(str(trained / "tokenizer.json"))
    ours.encode_special_tokens = True
    loaded = [kind.from_pretrained(str(trained)) for kind in (GPT2Tokenizer, AutoTokenizer)]
    for text in (*HARD, TEXT):
        ids = ours.encode(text).ids
        assert 0 not in ids
        for tokenizer in loaded:
            assert tokenizer.encode(text) == ids
            assert tokenizer.decode(ids) == text


def test_reserved_tokens_are_the_one_end_of_text_token(trained: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(trained))
    assert (
        tokenizer.eos_token_id
        == tokenizer.bos_token_id
        == tokenizer.pad_token_id
        == tokenizer.unk_token_id
        == tokenizer_facts(trained).eot
        == 0
    )
    assert tokenizer.decode([0]) == EOT and tokenizer.decode([0], skip_special_tokens=True) == ""


def test_a_sample_within_max_bytes_is_taken_by_content(tmp_path: Path) -> None:
    lines = "".join(f'{{"text": "line {index} of many"}}\n' for index in range(2000))
    (tmp_path / "a.jsonl").write_text(lines)
    sources = {"text": described(Source(path=str(tmp_path / "a.jsonl")), tmp_path, durable.sha256, True)}
    work = attempt(tmp_path, CONFIG | {"max_bytes": 8192}, sources)
    metrics = train_tokenizer.run(work)
    assert 3000 < metrics["trained_on_bytes"] <= 8192


def pinned(folder: Path) -> dict[str, Any]:
    """A tokenizer's directory as `flow` hands it to the step: its path is no part of the configuration."""
    return {"pinned": [{"path": str(folder)}]}


def test_a_pinned_tokenizer_is_copied_as_it_is(trained: Path, tmp_path: Path) -> None:
    facts = tokenizer_facts(trained)
    work = attempt(tmp_path, CONFIG | {"digest": facts.digest}, pinned(trained))
    assert train_tokenizer.run(work) == {"vocab_size": facts.vocab_size, "eot": 0, "digest": facts.digest}
    assert (work.outputs / "tokenizer" / "merges.txt").read_bytes() == (trained / "merges.txt").read_bytes()


def test_a_pinned_tokenizer_with_another_digest_is_refused(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"tokenizer.json has SHA-256 .* tokenizer.digest says 0000"):
        train_tokenizer.run(attempt(tmp_path, CONFIG | {"digest": "0" * 64}, pinned(trained)))
    with pytest.raises(SourceError, match=r"there is no tokenizer\.json in it"):
        train_tokenizer.run(attempt(tmp_path, CONFIG | {"digest": "0" * 64}, pinned(tmp_path)))


def test_sources_without_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="hold no text"):
        train(tmp_path / "blank", " \n")


def test_a_tokenizer_learns_from_both_columns_of_one_file_in_either_order(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"title": "one two", "body": "three four"}\n' * 9)
    columns = [
        described(Source(path=str(path), text_column=name), tmp_path, durable.sha256, True)
        for name in ("title", "body")
    ]
    found = [
        train_tokenizer._stretches(attempt(tmp_path, CONFIG, {"text": one + two}))
        for one, two in (columns, columns[::-1])
    ]
    assert found[0] == found[1] and {stretch.file.text_column for stretch in found[0]} == {"title", "body"}
