"""The whole line on the `tiny` recipe, by the command line, as a user runs it: real Ray, DeepSpeed and MLflow.

One finished work directory serves all tests here: making it costs a minute.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from model import durable
from pipelines import harness_data, harness_tasks, recipes, run
from pipelines.config import ConfigError
from pipelines.engine.step import resolve
from pipelines.execution import Execution
from tests import alone
from tests.chaos import site
from tests.chaos.ledger import Ledger
from tests.chaos.moments import Aim, Plan
from tests.chaos.reference import Reference, measured
from tests.chaos.round import Round

ROOT = Path(__file__).parents[1]
STAGES = {
    "shard",
    "train_tokenizer",
    "tokenize",
    "pretrain",
    "prepare_task",
    "finetune",
    "evaluate",
    "register",
    "pull",
}


@dataclass(frozen=True)
class Line:
    """A work directory and a registry, and the command line on them."""

    work: Path
    registry: Path
    recipe: str = "tiny"

    def command(self, verb: str, *arguments: str, **settings: object) -> list[str]:
        chosen = {"execution.registry": self.registry, **settings}
        options = [part for key, value in chosen.items() for part in ("--set", f"{key}={value}")]
        return [
            sys.executable,
            "-m",
            "pipelines",
            verb,
            *arguments,
            "--recipe",
            self.recipe,
            "--work",
            str(self.work),
            *options,
        ]

    def __call__(self, verb: str, *arguments: str, expect: int = 0, **settings: object) -> str:
        done = subprocess.run(
            self.command(verb, *arguments, **settings), cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == expect, done.stdout + done.stderr
        return done.stdout

    def records(self) -> dict[str, dict[str, Any]]:
        """The newest record of each step."""
        found = [durable.read_json(path) for path in (self.work / "steps").glob("*/record.json")]
        return {record["step"]: record for record in sorted(found, key=lambda record: record["finished"])}

    def outputs(self, step: str) -> dict[str, str]:
        return {file["path"]: file["sha256"] for file in self.records()[step]["outputs"]}


def done_now(said: str) -> list[str]:
    """The steps that the summary table says were done now."""
    return [line.split()[0] for line in said.splitlines() if "done now" in line and not line.endswith("in all")]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Line:
    folder = tmp_path_factory.mktemp("line")
    line = Line(folder / "work", folder / "registry")
    said = line("run")
    assert len(done_now(said)) == 12, said
    # Before other tests add to the registry: what all lines of this recipe have to give.
    durable.write_json(folder / "reference.json", asdict(measured(line.work, line.registry)))
    return line


@pytest.fixture
def copy(finished: Line, tmp_path: Path) -> Line:
    """A copy of the finished work directory, to change. Hard links would share damage, so the bytes are copied."""
    shutil.copytree(finished.work, tmp_path / "work")
    return Line(tmp_path / "work", finished.registry)


def test_every_stage_left_a_record_and_both_models_are_champions(finished: Line) -> None:
    records = finished.records()
    assert {record["stage"] for record in records.values()} == STAGES
    assert {records[step]["metrics"]["alias"] for step in ("register-base", "register-task")} == {"champion"}
    assert {"ranks", "threads", "micro_batch_size", "instruction_set", "device"} <= set(records["pretrain"]["numerics"])


def test_every_source_file_leads_to_its_models_and_every_model_to_its_files(finished: Line) -> None:
    def lineage(what: str) -> dict[str, Any]:
        command = [sys.executable, "-m", "pipelines", "lineage", what, "--registry", str(finished.registry), "--json"]
        return dict(json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout))

    records = finished.records()
    files = {
        file["sha256"]: file["path"]
        for record in records.values()
        for group in record["sources"].values()
        for file in group
    }
    said = lineage("sentiment@champion")
    assert {use["sha256"] for use in said["sources"]} == set(files)
    assert said["steps"]["finetune"]["config"] == records["finetune"]["config"] and said["recipe"] == "tiny"
    assert [steps for code, steps in said["code"].items() if "commit" in code] == [
        sorted(set(records) & set(said["steps"]))
    ]
    for sha256, path in files.items():
        assert [(model["model"], model["version"]) for model in lineage(path)["models"]] == [
            ("base", 1),
            ("sentiment", 1),
        ]
        assert lineage(path)["digests"] == {sha256: path}


def test_the_pulled_model_predicts_what_evaluation_recorded(finished: Line) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    (folder,) = finished.work.glob("steps/pull-task-*/outputs/model")
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    (examples,) = finished.work.glob("steps/prepare_task-*/outputs/test.jsonl")
    (predictions,) = finished.work.glob("steps/evaluate-task-*/outputs/predictions.jsonl")
    for example, predicted in list(
        zip(map(json.loads, examples.open()), map(json.loads, predictions.open()), strict=True)
    )[:20]:
        with torch.inference_mode():
            scores = (
                model(**tokenizer(example["text"], return_tensors="pt", truncation=True)).logits.softmax(-1)[0].tolist()
            )
        assert scores == pytest.approx(predicted["scores"], abs=1e-5)


def test_both_models_answer_as_evaluation_did_where_we_are_not_installed(finished: Line, tmp_path: Path) -> None:
    base, task = (next(finished.work.glob(f"steps/pull-{kind}-*/outputs/model")) for kind in ("base", "task"))
    (examples,) = finished.work.glob("steps/prepare_task-*/outputs/test.jsonl")
    (predictions,) = finished.work.glob("steps/evaluate-task-*/outputs/predictions.jsonl")
    texts = [json.loads(line)["text"] for line in examples.open()][:20]
    expected = [json.loads(line) for line in predictions.open()][:20]
    prompts = ["To be, or not", "First Citizen:", "What light"]
    labels, continued = alone.ask(
        [
            alone.Question("text-classification", str(task), texts, options={"truncation": True}),
            alone.Question(
                "text-generation", str(base), prompts,
                {"max_new_tokens": 12, "do_sample": False, "return_full_text": False},
            ),
        ],
        tmp_path,
    )  # fmt: skip
    names = durable.read_json(task / "config.json")["id2label"]
    for (said,), one in zip(labels, expected, strict=True):
        assert said["label"] == names[str(one["predicted"])]
        assert said["score"] == pytest.approx(one["scores"][one["predicted"]], abs=1e-4)
    job = {"export": str(base), "prompts": prompts, "max_new_tokens": 12, "seed": 0, "temperature": 0.0, "threads": 2}
    assert [said["generated_text"] for (said,) in continued] == resolve("model.generate:generate")(job)


def test_the_code_on_the_cards_runs_as_it_stands_where_we_are_not_installed(finished: Line, tmp_path: Path) -> None:
    folders = [next(finished.work.glob(f"steps/pull-{kind}-*/outputs/model")) for kind in ("base", "task")]
    said = alone.run("\n".join(f"DIR = {str(folder)!r}\n{alone.card_code(folder)[0]}" for folder in folders), tmp_path)
    assert said.startswith("Once upon a time") and any(f"'label': '{name}'" in said for name in ("fresh", "rotten"))


def test_a_second_run_does_nothing_and_says_so(finished: Line) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.work.rglob("*") if path.is_file()}
    said = finished("run")
    assert "nothing to do: all 12 steps" in said and done_now(said) == []
    after = {path: path.stat().st_mtime_ns for path in finished.work.rglob("*") if path.is_file()}
    assert {path: time for path, time in after.items() if path.name != "digests.json"} == {
        path: time for path, time in before.items() if path.name != "digests.json"
    }


def test_a_run_with_nothing_to_do_imports_nothing_heavy(finished: Line) -> None:
    arguments = finished.command("run")[3:]
    probe = (
        f"import sys; sys.argv = ['gptline', *{arguments!r}]\nfrom pipelines.__main__ import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print('LOADED', sorted({'torch', 'ray', 'mlflow', 'transformers', 'datasets'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "LOADED []" in done.stdout


def test_status_tells_each_step_and_its_figure(finished: Line) -> None:
    steps = {step["step"]: step for step in json.loads(finished("status", "--json"))["steps"]}
    assert {step["state"] for step in steps.values()} == {"done"}
    assert "bits per byte" in steps["evaluate-base"]["figure"] and steps["pretrain"]["seconds"] > 0


def test_inspect_decodes_the_batches_that_training_saw(finished: Line) -> None:
    pretraining, finetuning = (
        finished("inspect", "batch:3", "--rows", "2"),
        finished("inspect", "finetune:0", "--rows", "2"),
    )
    assert (
        pretraining.count(" of step 3: ") == 2
        and "loss on 64 of 65 tokens" in pretraining
        and "document" in pretraining
    )
    assert "label" in finetuning and "loss on 1 of" in finetuning


def test_inspect_decodes_shards(finished: Line) -> None:
    (manifest,) = finished.work.glob("steps/tokenize-*/outputs/heldout.json")
    shard = durable.read_json(manifest)["units"][0]["path"]
    assert "token shard" in finished("inspect", shard) and "no such file" in _refused(
        finished, "inspect", "nothing/here"
    )


def _refused(line: Line, *arguments: str) -> str:
    done = subprocess.run(line.command(*arguments), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    return done.stderr


def test_a_registered_model_is_pulled_by_alias(finished: Line, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pipelines",
        "pull",
        "sentiment@champion",
        str(tmp_path / "model"),
        "--set",
        f"execution.registry={finished.registry}",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "verified" in done.stdout and (tmp_path / "model" / "model.safetensors").is_file()


def test_lm_eval_finds_the_figures_that_we_find(finished: Line) -> None:
    command = [sys.executable, "-m", "pipelines", "evaluate", "base@champion", "--work", str(finished.work), "--json"]
    command += ["--set", f"execution.registry={finished.registry}"]  # no recipe: the version says what it was made from
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    found = json.loads(said.stdout)["figures"]
    assert {one["metric"] for one in found} == {"bits_per_byte", "byte_perplexity"}
    assert all(one["agrees"] and abs(one["ours"] / one["theirs"] - 1) < 1e-5 for one in found)
    assert "TASKS=nothing: no such task" in _refused(finished, "evaluate", "base@champion", "--tasks", "nothing more")


def test_a_version_and_its_recipe_name_the_same_held_out_data(finished: Line, tmp_path: Path) -> None:
    (package,) = finished.work.glob("steps/pull-task-*/outputs/model")
    theirs = harness_data.of_version(package, finished.work)
    execution = Execution(work=str(finished.work), registry=str(finished.registry))
    ours = harness_data.of_recipe(run.open_workspace(recipes.tiny(), execution, fetch=False))
    for step, name in (("shard", "heldout.json"), ("prepare_task", "test.jsonl")):
        assert theirs.read(step, name).path(name) == ours.read(step, name).path(name).absolute()
    assert (theirs.task, theirs.measured, ours.measured) == ("sentiment", "sentiment", "perplexity")
    with pytest.raises(ConfigError, match="lm-eval scores causal language models"):
        harness_tasks.asked(theirs.measured, theirs, package, tmp_path)
    with pytest.raises(ConfigError, match="GPT2ForSequenceClassification: lm-eval scores causal"):
        harness_tasks.asked("perplexity", theirs, package, tmp_path)
    with pytest.raises(ConfigError, match="the examples of sentiment are of sentiment"):
        harness_tasks.asked("translation", theirs, package, tmp_path)
    with pytest.raises(ConfigError, match="is not made in"):
        harness_data.of_version(package, tmp_path).read("prepare_task", "test.jsonl")
    with pytest.raises(ConfigError, match=r"has no step import that is done in .*RECIPE="):
        theirs.read("import", "export/")
    with pytest.raises(ConfigError, match=r"has no MANIFEST\.json"):
        harness_data.of_version(tmp_path, finished.work)


def test_plan_names_the_field_and_a_run_redoes_only_what_is_downstream(copy: Line) -> None:
    planned = json.loads(copy("plan", "--json", **{"finetune.learning_rate": "0.004"}))["steps"]
    assert {step["step"]: step["why"] for step in planned}["finetune"] == ["train.learning_rate: 0.005 -> 0.004"]
    said = copy("run", **{"finetune.learning_rate": "0.004"})
    assert done_now(said) == ["finetune", "evaluate-task", "register-task", "pull-task"]


def test_verify_finds_planted_damage_and_a_run_mends_it(copy: Line) -> None:
    assert "0 damaged, 0 missing, 0 unowned" in copy("verify")
    (shard,) = list(copy.work.glob("units/tokens/*/*.arrow"))[:1]
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    assert f"damaged: {shard.relative_to(copy.work)}" in copy("verify", expect=3)
    assert done_now(copy("run", "--until", "tokenize")) == ["tokenize"]
    assert "0 damaged, 0 missing" in copy("verify")


def kill_when(line: Line, ready: Callable[[], bool], *arguments: str, **settings: object) -> None:
    """Start a run and SIGKILL its driver as soon as `ready()`; its Ray dies by itself within seconds."""
    driver = subprocess.Popen(
        line.command("run", *arguments, **settings), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while not ready():
        assert driver.poll() is None, "the run ended before the moment to kill it"
        time.sleep(0.02)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()


@pytest.mark.thorough  # `test_one_kill_in_each_stage_changes_nothing` kills a driver there, too
def test_a_driver_killed_while_pretraining_resumes_to_identical_weights(finished: Line, copy: Line) -> None:
    expected = finished.outputs("pretrain")
    for folder in copy.work.glob("steps/pretrain-*"):
        shutil.rmtree(folder)
    settings = {"execution.checkpoint_every": 5}
    kill_when(
        copy,
        lambda: bool(list(copy.work.glob("steps/pretrain-*/checkpoints/step-*10"))),
        "--until",
        "pretrain",
        **settings,
    )
    assert "pretrain" not in copy.records()
    copy("run", "--until", "pretrain", **settings)
    assert copy.records()["pretrain"]["metrics"]["resumed_from"] >= 10
    assert copy.outputs("pretrain") == expected


@pytest.mark.thorough  # tests/cluster/test_recovery.py kills ranks below a driver of one step
def test_a_killed_rank_is_started_again_and_the_weights_are_identical(finished: Line, copy: Line) -> None:
    expected = finished.outputs("pretrain")
    for folder in copy.work.glob("steps/pretrain-*"):
        shutil.rmtree(folder)
    command = copy.command("run", "--until", "pretrain", **{"execution.checkpoint_every": 5})
    driver = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while not list(copy.work.glob("steps/pretrain-*/checkpoints/step-*10")):
        assert driver.poll() is None, "the run ended before the moment to kill a rank"
        time.sleep(0.02)
    ranks = [
        child
        for child in psutil.Process(driver.pid).children(recursive=True)
        if "_Rank.run" in "".join(child.cmdline())  # standbys are called _Rank, without a method
    ]
    ranks[-1].kill()
    said, _ = driver.communicate()
    assert driver.returncode == 0, said
    assert "died" in said and "starting the ranks again" in said
    assert copy.outputs("pretrain") == expected


# Stages that come twice, and are short, are aimed at twice.
ONE_KILL_IN_EACH_STAGE = [
    Aim("prepare_task", "time", 0.1, "driver"),
    Aim("shard", "time", 0.3, "worker"),
    Aim("train_tokenizer", "time", 0.1, "power"),
    Aim("tokenize", "time", 0.1, "driver"),
    Aim("pretrain", "train_step", 8, "rank0"),
    Aim("pretrain", "train_step", 16, "driver"),
    Aim("evaluate-base", "time", 0.3, "driver"),
    Aim("register-base", "time", 0.2, "driver"),
    Aim("pull-base", "time", 0.0, "driver"),
    Aim("finetune", "train_step", 12, "rank"),
    Aim("register-task", "outputs", 0.0, "power"),
    Aim("pull-task", "time", 0.5, "driver"),
]


def test_one_kill_in_each_stage_changes_nothing(finished: Line, tmp_path: Path) -> None:
    reference = Reference(**durable.read_json(finished.work.with_name("reference.json")))
    log, plan = Ledger(tmp_path / "log.jsonl"), Plan.of(ONE_KILL_IN_EACH_STAGE)
    with site.site(settings={"execution.checkpoint_every": 5}) as place:
        differences = Round(place, reference, plan, log, 1, 99, random.Random(1), print).run()
    assert differences == [] and not [event for event in log.events if event["event"] in ("broken", "torn")]
    kills = {(event["stage"], event["victim"]) for event in log.events if event["event"] == "kill"}
    assert {stage for stage, _ in kills} == STAGES and {("pretrain", "rank0"), ("pretrain", "driver")} <= kills


RECIPE = """
from pipelines import recipes
from pipelines.config import ShardConfig, Source

def many():
    tiny = recipes.tiny()
    source = Source(path={folder!r}, label="files")
    return tiny.model_copy(update={{"name": "many", "shard": ShardConfig(sources=(source,), document_bytes=512, shard_bytes=8192, heldout_fraction=0.05)}})
"""


@pytest.fixture
def files(finished: Line, tmp_path: Path) -> Line:
    """A user's own recipe over a folder of text files."""
    text = next((ROOT / ".cache" / "gptline").glob("tiny_shakespeare-*/input.txt")).read_text()
    folder = tmp_path / "corpus"
    folder.mkdir()
    for index in range(40):
        (folder / f"{index}.txt").write_text(text[index * 6000 : (index + 1) * 6000])
    recipe = tmp_path / "recipe.py"
    recipe.write_text(RECIPE.format(folder=str(folder)))
    return Line(tmp_path / "work", finished.registry, f"{recipe}:many")


def test_one_more_source_file_costs_only_its_own_shards(files: Line, tmp_path: Path) -> None:
    files("run", "--until", "tokenize")
    before = {path: path.stat().st_mtime_ns for path in (files.work / "units").rglob("*") if path.is_file()}
    (tmp_path / "corpus" / "new.txt").write_text("A new file, with a paragraph of its own.\n\n" * 60 + "And its end.\n")
    assert done_now(files("run", "--until", "tokenize")) == ["shard", "tokenize"]
    after = {path: path.stat().st_mtime_ns for path in (files.work / "units").rglob("*") if path.is_file()}
    assert before.items() <= after.items()
    records = files.records()
    made = records["shard"]["metrics"]["pieces"] - records["shard"]["metrics"]["pieces_reused"]
    assert 1 <= made <= 2, "the new file's own group, and the one that it may have split"
    assert records["tokenize"]["metrics"]["shards"] - records["tokenize"]["metrics"]["shards_reused"] <= 2 * made


@pytest.mark.thorough  # of a kill in each stage is the test above
def test_a_driver_killed_while_tokenizing_continues_to_identical_files(files: Line, tmp_path: Path) -> None:
    undisturbed = Line(tmp_path / "undisturbed", files.registry, files.recipe)
    undisturbed("run", "--until", "tokenize")
    kill_when(files, lambda: len(list(files.work.glob("units/tokens/*/*.json"))) > 3, "--until", "tokenize")
    assert "tokenize" not in files.records()
    files("run", "--until", "tokenize")
    assert files.records()["tokenize"]["metrics"]["shards_reused"] > 3
    assert files.outputs("tokenize") == undisturbed.outputs("tokenize")
