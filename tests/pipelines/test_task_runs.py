"""Each classification recipe on a tiny slice of its real data: killed in the middle, gone on, registered, used without us."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SMALL = (
    "task.max_examples=300 pretrain.max_steps=10 pretrain.warmup_steps=2 finetune.max_steps=24 finetune.warmup_steps=2 "
    "execution.checkpoint_every=4 execution.ranks=2"
)
# As downstream: our packages cannot be imported.
USE = """
import json, sys
sys.modules |= dict.fromkeys(("pipelines", "model", "cluster"))
from transformers import pipeline
print(json.dumps(pipeline("text-classification", sys.argv[1], truncation=True)(json.loads(sys.argv[2]))))
"""
TEXTS = {
    "sentiment_chinese": ["房间很干净，服务也好。", "质量太差了，很失望！"],
    "topics": ["the shuttle reached its orbit"],
    "sections": ["development files for a library of Perl"],
}


def command(recipe: str, folder: Path) -> list[str]:
    settings = f"{SMALL} execution.registry={folder / 'registry'}"
    return [sys.executable, "-m", "pipelines", "run", "-r", recipe, "-w", str(folder / "work"), "-s", settings]


@pytest.mark.thorough
@pytest.mark.parametrize("recipe", TEXTS)
def test_a_recipe_killed_while_it_learns_goes_on_and_its_model_works_in_plain_transformers(
    recipe: str, tmp_path: Path
) -> None:
    running = subprocess.Popen(command(recipe, tmp_path), cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 300
    while not list(tmp_path.glob("work/steps/finetune-*/checkpoints/*")) and running.poll() is None:
        assert time.monotonic() < deadline, "it never came to fine-tuning"
        time.sleep(0.05)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    done = subprocess.run(command(recipe, tmp_path), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (record,) = (json.loads(path.read_text()) for path in tmp_path.glob("work/steps/evaluate-task-*/record.json"))
    assert record["metrics"]["examples"] == 300 and {"accuracy", "majority_accuracy", "tfidf_accuracy"} <= set(
        record["metrics"]
    )
    (record,) = (json.loads(path.read_text()) for path in tmp_path.glob("work/steps/finetune-*/record.json"))
    assert 0 < record["metrics"]["padding"] < 0.1
    (model,) = tmp_path.glob("work/steps/pull-task-*/outputs/model")
    labels = json.loads((model / "config.json").read_text())["id2label"].values()
    use = [sys.executable, "-c", USE, str(model), json.dumps(TEXTS[recipe])]
    said = subprocess.run(use, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert all(answer["label"] in labels for answer in json.loads(said.stdout.splitlines()[-1]))
