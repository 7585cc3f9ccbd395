"""A registered classifier says the same of a text through its evaluation, `transformers.pipeline` and MLflow, in every family."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers

from model import durable, evaluate, export, heads
from model.config import ModelConfig
from model.importing import import_model
from pipelines.model_card import Card
from pipelines.package import build_package
from tests.model import tiny
from tests.model.test_importing import wordpiece

LABELS = ("rotten", "fresh", "neither")
TEXTS = [
    "the best of times",
    "dogs",
    "a tale of two cities and of one film: it was the best of times.",
    "good [SEP] or <|endoftext|> or </s> bad",
    "the lazy dog jumps over two cities " * 30,  # longer than the window
]


def bert(folder: Path) -> Any:
    wordpiece(folder)
    return transformers.BertModel(
        transformers.BertConfig(
            vocab_size=90, hidden_size=24, intermediate_size=50, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=40,
        )
    )  # fmt: skip


def gpt2(folder: Path) -> Any:
    """With a tokenizer as GPT-2's own: no token for padding."""
    tiny.write_tokenizer(folder)
    for name in ("tokenizer_config", "special_tokens_map"):
        fields = durable.read_json(folder / f"{name}.json")
        durable.write_json(folder / f"{name}.json", {key: fields[key] for key in fields if key != "pad_token"})
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=300, n_positions=40, n_embd=24, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0
        )
    )


def llama(folder: Path) -> Any:
    """With a tokenizer that puts a token of its own before each text."""
    from tokenizers import Tokenizer, processors

    tiny.write_tokenizer(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens(["<s>"])
    first = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A <s> $B", [("<s>", first)])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = durable.read_json(folder / "tokenizer_config.json") | {"bos_token": "<s>"}
    durable.write_json(folder / "tokenizer_config.json", settings | {"tokenizer_class": "PreTrainedTokenizerFast"})
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=320, hidden_size=24, intermediate_size=50, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=40, bos_token_id=first, eos_token_id=0,
        )
    )  # fmt: skip


def package(kind: Callable[[Path], Any], folder: Path, precision: str = "fp32") -> Path:
    """A classifier of random weights with the tokenizer of an imported model, as it is registered."""
    (folder / "imported").mkdir(parents=True)
    kind(folder / "theirs").save_pretrained(folder / "theirs")
    import_model({"folder": str(folder / "theirs"), "output": str(folder / "imported"), "threads": 1})
    shape = durable.read_json(folder / "imported" / "model.json")
    config = ModelConfig(**shape | {"num_labels": 3, "labels": LABELS, "initializer_range": 0.5})
    state = heads.build(config, seed=5).state_dict()
    export.write_export(folder / "export", config, state, folder / "imported" / "tokenizer", precision=precision)
    build_package(folder / "export", folder / "package", Card("model", "text-classification", "Classes."))
    return folder / "package"


def evaluated(folder: Path, texts: list[str], scratch: Path) -> list[tuple[str, float]]:
    """The class of each text and its probability, by the job of the evaluation."""
    lines = [json.dumps({"id": str(place), "text": text, "label": 0}) for place, text in enumerate(texts)]
    durable.write_bytes(scratch / "test.jsonl", "\n".join(lines).encode())
    asked = {"examples": str(scratch / "test.jsonl"), "output": str(scratch / "said.jsonl"), "threads": 1}
    assert evaluate.classify({"export": str(folder), **asked})["truncated"] == 1
    found = [json.loads(line) for line in (scratch / "said.jsonl").read_text().splitlines()]
    return [(LABELS[one["predicted"]], one["scores"][one["predicted"]]) for one in found]


def piped(folder: Path, texts: list[str], dtype: Any) -> tuple[list[tuple[str, float]], Any]:
    """What plain `transformers` says of each text in a precision, and the precision in which it does."""
    classify: Any = transformers.pipeline("text-classification", str(folder), dtype=dtype)
    said = [classify(text, truncation=True, split_special_tokens=True)[0] for text in texts]
    return [(one["label"], one["score"]) for one in said], classify.model.dtype


@pytest.mark.parametrize("kind", [bert, gpt2, llama])
def test_a_classifier_says_the_same_in_evaluation_in_plain_transformers_and_in_mlflow(
    kind: Callable[[Path], Any], tmp_path: Path
) -> None:
    import mlflow
    import torch

    folder = package(kind, tmp_path)
    texts = [*TEXTS, ""]
    expected = evaluated(folder, texts, tmp_path)
    assert len({round(score, 3) for _, score in expected}) >= 5, "the texts do not differ to this model"
    plain, _ = piped(folder, TEXTS, torch.float32)
    served = mlflow.pyfunc.load_model(str(folder)).predict(texts).values.tolist()
    for said, wanted in ((plain, expected[:-1]), (served, expected)):
        for (label, score), (theirs, sure) in zip(said, wanted, strict=True):
            assert label == theirs and score == pytest.approx(sure, abs=1e-5)


@pytest.mark.parametrize("kind", [bert, gpt2, llama])
def test_a_classifier_in_bf16_is_evaluated_in_fp32_and_served_in_the_precision_that_it_has(
    kind: Callable[[Path], Any], tmp_path: Path
) -> None:
    import mlflow
    import torch

    folder = package(kind, tmp_path, "bf16")
    expected = evaluated(folder, TEXTS, tmp_path)
    right, _ = piped(folder, TEXTS, torch.float32)
    assert [label for label, _ in right] == [label for label, _ in expected]
    assert [sure for _, sure in right] == pytest.approx([sure for _, sure in expected], abs=1e-5)
    rounded, precision = piped(folder, TEXTS, "auto")
    assert precision == torch.bfloat16
    # How far bf16 is from fp32 is the processor's and these large weights' affair; it is one model still.
    assert [sure for _, sure in rounded] == pytest.approx([sure for _, sure in expected], abs=0.1)
    served = mlflow.pyfunc.load_model(str(folder)).predict(TEXTS).values.tolist()
    assert [label for label, _ in served] == [label for label, _ in rounded]
    # MLflow asks in one batch, whose rows are filled up: other kernels, other last bits.
    assert [sure for _, sure in served] == pytest.approx([sure for _, sure in rounded], abs=0.02)
