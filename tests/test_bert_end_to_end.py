"""A bidirectional model from raw text to a registered version that plain `transformers` and `mlflow` use."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from model import durable

USE = """
import json, sys, warnings
import mlflow
from transformers import AutoModelForPreTraining, AutoTokenizer, pipeline
folder = sys.argv[1]
tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForPreTraining.from_pretrained(folder)
pair = tokenizer("Before we proceed any further.", "Hear me speak.", return_tensors="pt")
said = model(**pair)
filled = pipeline("fill-mask", folder)("Speak, [MASK].", top_k=3)
text = mlflow.pyfunc.load_model(folder).predict(["Speak, [MASK]."])[0]
print(json.dumps({
    "kind": type(model).__name__, "segments": sorted(set(pair["token_type_ids"][0].tolist())),
    "follows": list(said.seq_relationship_logits.shape), "best": filled[0]["sequence"], "text": text,
}))
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bert")
    command = [sys.executable, "-m", "pipelines", "run", "--recipe", "bert_tiny", "--work", str(root / "work")]
    command += ["--set", f"execution.registry={root / 'registry'}", "--set", "pretrain.max_steps=12"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "hidden tokens found" in done.stdout and "pairs right" in done.stdout
    return root / "work"


def output(work: Path, step: str, name: str) -> Path:
    (found,) = work.glob(f"steps/{step}-*/outputs/{name}")
    return found


def test_a_small_bert_runs_from_text_to_a_pulled_model_that_others_can_use(work: Path) -> None:
    measured = durable.read_json(output(work, "evaluate-base", "metrics.json"))
    assert measured["pairs"] > 100 and measured["masked_tokens"] > 1000
    assert measured["next_sentence_accuracy_low"] < measured["next_sentence_accuracy"]
    assert {"unigram_masked_accuracy", "chance_next_sentence_accuracy", "overlap_next_sentence_accuracy"} <= set(
        measured
    )
    folder = output(work, "pull-base", "model")
    used = subprocess.run(
        [sys.executable, "-c", USE, str(folder)], capture_output=True, text=True, timeout=200, cwd="/"
    )
    assert used.returncode == 0, used.stderr[-3000:]
    said = json.loads(used.stdout.splitlines()[-1])
    assert (said["kind"], said["segments"], said["follows"]) == ("BertForPreTraining", [0, 1], [1, 2])
    assert said["best"] == said["text"], "mlflow fills in what transformers finds most probable"
