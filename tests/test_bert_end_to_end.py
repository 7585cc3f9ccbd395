"""A bidirectional model from raw text to a registered version that plain `transformers` and `mlflow` use."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from model import durable, vocabulary
from model.export import load_export
from tests import alone

USE = """
import json, sys
import mlflow
from transformers import AutoModelForPreTraining, AutoTokenizer, pipeline
folder = DIR
tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForPreTraining.from_pretrained(folder)
pair = tokenizer("Before we proceed any further.", "Hear me speak.", return_tensors="pt")
said = model(**pair)
filled = pipeline("fill-mask", folder)("Speak, [MASK].", top_k=3)
text = mlflow.pyfunc.load_model(folder).predict(["Speak, [MASK]."])[0]
print(json.dumps({
    "kind": type(model).__name__, "segments": sorted(set(pair["token_type_ids"][0].tolist())),
    "follows": list(said.seq_relationship_logits.shape), "best": filled[0]["sequence"], "text": text,
    "tokens": [filled_in[0]["token"] for filled_in in pipeline("fill-mask", folder)(json.loads(sys.stdin.read()))],
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


@pytest.mark.thorough  # a whole run: a minute; its parts are in tests/model and tests/pipelines
def test_a_small_bert_runs_from_text_to_a_pulled_model_that_others_can_use(work: Path) -> None:
    measured = durable.read_json(output(work, "evaluate-base", "metrics.json"))
    assert measured["pairs"] > 100 and measured["masked_tokens"] > 1000
    assert measured["next_sentence_accuracy_low"] < measured["next_sentence_accuracy"]
    assert {"unigram_masked_accuracy", "chance_next_sentence_accuracy", "overlap_next_sentence_accuracy"} <= set(
        measured
    )
    folder = output(work, "pull-base", "model")
    texts = ["Speak, [MASK].", "the [MASK] of the people", "I know not what [MASK] say"]
    code = f"DIR = {str(folder)!r}\n" + alone.card_code(folder)[0] + USE
    said = json.loads(alone.run(code, Path("/"), json.dumps(texts)).splitlines()[-1])
    assert (said["kind"], said["segments"], said["follows"]) == ("BertForPreTraining", [0, 1], [1, 2])
    assert said["best"] == said["text"], "mlflow fills in what transformers finds most probable"
    assert said["tokens"] == [best_token(folder, text) for text in texts]


@torch.inference_mode()
def best_token(folder: Path, text: str) -> int:
    """What the export says for [MASK], as evaluation asks it: by our own vocabulary, through `load_export`."""
    words, model = vocabulary.load(folder), load_export(folder)
    encoder = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokens = torch.tensor([[words.cls, *encoder.encode(text, add_special_tokens=False).ids, words.sep]])  # (1, T)
    said = model(tokens, attention_mask=torch.ones_like(tokens), token_type_ids=torch.zeros_like(tokens))
    return int(said.prediction_logits[0, tokens[0] == words.mask].argmax())
