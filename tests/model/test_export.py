"""An export loads in transformers as downstream loads it, reproduces its probe, and is the same bytes each time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from model import durable, export, heads
from model.config import ModelConfig
from tests.model import tiny

CLASSIFIER: dict[str, Any] = {"num_labels": 2, "labels": ("rotten", "fresh")}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tokenizer")


def write(folder: Path, tokenizer: Path, **changes: Any) -> tuple[ModelConfig, heads.Model, Path, Path]:
    """A model with its export and its probe below `folder`."""
    config = tiny.config(eot_token_id=0, initializer_range=0.2, **changes)
    model = heads.build(config, seed=3)
    export.write_export(folder / "export", config, model.state_dict(), tokenizer)
    tokens, mask = export.probe_inputs(config)
    export.write_probe(folder / "probe.safetensors", tokens, mask, export.last_logits(model, tokens, mask))
    return config, model, folder / "export", folder / "probe.safetensors"


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": False}, CLASSIFIER])
def test_export_reproduces_the_probe(tmp_path: Path, tokenizer: Path, changes: dict[str, Any]) -> None:
    _, _, folder, probe = write(tmp_path, tokenizer, **changes)
    assert export.check_export(folder, probe) < 1e-5


@pytest.mark.parametrize(
    "name",
    ["transformer.wpe.weight", "transformer.h.2.attn.c_proj.weight", "transformer.ln_f.bias", "transformer.wte.weight"],
)
def test_one_wrong_weight_fails_the_probe(tmp_path: Path, tokenizer: Path, name: str) -> None:
    config, model, _, probe = write(tmp_path, tokenizer)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    state[name].view(-1)[-1] += 0.05  # one number: of the last position, token or feature
    export.write_export(tmp_path / "wrong", config, state, tokenizer)
    with pytest.raises(export.ExportMismatch, match="logits differ from the probe by"):
        export.check_export(tmp_path / "wrong", probe)


def test_weight_that_is_not_a_number_fails_the_probe(tmp_path: Path, tokenizer: Path) -> None:
    config, model, _, probe = write(tmp_path, tokenizer)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    state["transformer.h.0.ln_1.weight"][0] = float("nan")
    export.write_export(tmp_path / "wrong", config, state, tokenizer)
    with pytest.raises(export.ExportMismatch, match="by inf"):
        export.check_export(tmp_path / "wrong", probe)


def test_missing_weight_is_no_silent_random_one(tmp_path: Path, tokenizer: Path) -> None:
    config, model, _, probe = write(tmp_path, tokenizer)
    state = {key: value for key, value in model.state_dict().items() if key != "transformer.h.1.ln_2.bias"}
    export.write_export(tmp_path / "partial", config, state, tokenizer)
    with pytest.raises(export.ExportMismatch, match=r"ln_2\.bias"):
        export.check_export(tmp_path / "partial", probe)


def test_tokenizer_of_another_model_is_refused(tmp_path: Path, tokenizer: Path) -> None:
    config = tiny.config(eot_token_id=1)
    model = heads.build(config)
    export.write_export(tmp_path / "export", config, model.state_dict(), tokenizer)
    tokens, mask = export.probe_inputs(config)
    export.write_probe(tmp_path / "probe.safetensors", tokens, mask, export.last_logits(model, tokens, mask))
    with pytest.raises(export.ExportMismatch, match="with EOT 0, the model 301 with EOT 1"):
        export.check_export(tmp_path / "export", tmp_path / "probe.safetensors")


def test_equal_weights_give_equal_bytes(tmp_path: Path, tokenizer: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    write(tmp_path / "a", tokenizer)
    write(tmp_path / "b", tokenizer)
    first, second = ({p.name: durable.sha256(p) for p in (tmp_path / x).rglob("*") if p.is_file()} for x in "ab")
    assert first == second
    assert {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "probe.safetensors",
    } <= first.keys()


def test_failed_export_leaves_nothing(tmp_path: Path) -> None:
    config = tiny.config()
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json"):
        export.write_export(tmp_path / "export", config, heads.build(config).state_dict(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_base_export_runs_the_usual_gpt2_script(tmp_path: Path, tokenizer: Path) -> None:
    from transformers import GPT2LMHeadModel, GPT2Tokenizer

    _, _, folder, _ = write(tmp_path, tokenizer)
    model, tokenizer_ = GPT2LMHeadModel.from_pretrained(folder), GPT2Tokenizer.from_pretrained(folder)
    inputs = tokenizer_.encode("the quick brown", return_tensors="pt")
    outputs = model.generate(inputs, max_length=30, num_return_sequences=1)
    text = tokenizer_.decode(outputs[0], skip_special_tokens=True)
    assert text.startswith("the quick brown")
    assert model.dtype == torch.float32
    assert tokenizer_.model_max_length == 37


def test_classifier_export_is_a_text_classification_pipeline(tmp_path: Path, tokenizer: Path) -> None:
    from transformers import pipeline

    _, model, folder, _ = write(tmp_path, tokenizer, **CLASSIFIER)
    classify = pipeline("text-classification", str(folder), device="cpu", top_k=None)
    found = classify(["the lazy dog", "it was the best of times and of one film"], batch_size=2, truncation=True)
    assert {score["label"] for score in found[0]} == {"rotten", "fresh"}
    tokens = torch.tensor([classify.tokenizer("the lazy dog")["input_ids"]])
    expected = dict(zip(("rotten", "fresh"), model(tokens).softmax(-1)[0].tolist(), strict=True))
    assert {score["label"]: score["score"] for score in found[0]} == pytest.approx(expected, abs=1e-5)
