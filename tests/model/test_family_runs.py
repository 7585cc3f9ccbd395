"""Llama, BERT and what no family computes, on two real ranks: whole, and killed in the middle and resumed.

One job learns within the documents of a mixture, which costs nothing more; what one rank and two make of these options is in
test_masked_training.py.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from model import durable, own_weights
from model.evaluate import evaluate_language_model
from model.export import load_export
from model.generate import generate
from tests.model.training_runs import MIDDLE, Jobs, finish, metrics, start
from tests.model.tuning_runs import LORA

BF16 = {"zero_stage": 2, "precision": "bf16"}
CLASSES = {"max_steps": 24, "learning_rate": 3e-3}  # of a classifier
UNTIED = {"tie_word_embeddings": False}
PACKED = {"attention": "within_documents", "mixture": {"c": 1.0, "a": 2.0, "b": 1.0}}
NAMES = ["llama", "bert", "relu_relu", "llama_bf16", "bert_bf16", "relu_relu_lora"]
LLAMA = {"family": "llama", "n_head": 3, "n_kv_head": 1, "rope_theta": 1000.0}
BERT = {"family": "bert", "num_labels": 2, "labels": ["no", "yes"], "head_pdrop": 0.1}


@dataclass(frozen=True)
class Runs:
    """Jobs by name, undisturbed and continued from the middle."""

    job: dict[str, dict[str, Any]]
    result: dict[str, dict[str, Any]]
    resumed: dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    jobs = Jobs(tmp_path_factory.mktemp("families"))
    shutil.copytree(jobs.tokenizer, jobs.folder / "with-sep")
    settings = durable.read_json(jobs.tokenizer / "tokenizer_config.json")
    durable.write_json(jobs.folder / "with-sep" / "tokenizer_config.json", settings | {"sep_token": "<|endoftext|>"})
    examples = {
        "objective": "classification",
        "data": {"examples": str(jobs.folder / "examples.arrow")},
        "tokenizer": str(jobs.folder / "with-sep"),
    }
    job = {
        "llama": jobs.job("llama", model=LLAMA, train={"zero_stage": 3}),
        "bert": jobs.job("bert", model=BERT, train={"zero_stage": 3} | CLASSES, **examples),
        "relu_relu": jobs.job("relu_relu", model={"feed_forward": "relu_relu"}, train={"zero_stage": 3}, release=False),
        "llama_bf16": jobs.job("llama_bf16", model=LLAMA | UNTIED, train=BF16, objective_options=PACKED),
        "bert_bf16": jobs.job("bert_bf16", model=BERT, train=BF16 | CLASSES, **examples),
    }
    # begun from the weights of the one before it
    base = str(Path(job["relu_relu"]["outputs"], "weights"))
    job["relu_relu_lora"] = jobs.job(
        "relu_relu_lora", model={"feed_forward": "relu_relu"}, release=False, init=base, tuning=LORA
    )
    results, _ = finish(start(list(job.values()), ranks=2))
    resumed = {name: jobs.continuation(f"resumed-{name}", done, MIDDLE) for name, done in job.items()}
    finish(start(list(resumed.values()), ranks=2))
    return Runs(job, dict(zip(job, results, strict=True)), resumed)


def _weights(job: dict[str, Any], name: str) -> str:
    folder = "weights" if name.startswith("relu_relu") else "export"
    return durable.sha256(Path(job["outputs"], folder, "model.safetensors"))


@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_run_ends_with_the_same_weights(runs: Runs, name: str) -> None:
    assert _weights(runs.resumed[name], name) == _weights(runs.job[name], name)
    assert metrics(runs.resumed[name]) == metrics(runs.job[name])


@pytest.mark.parametrize("name", NAMES[:5])
def test_it_learns_and_what_is_left_behind_computes_what_the_live_model_did(runs: Runs, name: str) -> None:
    lines = metrics(runs.job[name])
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert 0 <= runs.result[name]["export_difference"] <= 1e-4


def test_what_no_family_computes_is_measured_and_continues_texts_here(runs: Runs) -> None:
    folder = Path(runs.job["relu_relu"]["outputs"], "weights")
    assert not (folder.parent / "export").exists() and not (folder / "config.json").exists()
    config, _ = own_weights.read(folder)
    assert config.feed_forward == "relu_relu"
    data = runs.job["relu_relu"]["data"]
    found = evaluate_language_model({"export": str(folder), "threads": 1} | data)
    assert 0 < found["perplexity"] < config.vocab_size
    texts = generate({"export": str(folder), "prompts": ["a tale", ""], "max_new_tokens": 6, "seed": 1, "threads": 1})
    assert len(texts) == 2


def test_of_what_no_family_computes_no_adapter_is_left_but_the_merged_weights(runs: Runs) -> None:
    outputs = Path(runs.job["relu_relu_lora"]["outputs"])
    assert 0 <= runs.result["relu_relu_lora"]["export_difference"] <= 1e-4
    assert not (outputs / "adapter").exists()
    _, before = own_weights.read(Path(runs.job["relu_relu"]["outputs"], "weights"))
    _, after = own_weights.read(outputs / "weights")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(".c_" in name for name in changed)


def test_our_own_weights_are_called_as_an_export_is(runs: Runs) -> None:
    model = load_export(Path(runs.job["relu_relu"]["outputs"], "weights"))
    tokens = torch.tensor([[0, 0, 5, 9], [4, 5, 6, 7]])
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    logits = model(tokens[1:], attention_mask=mask[1:], use_cache=False).logits
    found = model.generate(tokens, attention_mask=mask, max_new_tokens=3, do_sample=False)
    assert int(found[1, 4]) == int(logits[0, -1].argmax())
    alone = model.generate(tokens[:1, 2:], attention_mask=mask[:1, 2:], max_new_tokens=3, do_sample=False)
    assert found[0, 2 : 2 + alone.shape[1]].tolist() == alone[0].tolist()
