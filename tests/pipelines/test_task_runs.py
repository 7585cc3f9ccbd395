"""The recipe of each task on a tiny slice of its real data: killed in the middle, gone on, registered, used without us."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from model import durable
from pipelines import recipes
from tests import alone
from tests.pipelines.killing import kill_while_it_learns

ROOT = Path(__file__).parents[2]
CHECKPOINT_EVERY = 4
SMALL = (
    "task.max_examples=300 finetune.max_steps=24 finetune.warmup_steps=2 execution.ranks=2 "
    f"execution.checkpoint_every={CHECKPOINT_EVERY}"
)
OWN = "pretrain.max_steps=10 pretrain.warmup_steps=2"  # of recipes that begin with a model of ours
CLOZE = 'task.options={"passage_words":70,"benchmark_questions":20,"benchmark_left_out":10}'
GREEDY = {"do_sample": False, "max_new_tokens": 12, "handle_long_generation": "hole"}


def turn(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


# recipe -> settings beside SMALL, what plain `transformers` calls it, and what it is given
SLICES: dict[str, tuple[str, str, list[Any]]] = {
    "sentiment_minilm": ("", "text-classification", ["a film that stays with you"]),
    "sentiment_chinese": (OWN, "text-classification", ["房间很干净，服务也好。", "质量太差了，很失望！"]),
    "topics": (OWN, "text-classification", ["the shuttle reached its orbit"]),
    "sections": (
        f'{OWN} task.options={{"minimum":1000}}',
        "text-classification",
        ["development files for a library of Perl"],
    ),
    "translation": (OWN, "text-generation", [turn("development files")]),
    "translation_french": (OWN, "text-generation", [turn("development files")]),
    "questions": (OWN, "text-generation", [turn("What is the capital of France?")]),
    "dialogue": (OWN, "text-generation", [turn("How are you?")]),
    "generation": (OWN, "text-generation", ["To be, or not to be"]),
    "finetune_smollm2": ("task.max_examples=32", "text-generation", [turn("What is the capital of France?")]),
    "cloze": (f"task.max_examples=60 {CLOZE}", "card", []),
}


def command(recipe: str, folder: Path, *more: str) -> list[str]:
    settings = f"{SMALL} {SLICES[recipe][0]} execution.registry={folder / 'registry'}"
    return [sys.executable, "-m", "pipelines", "run", "-r", recipe, "-w", str(folder / "work"), "-s", settings, *more]


def run(recipe: str, folder: Path, *more: str) -> None:
    done = subprocess.run(command(recipe, folder, *more), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_recipe_of_the_table_has_a_slice() -> None:
    assert set(SLICES) | {"default"} == set(recipes.TASKS), "default: tests/test_end_to_end.py, by the recipe tiny"


@pytest.mark.thorough
@pytest.mark.parametrize("recipe", SLICES)
def test_a_recipe_killed_while_it_learns_goes_on_and_its_model_works_in_plain_transformers(
    recipe: str, tmp_path: Path
) -> None:
    kill_while_it_learns(command(recipe, tmp_path), tmp_path / "work", 480)
    run(recipe, tmp_path)
    metrics = {step: measured(tmp_path / "work", step) for step in ("finetune", "evaluate-task")}
    assert metrics["finetune"].get("resumed_from", 0) >= CHECKPOINT_EVERY, "it began anew"
    # Of a slice's nine batches more is padding than of a whole recipe's, where it is below a tenth (docs/tasks.md).
    assert metrics["evaluate-task"]["examples"] > 0 and 0 <= metrics["finetune"]["padding"] < 0.25
    (model,) = tmp_path.glob("work/steps/pull-task-*/outputs/model")
    _, kind, given = SLICES[recipe]
    if kind == "card":
        assert alone.run(f"DIR = {str(model)!r}\n" + alone.card_code(model)[0], tmp_path).strip()
    elif kind == "text-classification":
        labels = json.loads((model / "config.json").read_text())["id2label"].values()
        (said,) = alone.ask([alone.Question(kind, str(model), given, options={"truncation": True})], tmp_path)
        assert all(answer[0]["label"] in labels for answer in said)
    else:
        ((answer,),) = alone.ask([alone.Question(kind, str(model), given, GREEDY)], tmp_path)
        said = answer[0]["generated_text"]
        assert said.startswith(given[0]) if isinstance(said, str) else said[-1]["role"] == "assistant"
        if recipe == "finetune_smollm2":  # what it knew before it learned from anything here: test_importing.py
            assert "Paris" in said[-1]["content"]
            return  # its 24 steps take minutes; that LoRA goes on to equal bytes: tests/model/test_tuning.py
    killed = learned(tmp_path / "work")
    shutil.rmtree(next(tmp_path.glob("work/steps/finetune-*")))
    run(recipe, tmp_path, "--until", "finetune")
    assert "resumed_from" not in measured(tmp_path / "work", "finetune")
    assert learned(tmp_path / "work") == killed, "other weights than those of a run that nobody killed"


def learned(work: Path) -> dict[str, str]:
    """The digest of each file that fine-tuning exported."""
    (export,) = work.glob("steps/finetune-*/outputs/export")
    return {path.name: durable.sha256(path) for path in export.iterdir() if path.is_file()}


def measured(work: Path, step: str) -> dict[str, Any]:
    (record,) = (json.loads(path.read_text()) for path in work.glob(f"steps/{step}-*/record.json"))
    return dict(record["metrics"])
