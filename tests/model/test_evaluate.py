"""Evaluation and generation with exports, through transformers: right totals, input order, repeatable."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model import durable, evaluate, export, heads, objectives
from model.examples import text_windows
from model.generate import generate
from model.pretraining import Order, Pretraining
from model.token_shards import ShardMetadata, TokenShards, flatten, write_token_shard
from model.train_config import ObjectiveConfig
from tests.model import tiny

DOCUMENTS = ["the quick brown fox", "a tale of two cities and of one film", "é", "the best of times " * 12, "dogs"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tokenizer")


def write_model(folder: Path, tokenizer: Path, **changes: Any) -> heads.Model:
    """A random model exported to `folder`, or left there as our own weights if no family computes it."""
    config = tiny.config(**({"eot_token_id": 0, "initializer_range": 0.2} | changes))
    model = heads.build(config, seed=3)
    (export.write_export if config.exportable else export.write_own)(folder, config, model.state_dict(), tokenizer)
    return model


def write_shards(root: Path, tokenizer: Path) -> Path:
    """DOCUMENTS as two token shards below `root`, and the path of their manifest."""
    rows = [[*row, 0] for row in evaluate.encode(evaluate.load_tokenizer(tokenizer), DOCUMENTS)]
    return write_stream(root, rows, [len(text.encode()) for text in DOCUMENTS], 2)


def write_stream(root: Path, rows: list[list[int]], sizes: list[int], first: int) -> Path:
    """Documents as tokens, of `sizes` bytes, as two shards below `root`, `first` of them in the one; their manifest."""
    units = []
    for name, part in (("a", slice(0, first)), ("b", slice(first, None))):
        tokens, offsets = flatten(rows[part], np.dtype(np.uint16))
        ids = [f"{index:032x}" for index in range(len(rows[part]))]
        path = root / f"{name}.arrow"
        write_token_shard(path, tokens, offsets, ids, ShardMetadata("digest", 300, 0, name))
        units.append({"path": path.name, "sha256": durable.sha256(path), "size": path.stat().st_size,
                      "documents": len(ids), "tokens": len(tokens), "bytes": sum(sizes[part])})  # fmt: skip
    content = {"schema": 1, "kind": "token_shards", "tokenizer": "digest", "vocab_size": 300, "eot": 0, "units": units}
    durable.write_json(root / "heldout.json", content)
    return root / "heldout.json"


def job(folder: Path, **values: Any) -> dict[str, Any]:
    return {"export": str(folder / "export"), "threads": 1, "device": "cpu"} | values


def test_every_token_is_a_target_once_with_its_predecessor_as_input(tmp_path: Path, tokenizer: Path) -> None:
    shards = TokenShards.from_manifest(write_shards(tmp_path, tokenizer), tmp_path)
    stream = shards.read(0, len(shards)).tolist()
    for length in (1, 7, len(stream), len(stream) + 5):
        pairs = list(evaluate.windows(shards, length))
        assert torch.cat([targets for _, targets in pairs]).tolist() == stream
        assert torch.cat([inputs for inputs, _ in pairs]).tolist() == [0, *stream[:-1]]


def test_bits_per_byte_are_the_models_own(tmp_path: Path, tokenizer: Path) -> None:
    model = write_model(tmp_path / "export", tokenizer)
    manifest = write_shards(tmp_path, tokenizer)
    found = evaluate.evaluate_language_model(job(tmp_path, manifest=str(manifest), root=str(tmp_path), batch_size=2))
    shards = TokenShards.from_manifest(manifest, tmp_path)
    nats = 0.0
    for inputs, targets in evaluate.windows(shards, 37):
        nats -= model(inputs[None])[0].double().log_softmax(-1).gather(1, targets[:, None]).sum().item()
    size = sum(len(text.encode()) for text in DOCUMENTS)
    assert found["bytes"] == size
    assert found["tokens"] == len(shards) > 2 * 37
    assert found["documents"] == 5
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / size, rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(nats / len(shards)), rel=1e-5)


def test_language_model_evaluation_repeats_exactly_and_hardly_depends_on_the_batch(
    tmp_path: Path, tokenizer: Path
) -> None:
    write_model(tmp_path / "export", tokenizer)
    manifest = str(write_shards(tmp_path, tokenizer))
    runs = [
        evaluate.evaluate_language_model(job(tmp_path, manifest=manifest, root=str(tmp_path), batch_size=size))["nats"]
        for size in (3, 3, 1)
    ]
    assert runs[0] == runs[1] == pytest.approx(runs[2], rel=1e-6)


@pytest.mark.parametrize("attention", ["across_documents", "within_documents"])
@pytest.mark.parametrize(
    "family",
    [{}, {"family": "llama", "n_embd": 40, "n_head": 4, "n_kv_head": 2, "n_inner": 71}, {"feed_forward": "relu_relu"}],
    ids=["gpt2", "llama", "own weights"],
)
def test_the_nats_of_an_evaluation_are_those_that_training_would_lose_on_the_same_sequences(
    tmp_path: Path, tokenizer: Path, family: dict[str, Any], attention: Any
) -> None:
    model = write_model(tmp_path / "export", tokenizer, **family).eval()
    lengths = (20, 3, 50, 1, 80, 31)  # of 5 windows of 37 tokens
    generator = np.random.default_rng(0)
    rows = [[*generator.integers(1, 300, length - 1).tolist(), 0] for length in lengths]
    manifest = write_stream(tmp_path, rows, [1] * 6, 2)
    data = job(tmp_path, manifest=str(manifest), root=str(tmp_path), batch_size=2, attention=attention)
    found = evaluate.evaluate_language_model(data)
    # Training reads a window's first input with its sequence: an EOT stands before the stream, as an evaluation has it.
    (tmp_path / "trained").mkdir()
    trained = TokenShards.from_manifest(
        write_stream(tmp_path / "trained", [[0], *rows], [1] * 7, 3), tmp_path / "trained"
    )
    options = ObjectiveConfig(attention=attention)
    batch = Pretraining({"": trained}, "causal_lm", options, Order(0, 5, 37))(0).rows
    with torch.no_grad():
        nats, count = objectives.loss(model, "causal_lm", batch)
    assert found["tokens"] == count == sum(lengths)
    assert found["nats"] == pytest.approx(float(nats), rel=1e-5)
    evaluate.document_bits(data | {"output": str(tmp_path / "bits.json")})
    bits = durable.read_json(tmp_path / "bits.json")
    assert len(bits) == 6 and sum(bits) == pytest.approx(found["nats"] / math.log(2), rel=1e-6)


def test_shards_of_another_vocabulary_are_refused(tmp_path: Path, tokenizer: Path) -> None:
    write_model(tmp_path / "export", tokenizer, vocab_size=290)
    manifest = str(write_shards(tmp_path, tokenizer))
    with pytest.raises(ValueError, match=r"vocabulary of 300 with EOT 0, .* has 290"):
        evaluate.evaluate_language_model(job(tmp_path, manifest=manifest, root=str(tmp_path)))


def write_text_examples(folder: Path, texts: list[str]) -> Path:
    lines = [
        json.dumps({"id": str(index), "text": text, "label": index % 2, "group": "film"})
        for index, text in enumerate(texts)
    ]
    durable.write_bytes(folder / "test.jsonl", "\n".join(lines).encode())
    return folder / "test.jsonl"


def classify(folder: Path, texts: list[str], **values: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Run the job on `texts` and read back what it wrote."""
    path, output = write_text_examples(folder, texts), folder / "predictions.jsonl"
    result = evaluate.classify(job(folder, examples=str(path), output=str(output), max_length=37, **values))
    return result, [json.loads(line) for line in output.read_text().splitlines()]


def test_predictions_come_in_input_order_and_are_those_of_the_model(tmp_path: Path, tokenizer: Path) -> None:
    model = write_model(tmp_path / "export", tokenizer, num_labels=2)
    texts = ["the lazy dog", "of", "it was the best of times", "a", "jumps over the lazy dog and one film"]
    result, rows = classify(tmp_path, texts, batch_size=2)
    assert [row["id"] for row in rows] == ["0", "1", "2", "3", "4"]
    tokenizer_ = evaluate.load_tokenizer(tmp_path / "export")
    for text, row in zip(texts, rows, strict=True):
        tokens = torch.tensor(evaluate.encode(tokenizer_, [text]))
        assert row["scores"] == pytest.approx(model(tokens).softmax(-1)[0].tolist(), abs=1e-5)
        assert row["predicted"] == int(row["scores"][1] > row["scores"][0])
    assert result == {"examples": 5, "truncated": 0, "correct": sum(row["label"] == row["predicted"] for row in rows)}


def test_long_text_is_cut_and_counted_and_empty_text_is_an_eot(tmp_path: Path, tokenizer: Path) -> None:
    model = write_model(tmp_path / "export", tokenizer, num_labels=2)
    text = "two cities " * 40
    tokenizer_ = evaluate.load_tokenizer(tmp_path / "export")
    whole = next(long for end in range(len(text)) if len(evaluate.encode(tokenizer_, [long := text[:end]])[0]) == 37)
    result, rows = classify(tmp_path, [text, "", whole])
    assert result["truncated"] == 1, "a text of just so many tokens is whole"
    cut = evaluate.encode(tokenizer_, [text])[0][:37]
    assert rows[0]["scores"] == pytest.approx(model(torch.tensor([cut])).softmax(-1)[0].tolist(), abs=1e-5)
    assert rows[1]["scores"] == pytest.approx(model(torch.tensor([[0]])).softmax(-1)[0].tolist(), abs=1e-5)


def test_windows_cover_a_long_text_and_their_probabilities_are_averaged(tmp_path: Path, tokenizer: Path) -> None:
    model = write_model(tmp_path / "export", tokenizer, num_labels=2)
    text = "two cities and one film " * 20
    result, rows = classify(tmp_path, [text, "short"], stride=20)
    assert result == {"examples": 2, "truncated": 0, "windowed": 1, "correct": result["correct"]}
    tokens = evaluate.encode(evaluate.load_tokenizer(tmp_path / "export"), [text])[0]
    parts = text_windows(tokens, 37, 20)
    assert len(parts) > 2 and all(len(part) == 37 for part in parts) and parts[-1] == tokens[-37:]
    assert all(parts[i + 1][: 37 - 20] == parts[i][20:] for i in range(len(parts) - 2))
    each = torch.stack([model(torch.tensor([part])).softmax(-1)[0] for part in parts])
    assert rows[0]["scores"] == pytest.approx(each.mean(0).tolist(), abs=1e-5)
    assert classify(tmp_path, ["short"])[1][0]["scores"] == pytest.approx(rows[1]["scores"], abs=1e-6)


def test_each_window_of_a_bert_classifier_stands_between_its_cls_and_sep(tmp_path: Path) -> None:
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "two", "cities", "and", "a", "film"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 10,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
    }
    model = BertForSequenceClassification(BertConfig(**sizes, max_position_embeddings=40, initializer_range=0.5)).eval()
    model.config.n_positions = 40
    model.save_pretrained(tmp_path / "export")
    BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "export")
    _, rows = classify(tmp_path, ["two cities and a film " * 20, "a film", ""], stride=20)
    tokens = [*range(5, 10)] * 20
    windows = [[2, *one, 3] for one in text_windows(tokens, 35, 20)]
    with torch.no_grad():
        mean = torch.stack([model(torch.tensor([one])).logits.softmax(-1)[0] for one in windows]).mean(0)
        short, empty = (model(torch.tensor([one])).logits.softmax(-1)[0] for one in ([2, 8, 9, 3], [2, 3]))
    for row, expected in zip(rows, (mean, short, empty), strict=True):
        assert row["scores"] == pytest.approx(expected.tolist(), abs=1e-5)


def test_reserved_token_in_a_strangers_text_stays_text(tmp_path: Path, tokenizer: Path) -> None:
    write_model(tmp_path / "export", tokenizer, num_labels=2)
    tokenizer_ = evaluate.load_tokenizer(tmp_path / "export")
    ids = evaluate.encode(tokenizer_, ["good <|endoftext|> bad"])[0]
    assert tokenizer_.eos_token_id not in ids
    assert tokenizer_.decode(ids) == "good <|endoftext|> bad"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{oops", r"test\.jsonl:2 is not JSON"),
        ('{"id": "1"}', r"test\.jsonl:2 lacks text, label"),
        ("[]", r"test\.jsonl:2 lacks id"),
    ],
)
def test_broken_example_is_refused_by_its_line(tmp_path: Path, line: str, message: str) -> None:
    durable.write_bytes(tmp_path / "test.jsonl", ('{"id": "0", "text": "a", "label": 0}\n' + line).encode())
    with pytest.raises(ValueError, match=message):
        evaluate.read_examples(tmp_path / "test.jsonl")


def test_no_examples_give_no_predictions(tmp_path: Path, tokenizer: Path) -> None:
    write_model(tmp_path / "export", tokenizer, num_labels=2)
    assert classify(tmp_path, []) == ({"examples": 0, "truncated": 0, "correct": 0}, [])


def test_continuations_depend_on_the_seed_and_not_on_the_other_prompts(tmp_path: Path, tokenizer: Path) -> None:
    write_model(tmp_path / "export", tokenizer)
    settings = job(tmp_path, max_new_tokens=12, seed=8, temperature=0.9, top_k=40)
    first = generate(settings | {"prompts": ["the quick", "", "one film " * 50]})
    again = generate(settings | {"prompts": ["", "the quick"]})
    other = generate(settings | {"prompts": ["the quick"], "seed": 9})
    assert len(first) == 3
    assert all(first)
    assert [first[1], first[0]] == again
    assert other != first[:1]


def test_temperature_zero_takes_the_most_probable_token(tmp_path: Path, tokenizer: Path) -> None:
    model = write_model(tmp_path / "export", tokenizer)
    found = generate(job(tmp_path, prompts=["the quick"], max_new_tokens=3, seed=1, temperature=0, top_k=0))
    tokenizer_ = evaluate.load_tokenizer(tmp_path / "export")
    tokens = evaluate.encode(tokenizer_, ["the quick"])[0]
    start = len(tokens)
    for _ in range(3):
        tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    assert found == [tokenizer_.decode(tokens[start:], skip_special_tokens=True)]


def test_continuation_that_does_not_fit_is_refused(tmp_path: Path, tokenizer: Path) -> None:
    write_model(tmp_path / "export", tokenizer)
    with pytest.raises(ValueError, match="max_new_tokens=37 must be from 1 to 36"):
        generate(job(tmp_path, prompts=["a"], max_new_tokens=37, seed=1))
