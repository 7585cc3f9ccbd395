"""A run as it is watched: what MLflow is told of damage, overtaking, kills and steps done before; what people read."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from model import durable
from pipelines import __main__ as command_line
from pipelines import narrate, options, recipes, standing
from pipelines import run as running
from pipelines.engine import lease as leases
from pipelines.engine import record as records
from pipelines.engine.digests import Digests
from pipelines.engine.lease import Overtaken
from pipelines.engine.step import Attempt, Damaged, Input, Stage, Step
from pipelines.errors import StepFailed, StepInterrupted
from pipelines.execution import Execution
from pipelines.outbox import Outbox
from pipelines.results import Given, after_pull
from pipelines.run import Workspace
from pipelines.stages.training import Interrupted
from tests.pipelines.engine import toys
from tests.pipelines.mlflow_views import history, line, runs

HERE = "tests.pipelines.test_narrate"
QUIET = Console(quiet=True)


def finds_damage(attempt: Attempt) -> dict[str, Any]:
    """Find an input damaged, the first time."""
    if not (attempt.root / "seen").exists():
        durable.write_json(attempt.root / "seen", {})
        raise Damaged("letters", "units/a", "is damaged")
    return {}


def fails(attempt: Attempt) -> dict[str, Any]:
    """Fail as the configuration says."""
    match attempt.config["how"]:
        case "asked":
            raise Interrupted("stopped after step 3 of 9; run again to go on")
        case "SIGTERM":
            os.kill(os.getpid(), signal.SIGTERM)
        case "error":
            raise ValueError("seven is no colour")
    return {}


def curve(attempt: Attempt) -> dict[str, Any]:
    """Leave a loss curve among the outputs, as training does."""
    durable.write_bytes(attempt.outputs / "metrics.jsonl", (line(1) + line(2)).encode())
    return {"final_loss": 5.0}


def workspace(root: Path, store: Path, *steps: Step) -> Workspace:
    execution = Execution(work=str(root), registry=str(store), lease_seconds=2.0)
    settings = running.settings(execution)
    return Workspace(recipes.tiny(), execution, root, list(steps), Digests(root / "digests.json"), settings)


def only(name: str, function: str, **config: Any) -> Step:
    return Step(name, Stage(name, 1, function if ":" in function else f"{HERE}:{function}"), config)


def status(store: Path, name: str, root: Path) -> list[str]:
    """The status of the MLflow runs of the step `name` of this work directory: its steps have names of their own."""
    return [run.info.status for run in runs(store, {"gptline.step": name})]


def test_damage_found_at_work_is_mended_and_each_step_is_told_once(store: Path, tmp_path: Path) -> None:
    reader = Step("reader", Stage("reader", 1, f"{HERE}:finds_damage"), {}, {"letters": Input("letters")})
    outcomes = narrate._run(workspace(tmp_path, store, toys.flow()[0], reader), QUIET, QUIET)
    assert [(outcome.record.step, outcome.done_now) for outcome in outcomes] == [("letters", True), ("reader", True)]
    assert status(store, "reader", tmp_path) == ["FINISHED"]


def test_an_overtaken_step_leaves_the_mlflow_runs_to_the_winner(store: Path, tmp_path: Path) -> None:
    space = workspace(tmp_path, store, only("loser", "tests.pipelines.engine.toys:overtaken"))
    with pytest.raises(Overtaken):
        narrate._run(space, QUIET, QUIET)
    assert set(status(store, "loser", tmp_path)) <= {"RUNNING"}
    parents = runs(store, {"gptline.execution": narrate._execution_key(space)})
    assert {run.info.status for run in parents} <= {"RUNNING"}


@pytest.mark.parametrize("how", ["asked", "SIGTERM"])
def test_a_stopped_step_is_killed_to_mlflow_and_resumable_to_the_caller(store: Path, tmp_path: Path, how: str) -> None:
    before = signal.signal(signal.SIGTERM, command_line._stop)
    try:
        with pytest.raises(StepInterrupted):
            narrate.run(workspace(tmp_path, store, only(f"stops-{how}", "fails", how=how)), QUIET, QUIET, Given())
    finally:
        signal.signal(signal.SIGTERM, before)
    assert status(store, f"stops-{how}", tmp_path) == ["KILLED"]


def test_a_failure_names_the_step_the_reason_and_where_its_files_are(store: Path, tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match="step breaks failed: ValueError: seven is no colour") as failure:
        narrate._run(workspace(tmp_path, store, only("breaks", "fails", how="error")), QUIET, QUIET)
    named = str(failure.value).split("its files are in ")[1].split(" until")[0]
    assert Path(named).is_dir()
    assert status(store, "breaks", tmp_path) == ["FAILED"]


def test_what_a_killed_run_did_not_deliver_is_delivered_by_the_next_even_with_nothing_to_do(
    store: Path, tmp_path: Path
) -> None:
    step = only("curve", "curve")
    toys.run(tmp_path, [step])  # done, and MLflow knows nothing of it
    space = workspace(tmp_path, store, step)
    assert not narrate._run(space, QUIET, QUIET)[0].done_now
    assert status(store, "curve", tmp_path) == [], "with nothing to do, MLflow is not asked"
    Outbox(narrate._outbox(space)).keep([])  # what a run leaves that is killed
    narrate._run(space, QUIET, QUIET)
    (run,) = runs(store, {"gptline.step": "curve"})
    assert (run.info.status, run.data.metrics["final_loss"]) == ("FINISHED", 5.0)
    assert history(store, run) == [(1, 10.0), (2, 5.0)]
    assert not list(tmp_path.glob("outbox*"))


@pytest.mark.parametrize("alive", [True, False])
def test_a_step_that_another_process_did_meanwhile_is_told_for_it_if_it_was_killed(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alive: bool
) -> None:
    step = only(f"peers-{alive}", "curve")
    toys.run(tmp_path, [step])
    space = workspace(tmp_path, store, step)
    Outbox(narrate._outbox(space)).keep([])
    monkeypatch.setattr(records, "now", lambda: "2000-01-01T00:00:00+00:00")  # we had begun before it was done
    if not alive:
        monkeypatch.setattr(leases, "is_dead", lambda owner: True)
    narrate._run(space, QUIET, QUIET)
    assert status(store, step.name, tmp_path) == ([] if alive else ["FINISHED"])


def test_an_execution_over_other_data_or_elsewhere_is_another_one(tmp_path: Path) -> None:
    def key(sha256: str, root: Path) -> str:
        step = replace(toys.flow()[0], sources={"text": [{"path": "x", "sha256": sha256}]})
        return narrate._execution_key(workspace(root, tmp_path / "registry", step))

    assert key("a", tmp_path) == key("a", tmp_path)
    assert len({key("a", tmp_path), key("b", tmp_path), key("a", tmp_path / "other")}) == 3


def test_status_bears_files_that_vanish(tmp_path: Path) -> None:
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    assert standing._size(tmp_path).endswith("0.0 MB")


def test_next_commands_repeat_what_was_given() -> None:
    assert Given().make("run") == "make run"
    settings = ('shard.sources=[{"path":"/data/corpus"}]', "execution.registry=/r")
    given = Given("mine.py:small", "my work", settings)
    assert given.make("run") == (
        "make run RECIPE=mine.py:small WORK='my work' "
        """SET='shard.sources=[{"path":"/data/corpus"}] execution.registry=/r'"""
    )
    assert given.make_elsewhere("ui") == "make ui SET=execution.registry=/r"


def test_after_pulling_a_classifier_nobody_is_told_to_generate_with_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["GPT2ForSequenceClassification"]}))
    assert "text-classification" in after_pull(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["GPT2LMHeadModel"]}))
    assert after_pull(tmp_path) == f'make generate MODEL={tmp_path} PROMPT="To be"'


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a.b=1  execution.ranks=2", ("a.b=1", "execution.ranks=2")),
        ('shard.sources=[{"path":"/data/my corpus"}] a.beta1=0.5', ('shard.sources=[{"path":"/data/my corpus"}]', "a.beta1=0.5")),
        ('x=[{"label": "a b=c"}]', ('x=[{"label": "a b=c"}]',)),
    ],
)  # fmt: skip
def test_set_holds_several_settings_and_json_arrives_whole(text: str, found: tuple[str, ...]) -> None:
    assert options.pairs([text]) == found
