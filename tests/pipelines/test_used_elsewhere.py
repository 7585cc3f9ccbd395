"""Each kind of tuned model, from a recipe to plain `transformers` where this project is not installed: the same answers.

Those that the suite has anyway are asked in test_end_to_end.py, test_bert_end_to_end.py and test_answering.py.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from model import durable
from pipelines.engine.step import resolve
from tests import alone
from tests.model import test_importing
from tests.pipelines.inventions import NUMBERS, NUMERI, lines

ROOT = Path(__file__).parents[2]
GREEDY = {"do_sample": False, "handle_long_generation": "hole"}


@dataclass(frozen=True)
class Run:
    """A finished run of the tiny recipe."""

    work: Path

    def output(self, step: str, name: str) -> Path:
        (found,) = self.work.glob(f"steps/{step}-*/outputs/{name}")
        return found

    def lines(self, step: str, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.output(step, name).read_text().split("\n") if line]

    def model(self, kind: str = "task") -> str:
        return str(self.output(f"pull-{kind}", "model"))


def run(folder: Path, *settings: str, recipe: str = "tiny") -> Run:
    """The tiny recipe, or another one, with other settings."""
    command = [sys.executable, "-m", "pipelines", "run", "-r", recipe, "-w", str(folder / "work")]
    for setting in (f"execution.registry={folder / 'registry'}", *settings):
        command += ["--set", setting]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return Run(folder / "work")


def task(name: str, path: Path) -> tuple[str, str, str]:
    chosen = json.dumps({"name": name, "source": {"path": str(path)}})
    return f"task={chosen}", "register_as.task_gates=[]", f"register_as.task={name}"


def the_cards_code_runs(folder: str, tmp_path: Path) -> None:
    alone.run(f"DIR = {folder!r}\n" + alone.card_code(Path(folder))[0], tmp_path)  # it fails if the code does


ADAPTER_SCORES = """
import json
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained("BASE")
texts = json.loads(sys.stdin.read())
print(json.dumps([model(**tokenizer(text, truncation=True, return_tensors="pt")).logits.softmax(-1)[0].tolist() for text in texts]))
"""


IMPORTED = """
from pipelines import recipes
from pipelines.config import Recipe
from pipelines.pretrained import Pretrained

def imported() -> Recipe:
    tiny = recipes.tiny()
    return Recipe(
        name="imported", pretrained=Pretrained(path=FOLDER), task=tiny.task, finetune=tiny.finetune,
        register_as=tiny.register_as.model_copy(update={"base": "theirs", "base_gates": ()}),
    )
"""


@pytest.mark.thorough
@pytest.mark.parametrize("base", ["base", "import"])
def test_a_merged_lora_and_its_adapter_classify_as_evaluation_did(tmp_path: Path, base: str) -> None:
    """On a base model of our own, and on one that others trained."""
    recipe = "tiny"
    if base == "import":
        test_importing.llama(tmp_path / "theirs")
        (tmp_path / "recipe.py").write_text(IMPORTED.replace("FOLDER", repr(str(tmp_path / "theirs"))))
        recipe = f"{tmp_path / 'recipe.py'}:imported"
    done = run(tmp_path, "finetune.tune=lora", "register_as.adapter=adapter", recipe=recipe)
    texts = [one["text"] for one in done.lines("prepare_task", "test.jsonl")][:20]
    expected = done.lines("evaluate-task", "predictions.jsonl")[:20]
    question = alone.Question("text-classification", done.model(), texts, options={"truncation": True})
    names = durable.read_json(Path(done.model()) / "config.json")["id2label"]
    for (said,), one in zip(alone.ask([question], tmp_path)[0], expected, strict=True):
        assert said["label"] == names[str(one["predicted"])]
        assert said["score"] == pytest.approx(max(one["scores"]), abs=1e-4)
    the_cards_code_runs(done.model(), tmp_path)
    for name, kind in (("DIR", "adapter"), ("BASE", base)):
        (tmp_path / name).symlink_to(done.model(kind))
    code = alone.card_code(Path(done.model("adapter")))[0]
    said = alone.run(code + ADAPTER_SCORES, tmp_path, json.dumps(texts))
    for scores, one in zip(json.loads(said.splitlines()[-1]), expected, strict=True):
        assert scores == pytest.approx(one["scores"], abs=1e-4)


@pytest.mark.thorough
def test_a_model_of_prompts_and_responses_answers_as_evaluation_did(tmp_path: Path) -> None:
    chance = random.Random(0)
    words = [[chance.randrange(8) for _ in range(chance.randint(1, 4))] for _ in range(900)]
    pairs = [
        {"prompt": " ".join(NUMBERS[one] for one in row), "response": " ".join(NUMERI[one] for one in row)}
        for row in words
    ]
    (path,) = lines(tmp_path / "pairs.jsonl", pairs)
    done = run(tmp_path, *task("responses", path))
    new = durable.read_json(done.output("evaluate-task", "metrics.json"))["max_new_tokens"]
    expected = done.lines("evaluate-task", "predictions.jsonl")[:20]
    chats = [[{"role": "user", "content": one["prompt"]}] for one in expected]
    (said,) = alone.ask(
        [alone.Question("text-generation", done.model(), chats, GREEDY | {"max_new_tokens": new})], tmp_path
    )
    assert [chat[0]["generated_text"][-1]["content"].strip() for chat in said] == [one["predicted"] for one in expected]
    the_cards_code_runs(done.model(), tmp_path)
    command = [sys.executable, "-m", "pipelines", "evaluate", "responses@champion", "-w", str(done.work), "--json"]
    command += ["--set", f"execution.registry={tmp_path / 'registry'}"]
    compared = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert compared.returncode == 0, compared.stdout + compared.stderr
    assert {one["metric"] for one in json.loads(compared.stdout)["figures"]} == {"bleu", "chrf", "exact_match", "f1"}


@pytest.mark.thorough
def test_a_model_of_conversations_replies_as_evaluation_did(tmp_path: Path) -> None:
    chance, chats = random.Random(1), []
    for place in range(120):
        first = chance.randrange(8)
        turns = [f"{NUMBERS[(first + turn) % 8]} it is {place}" for turn in range(2 * chance.randint(1, 4))]
        roles = ("user", "assistant")
        chats.append({"messages": [{"role": roles[turn % 2], "content": text} for turn, text in enumerate(turns)]})
    (path,) = lines(tmp_path / "chats.jsonl", chats)
    done = run(tmp_path, *task("messages", path))
    new = durable.read_json(done.output("evaluate-task", "metrics.json"))["max_new_tokens"]
    samples = durable.read_json(done.output("evaluate-task", "samples.json"))[:20]
    asked = alone.Question(
        "text-generation", done.model(), [one["messages"] for one in samples], GREEDY | {"max_new_tokens": new}
    )
    (said,) = alone.ask([asked], tmp_path)
    assert [chat[0]["generated_text"][-1]["content"].strip() for chat in said] == [one["model"] for one in samples]
    the_cards_code_runs(done.model(), tmp_path)


@pytest.mark.thorough
def test_a_model_that_read_on_continues_as_our_own_code_does(tmp_path: Path) -> None:
    chance = random.Random(2)
    (tmp_path / "story.txt").write_text("\n\n".join(" ".join(chance.choices(NUMBERS, k=40)) for _ in range(200)))
    done = run(tmp_path, *task("generation", tmp_path / "story.txt"), 'task.options={"document_bytes":400}')
    beginnings = [one["text"][:40] for one in done.lines("prepare_task", "test.jsonl")][:10]
    how = {"max_new_tokens": 12, "do_sample": False, "return_full_text": False}
    (said,) = alone.ask([alone.Question("text-generation", done.model(), beginnings, how)], tmp_path)
    job = {
        "export": done.model(),
        "prompts": beginnings,
        "max_new_tokens": 12,
        "seed": 0,
        "temperature": 0.0,
        "threads": 2,
    }
    assert [text["generated_text"] for (text,) in said] == resolve("model.generate:generate")(job)
    the_cards_code_runs(done.model(), tmp_path)
