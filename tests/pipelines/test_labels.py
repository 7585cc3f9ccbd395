"""How many labels a task needs: the draws, the steps of the curves, the table, and one small measurement for real."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from model.tuning_config import EarlyStopping
from pipelines import challenge, flow, recipes
from pipelines.config import ConfigError, Recipe
from pipelines.execution import Execution
from pipelines.labels_config import FewLabels, Start
from pipelines.pretrained import Pretrained
from pipelines.recipe_checks import check_together
from pipelines.settings import override
from pipelines.stages import few_examples, labels

IDS = [f"{number:032x}" for number in range(500)]


def test_fewer_labels_of_a_draw_are_among_its_more_and_another_draw_takes_others() -> None:
    few, more = few_examples.drawn(IDS, 100, seed=1), few_examples.drawn(IDS, 300, seed=1)
    assert set(few) < set(more)
    assert few == sorted(few) == few_examples.drawn(IDS, 100, seed=1)
    assert few != few_examples.drawn(IDS, 100, seed=2)
    assert len(set(few)) == 100


def test_a_new_example_replaces_at_most_one_of_a_draw() -> None:
    before = {IDS[index] for index in few_examples.drawn(IDS, 100, seed=1)}
    more = [*IDS[:250], "f" * 32, *IDS[250:]]
    after = {more[index] for index in few_examples.drawn(more, 100, seed=1)}
    assert len(before - after) <= 1


def test_more_labels_than_there_are_is_an_error_that_says_how_many_there_are() -> None:
    with pytest.raises(ValueError, match=r"501 labels were asked for and the task has 500.*few_labels\.labels"):
        few_examples.drawn(IDS, 501, seed=1)


def test_few_labels_get_many_passes_and_all_get_the_recipes_steps() -> None:
    tuning = recipes.default().finetune
    assert tuning and (tuning.global_batch_size, tuning.max_steps, tuning.warmup_steps) == (32, 580, 58)
    few = FewLabels(starts=(Start(name="one"),), passes=10, least_steps=100)
    chosen = {count: few.tuned(tuning, count, seed=3) for count in (100, 1000, 3000, None)}
    assert {count: one.max_steps for count, one in chosen.items()} == {100: 100, 1000: 313, 3000: 580, None: 580}
    assert {one.seed for one in chosen.values()} == {3}
    assert chosen[1000].warmup_steps == 31
    assert chosen[None].model_copy(update={"seed": tuning.seed}) == tuning


def test_curves_share_what_stands_before_them_and_each_point_reads_its_own_draw() -> None:
    steps = {step.name: step for step in flow.build(_recipe(), _files)}
    assert len(steps) == len(flow.build(_recipe(), _files)), "a name twice"
    assert [name for name in steps if name.startswith(("pretrain", "import", "register"))] == [
        "pretrain",
        "import-minilm",
    ]
    ours, scratch, theirs = (steps[f"finetune-{name}-100-2"].inputs for name in ("ours", "scratch", "minilm"))
    assert ours["examples"].step == scratch["examples"].step == theirs["examples"].step == "labels-100-2"
    assert ours["base"].step == "pretrain"
    assert "base" not in scratch
    assert {theirs[name].step for name in ("base", "shape", "tokenizer")} == {"import-minilm"}
    draws = [steps[f"labels-100-{draw}"].config for draw in (1, 2)]
    assert draws == [{"labels": 100, "seed": 1}, {"labels": 100, "seed": 2}]
    assert [steps[f"finetune-ours-100-{draw}"].config["train"]["seed"] for draw in (1, 2)] == [1, 2]
    assert steps["evaluate-ours-100-2"].inputs["train"].step == "labels-100-2"  # TF-IDF learns from the very same
    assert steps["evaluate-ours-all-1"].inputs["train"].step == "prepare_task"
    assert len(steps["labels"].inputs) == 3 * 2 * 2 + 1
    order = list(steps)
    for step in steps.values():
        assert all(order.index(source.step) < order.index(step.name) for source in step.inputs.values())


def test_tfidf_knows_no_labels_but_the_drawn_ones_unless_a_model_looks_at_the_validation_split_too() -> None:
    def how(recipe: Recipe) -> dict[str, Any]:
        return {step.name: step.config.get("cross_validation") for step in flow.build(recipe, _files)}

    plain = how(_recipe())
    assert {said for name, said in plain.items() if name.startswith("evaluate-")} == {True}
    assert {said for name, said in plain.items() if not name.startswith("evaluate-")} == {None}
    made = _recipe()
    assert made.finetune
    early = made.finetune.model_copy(update={"early_stopping": EarlyStopping()})
    assert set(how(made.model_copy(update={"finetune": early})).values()) == {None}
    assert how(recipes.tiny())["evaluate-task"] is None, "a recipe that measures no curves is what it was"


@pytest.mark.parametrize("further", [True, False])
def test_curves_that_begin_with_the_recipes_own_import_share_it(further: bool) -> None:
    given, nothing = _recipe(), dict.fromkeys(("tokenizer", "model"))
    nothing |= {} if further else dict.fromkeys(("shard", "pretrain"))
    made = given.model_copy(update={"pretrained": Pretrained(path="/somebodys/gpt2")} | nothing)
    flowed = flow.build(made, _files)
    order = [step.name for step in flowed]
    assert len(set(order)) == len(order)
    assert [name for name in order if name.startswith("import")] == ["import", "import-minilm"]
    for step in flowed:
        assert all(order.index(source.step) < order.index(step.name) for source in step.inputs.values()), step.name
    steps = {step.name: step for step in flowed}
    assert steps["finetune-ours-100-2"].inputs["base"].step == ("pretrain" if further else "import")
    assert steps["finetune-scratch-100-2"].inputs["shape"].step == "import"
    assert steps["finetune-minilm-100-2"].inputs["base"].step == "import-minilm"


def test_a_task_without_classes_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"few_labels draws accuracy .* task questions \(form response\) has no classes"
    ):
        override(recipes.load("questions"), {"few_labels": '{"starts":[{"name":"ours"}]}'})


def test_another_draw_is_a_new_point_and_changes_no_other() -> None:
    two, three = (
        {step.name: step for step in flow.build(_recipe(draws), _files) if step.name != "labels"} for draws in (2, 3)
    )
    assert two.items() <= three.items()


def test_a_curve_may_have_fewer_draws_than_the_others() -> None:
    made = _recipe(draws=3)
    assert made.few_labels
    ours, scratch, minilm = made.few_labels.starts
    few = made.few_labels.model_copy(update={"starts": (ours, scratch, minilm.model_copy(update={"draws": 1}))})
    names = {step.name for step in flow.build(made.model_copy(update={"few_labels": few}), _files)}
    assert {name for name in names if name.startswith("finetune-minilm-")} == {
        "finetune-minilm-100-1",
        "finetune-minilm-all-1",
    }
    assert "finetune-ours-100-3" in names


def test_all_labels_are_drawn_before_anything_is_trained() -> None:
    """More than there are are asked for: that is said in seconds."""
    order = [step.name for step in flow.build(_recipe(), _files)]
    drawn = [order.index(name) for name in order if name.startswith("labels-")]
    assert drawn == list(range(1, 1 + len(drawn))) and order[0] == "prepare_task"


def test_more_labels_than_are_kept_and_a_batch_that_cannot_be_sliced_are_refused_when_the_recipe_is_read() -> None:
    with pytest.raises(ConfigError, match=r"few_labels.labels asks for 3000 and task.max_examples=400 keeps fewer"):
        override(recipes.tiny(), {"few_labels": '{"starts":[{"name":"ours"}]}'})
    made = _recipe()
    assert made.few_labels and made.finetune
    odd = Start(name="odd", finetune=made.finetune.model_copy(update={"global_batch_size": 7}))
    few = made.model_copy(update={"few_labels": made.few_labels.model_copy(update={"starts": (odd,)})})
    with pytest.raises(
        ConfigError, match=r"few_labels\.starts odd: finetune: global_batch_size=7 does not divide over 2 ranks"
    ):
        check_together(few, Execution(ranks=2))


def test_what_is_measured_has_no_model_to_retrain() -> None:
    with pytest.raises(ConfigError, match="measures few_labels"):
        challenge.retraining(_recipe(), {}, _files)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"starts": (Start(name="a"), Start(name="a"))}, "starts has one twice: a, a"),
        ({"labels": (100, 100)}, "labels has one twice"),
        ({"labels": (1,)}, "give 2 labels and more"),
        ({"starts": (Start(name="a", draws=5),)}, "'a' has draws=5, more than few_labels.draws=3"),
    ],
)
def test_a_measurement_that_makes_no_sense_is_refused(change: dict[str, object], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        FewLabels.model_validate({"starts": (Start(name="a"),)} | change)


def test_the_table_has_the_means_and_ends_of_the_draws_and_tfidf_once() -> None:
    measured = [
        ("ours", 100, 0.5, 0.6),
        ("ours", 100, 0.7, 0.8),
        ("scratch", 100, 0.4, 0.6),
        ("scratch", 100, 0.5, 0.8),
    ]
    points = [
        {"curve": curve, "labels": count, "metrics": {"accuracy": accuracy, "tfidf_accuracy": tfidf}}
        for curve, count, accuracy, tfidf in measured
    ]
    assert list(labels.table(labels.summarised(points))) == [
        f"| labels | ours | scratch | {labels.TFIDF} |",
        "| ---: | :---: | :---: | :---: |",
        "| 100 | 60.0% (50.0% to 70.0%) | 45.0% (40.0% to 50.0%) | 70.0% (60.0% to 80.0%) |",
    ]


def test_tfidf_is_that_of_the_curve_with_most_draws() -> None:
    points = [
        {"curve": curve, "labels": 100, "metrics": {"accuracy": 0.5, "tfidf_accuracy": tfidf}}
        for curve, tfidf in (("slow", 0.6), ("quick", 0.6), ("quick", 0.7), ("quick", 0.8))
    ]
    (found,) = [one["points"] for one in labels.summarised(points) if one["curve"] == labels.TFIDF]
    assert found == [{"labels": 100, "mean": 0.7, "low": 0.6, "high": 0.8, "draws": 3}]


@pytest.mark.thorough
def test_a_small_measurement_ends_with_table_and_picture_and_again_does_nothing(tmp_path: Path) -> None:
    recipe = tmp_path / "few.py"
    recipe.write_text(
        "from pipelines import recipes\n"
        "from pipelines.labels_config import FewLabels, Start\n"
        "def few():\n"
        "    made = recipes.tiny()\n"
        "    scratch = made.finetune.model_copy(update={'init': 'random'})\n"
        "    starts = (Start(name='ours'), Start(name='scratch', finetune=scratch))\n"
        "    few = FewLabels(labels=(50,), draws=1, least_steps=5, passes=1, starts=starts)\n"
        "    return made.model_copy(update={'few_labels': few})\n"
    )
    first, second = (_run(tmp_path, f"{recipe}:few") for _ in range(2))
    (folder,) = (tmp_path / "work" / "steps").glob("labels-" + 12 * "[0-9a-f]")  # not those of its points
    assert "| 50 |" in first
    assert "| 400 |" in first
    assert (folder / "outputs" / "labels.svg").read_bytes().startswith(b"<?xml")
    assert second.startswith("nothing to do")
    assert (folder / "outputs" / "labels.md").read_text() in second


def _run(place: Path, recipe: str) -> str:
    settings = f"execution.registry={place / 'registry'} execution.cache={Path('.cache').resolve()}"
    command = [
        sys.executable,
        "-m",
        "pipelines",
        "run",
        "--recipe",
        recipe,
        "--work",
        str(place / "work"),
        "--set",
        settings,
    ]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=dict(os.environ)).stdout


def _recipe(draws: int = 2) -> Recipe:
    made = recipes.tiny()
    assert made.finetune
    starts = (
        Start(name="ours"),
        Start(name="scratch", finetune=made.finetune.model_copy(update={"init": "random"})),
        Start(name="minilm", pretrained=Pretrained(sample="minilm")),
    )
    return made.model_copy(update={"few_labels": FewLabels(labels=(100,), draws=draws, starts=starts)})


def _files(source: object) -> list[dict[str, object]]:
    return [{"path": "", "sha256": "0" * 64, "label": "", "size": 0}]
