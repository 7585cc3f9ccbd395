"""Sentences: where a reader would end them, and the same places in the tokens of any tokenizer."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model import durable
from model.token_shards import TokenShards
from pipelines.encoding import Encoder
from pipelines.sentence_marks import mark
from pipelines.sentences import starts
from pipelines.stages import shard, tokenize
from pipelines.tokenizer_files import special_ids, tokenizer_facts
from tests.model import text
from tests.pipelines.data_attempts import SHARD, attempt, corpus
from tests.pipelines.test_tokenize import arrow
from tests.pipelines.test_tokenizer import train

TEXTS = [
    ["Hello there.", " How are you?", ' "Fine!"', " I came e.g. by train. it was late."],
    ["Mr. Smith met J. K. Rowling.", " They spoke for 3.5 hours.", " Wait...", " What?"],
    ["A title", "\n\nA line that\nwas wrapped.", " Another one…", " The end"],
    ["他来了。", "她走了！", "“真的吗？”", "是的。", "\n\n第二段"],
    ["one without an end"],
    ["...."],
]


@pytest.mark.parametrize("parts", TEXTS)
def test_sentences_are_those_of_a_reader(parts: list[str]) -> None:
    text = "".join(parts).encode()
    found = [*starts(text), len(text)]
    assert [text[a:b].decode() for a, b in itertools.pairwise(found)] == parts


def wordpiece(folder: Path) -> Path:
    """A WordPiece tokenizer in the manner of BERT's: lower case, no bytes."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    folder.mkdir()
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=150, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(["".join(parts) for parts in TEXTS] * 4, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module", params=["gpt2", "bert", "wordpiece"])
def folder(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp(request.param)
    text = "\n".join("".join(parts) for parts in TEXTS) * 20
    return wordpiece(root / "w") if request.param == "wordpiece" else train(root, text, special_tokens=request.param)[0]


def clean(text: str) -> str:
    """Without what a token that reaches over the boundary may hold of the next sentence: a part of its opening quote."""
    return text.strip("\ufffd\u201c ")


def test_a_sentence_begins_with_the_first_token_that_begins_in_it(folder: Path) -> None:
    from tokenizers import Tokenizer

    facts, texts = tokenizer_facts(folder), ["".join(parts) for parts in TEXTS]
    encoded = Encoder(folder, facts).encode(arrow(texts, 2))
    assert encoded.tokens[encoded.offsets[1:] - 1].tolist() == [facts.eot] * len(texts)
    marks = mark(arrow(texts, 3), encoded.tokens, encoded.offsets, folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for parts, start, end in zip(TEXTS, encoded.offsets, encoded.offsets[1:], strict=False):
        cuts = [*marks[(marks >= start) & (marks < end)].tolist(), int(end) - 1]
        said = [tokenizer.decode(encoded.tokens[a:b].tolist()).strip() for a, b in itertools.pairwise(cuts)]
        alone = [tokenizer.decode(tokenizer.encode(part, add_special_tokens=False).ids).strip() for part in parts]
        assert [clean(part) for part in said] == [clean(part) for part in alone]


@pytest.mark.parametrize(
    "added", [{"content": "    "}, {"content": "漢字"}, {"content": "Another", "lstrip": True}, {"content": "漢字", "rstrip": True}]
)  # fmt: skip
def test_sentences_begin_at_their_tokens_beside_added_tokens_that_are_not_special(
    tmp_path: Path, added: dict[str, Any]
) -> None:
    """As a fine-tuned tokenizer has them: written as text in tokenizer.json, not byte by byte as the others are."""
    from tokenizers import AddedToken, Tokenizer

    texts = ["A 漢字 here. Another one  is there. And a    third one.", "Only one 漢字 .\n\nAnother one."]
    folder = text.tokenizer(tmp_path / "t", " ".join(texts) * 9, special_tokens="bert")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens([AddedToken(**added)])
    tokenizer.save(str(folder / "tokenizer.json"))
    facts = tokenizer_facts(folder)
    encoded = Encoder(folder, facts).encode(arrow(texts))
    assert facts.vocab_size - 1 in encoded.tokens
    marks = mark(arrow(texts), encoded.tokens, encoded.offsets, folder)
    said = ["".join(tokenizer.decode(part.tolist()).split()) for part in np.split(encoded.tokens, marks[1:])]
    assert said == ["A漢字here.", "Anotheroneisthere.", "Andathirdone.", "Onlyone漢字.", "Anotherone."]


def test_a_pinned_wordpiece_tokenizer_encodes_through_tokenizers_and_closes_documents_with_sep(tmp_path: Path) -> None:
    folder = wordpiece(tmp_path / "w")
    facts = tokenizer_facts(folder)
    encoded = Encoder(folder, facts).encode(arrow(["the title", "hello [SEP] [MASK]"]))
    assert encoded.engine.startswith("tokenizers: ") and facts.eot == 3
    assert special_ids(folder) == {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3, "mask_token_id": 4}
    assert (encoded.tokens == facts.eot).sum() == 2 and 4 not in encoded.tokens, "what spells one in a text is text"


def shards(root: Path, folder: Path, **config: Any) -> tuple[Path, dict[str, Any]]:
    sources = []
    for label, word in (("prose", "said"), ("verse", "sang")):
        path = root / f"{label}.jsonl"
        texts = [f"Number {n * 7919 % 1000} {word} so. And {n} more! Then it was {n}." for n in range(150)]
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        sources += corpus(path)["corpus"]
        sources[-1]["label"] = label
    text = attempt(root, SHARD, {"corpus": sources})
    shard.run(text)
    inputs = {"train": text.outputs, "heldout": text.outputs, "tokenizer": folder.parent}
    work = attempt(root, config, inputs=inputs)
    return work.outputs, tokenize.run(work)


def test_options_of_an_objective_make_other_units_and_leave_the_plain_ones_alone(tmp_path: Path) -> None:
    folder = train(tmp_path / "t")[0]
    plain, metrics = shards(tmp_path, folder)
    with_sentences, again = shards(tmp_path, folder, sentences=True)
    assert again["shards_reused"] == 0 and again["train_sentences"] == 3 * again["train_documents"]
    assert shards(tmp_path, folder)[1]["shards_reused"] == metrics["shards"]
    one, two = (TokenShards.from_manifest(out / "train.json", tmp_path) for out in (plain, with_sentences))
    assert np.array_equal(one.read(0, len(one)), two.read(0, len(two)))
    assert one.shard(0).sentences is None and two.shard(0).sentences is not None
    entry = durable.read_json(plain / "train.json")["units"][0]
    assert sorted(entry) == ["bytes", "documents", "path", "sha256", "size", "tokens"]


def test_corpora_are_kept_apart_in_the_training_shards_and_not_in_the_held_out(tmp_path: Path) -> None:
    folder = train(tmp_path / "t")[0]
    plain, metrics = shards(tmp_path, folder)
    apart, split = shards(tmp_path, folder, corpora=True, sentences=True)
    counted = ("train_documents", "train_tokens", "heldout_documents", "heldout_tokens", "bytes_per_token")
    assert {name: split[name] for name in counted} == {name: metrics[name] for name in counted}
    ids = {id for id, _ in TokenShards.from_manifest(plain / "train.json", tmp_path).documents()}
    found = {
        name: {id for id, _ in TokenShards.from_manifest(apart / "train.json", tmp_path, name).documents()}
        for name in ("prose", "verse")
    }
    assert found["prose"] | found["verse"] == ids and not found["prose"] & found["verse"] and all(found.values())
    held = [unit.get("corpus") for unit in durable.read_json(apart / "heldout.json")["units"]]
    assert held == [None] * len(held)
    with pytest.raises(ValueError, match="no shard of the corpus 'news'; it lists those of prose, verse"):
        TokenShards.from_manifest(apart / "train.json", tmp_path, "news")


def test_transformers_puts_cls_and_sep_around_texts_and_documents_stay_plain(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = train(tmp_path / "t", special_tokens="bert")[0]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pair = tokenizer("The quick fox", "jumps over")
    tokens = tokenizer.convert_ids_to_tokens(pair["input_ids"])
    assert tokens[0] == "[CLS]" and tokens[-1] == "[SEP]" and tokens.count("[SEP]") == 2
    first = tokens.index("[SEP]") + 1
    assert pair["token_type_ids"] == [0] * first + [1] * (len(tokens) - first)
    assert tokenizer.tokenize("The quick [MASK] jumps")[2].strip() == "[MASK]"
    assert tokenizer.eos_token_id == tokenizer.sep_token_id == tokenizer_facts(folder).eot
    encoded = Encoder(folder, tokenizer_facts(folder)).encode(arrow(["The quick [CLS] fox"]))
    assert encoded.engine == "gigatoken" and not set(encoded.tokens[:-1].tolist()) & {0, 1, 2, 3}
