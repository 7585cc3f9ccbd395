"""One's own questions in SQuAD's form with only a recipe: killed in the middle, gone on to the same bytes, used without us."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from model import durable
from tests.pipelines.killing import kill_while_it_learns
from tests.pipelines.test_span import squad, word_tokenizer

ROOT = Path(__file__).parents[2]
RECIPE = """
from pipelines.config import FinetuneConfig, Recipe, RegisterConfig, Source, TaskConfig
from pipelines.pretrained import Pretrained


def reader():
    return Recipe(
        name="reader",
        pretrained=Pretrained(path="{folder}/theirs"),
        task=TaskConfig(name="spans", source=Source(path="{folder}/mine.json"), benchmark_source=Source(path="{folder}/held.json")),
        finetune=FinetuneConfig(
            max_steps=60, global_batch_size=16, sequence_length=32, learning_rate=3e-3, warmup_steps=5,
            long_texts="windows", window_stride=8,
        ),
        register_as=RegisterConfig(task="reader"),
    )
"""
ASKED = {
    "question": "Who built the mill?",
    "context": "Beside the road it was quiet all day. The mill was built by Otto Lake in 1801.",
}
# As downstream: our packages cannot be imported.
AWAY = 'import sys\nsys.modules |= dict.fromkeys(("pipelines", "model", "cluster"))\n'
SERVED = """
import json, mlflow
said = mlflow.pyfunc.load_model(sys.argv[1]).predict([sys.argv[2]])
print(json.dumps([said["answer"][0], int(said["start"][0]), float(said["score"][0])]))
"""


def write(folder: Path) -> None:
    """The questions, somebody else's BERT, and the recipe."""
    import torch
    import transformers

    squad(folder / "mine.json", 60)
    squad(folder / "held.json", 6, seed=9)
    word_tokenizer(folder / "theirs")
    torch.manual_seed(0)
    size = len(durable.read_json(folder / "theirs" / "tokenizer.json")["model"]["vocab"])
    config = transformers.BertConfig(
        vocab_size=size, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96,
        max_position_embeddings=64,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(folder / "theirs")
    (folder / "recipe.py").write_text(RECIPE.format(folder=folder))


def command(folder: Path, name: str) -> list[str]:
    settings = f"execution.registry={folder / name}-registry execution.checkpoint_every=10 execution.ranks=2"
    recipe = f"{folder / 'recipe.py'}:reader"
    return [sys.executable, "-m", "pipelines", "run", "-r", recipe, "-w", str(folder / name), "-s", settings]


def used(code: str, *arguments: str) -> str:
    """The last line of what some code says where our packages are not."""
    said = subprocess.run(
        [sys.executable, "-c", AWAY + code, *arguments], cwd="/", capture_output=True, text=True, check=True
    )
    return said.stdout.splitlines()[-1]


@pytest.mark.thorough
def test_a_run_that_was_killed_while_it_learned_ends_with_the_same_bytes_and_its_model_is_used_without_us(
    tmp_path: Path,
) -> None:
    write(tmp_path)
    kill_while_it_learns(command(tmp_path, "killed"), tmp_path / "killed", 400)
    for name in ("killed", "whole"):
        done = subprocess.run(command(tmp_path, name), cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "never trained on" in done.stdout
    models = [next(tmp_path.glob(f"{name}/steps/pull-task-*/outputs/model")) for name in ("killed", "whole")]
    (record,) = (json.loads(path.read_text()) for path in tmp_path.glob("killed/steps/finetune-*/record.json"))
    assert record["metrics"]["resumed_from"] and record["metrics"]["windows"] > record["metrics"]["examples"]
    files = [{path.name: durable.sha256(path) for path in model.iterdir() if path.is_file()} for model in models]
    assert files[0] == files[1]
    (answers,) = tmp_path.glob("killed/steps/evaluate-task-*/outputs/predictions.jsonl")
    assert durable.sha256(answers) == durable.sha256(
        next(tmp_path.glob("whole/steps/evaluate-task-*/outputs/predictions.jsonl"))
    )

    (code,) = re.findall(r"```python\n(import torch.*?)```", (models[0] / "README.md").read_text(), re.DOTALL)
    code = re.sub(r"question, context = .*", f"question, context = {ASKED['question']!r}, {ASKED['context']!r}", code)
    told = used(code.replace("DIR", "sys.argv[1]"), str(models[0]))
    answer, start, score = json.loads(used(SERVED, str(models[0]), json.dumps(ASKED)))
    assert told == answer == ASKED["context"][start : start + len(answer)] and 0 < score <= 1
