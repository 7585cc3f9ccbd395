"""What the docs say of tasks, samples and names is what the code has: a line that somebody copies does what is said beside it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipelines import recipes, task_table
from pipelines.config import ConfigError
from pipelines.forms import form
from pipelines.options import recipe_of
from pipelines.sample_catalogue import SAMPLES
from pipelines.tasks import task

DOCS = Path(__file__).parents[2] / "docs"
OWN_TASK = [
    (found["recipe"] or "default", found["settings"])
    for name in ("own-data.md", "answers.md")
    for found in re.finditer(
        r"make run (RECIPE=(?P<recipe>\w+) )?SET='(?P<settings>task=\{.*)'", (DOCS / name).read_text()
    )
]


def names(recipe: recipes.Recipe) -> set[str]:
    """What the recipe registers."""
    return {recipe.register_as.task} | ({recipe.register_as.base} if recipe.pretrain else set())


OURS = set.union(*(names(made()) for made in recipes.NAMED.values()))


@pytest.mark.parametrize(("recipe", "settings"), OWN_TASK, ids=[recipe for recipe, _ in OWN_TASK])
def test_a_line_that_makes_a_model_of_ones_own_takes_no_name_of_our_recipes(recipe: str, settings: str) -> None:
    assert not names(recipe_of(recipe, [settings])) & OURS


def test_the_function_that_makes_a_model_of_ones_own_takes_no_name_of_our_recipes(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / "own-data.md").read_text(), re.DOTALL)
    (tmp_path / "mine.py").write_text(code)
    recipe = recipes.load(f"{tmp_path / 'mine.py'}:reviews")
    assert names(recipe) == {"reviews", "reviews-base"} and recipe.register_as.task_gates


def test_settings_that_change_a_recipes_task_and_leave_it_the_name_are_refused() -> None:
    other = 'task={"name":"labelled","source":{"path":"reviews.csv"}}'
    with pytest.raises(ConfigError, match=r"recipe default would register a model of task labelled as 'sentiment'"):
        recipe_of("default", [other])
    assert recipe_of("default", [f"{other} register_as.task=sentiment"]).task  # who says it means it
    assert recipe_of("default", ['task.source={"path":"more.csv.bz2"}']).task  # more reviews are the same task
    assert recipe_of("default", ["task=none finetune=none"]).task is None
    assert (
        recipe_of("default", [f"{other} release=false"]).task and recipe_of("labels", [other]).task
    )  # register nothing


def test_what_is_registered_written_as_json_names_the_model_only_where_it_says_so() -> None:
    other = 'task={"name":"labelled","source":{"path":"reviews.csv"}}'
    with pytest.raises(
        ConfigError, match=r"--set register_as: recipe default .* of task labelled as 'sentiment', the name"
    ):
        recipe_of("default", [other, 'register_as={"base":"reviews-base"}'])
    with pytest.raises(
        ConfigError, match=r"recipe topics would register a model of task topics as 'sentiment', the name of"
    ):
        recipe_of("topics", ['register_as={"base":"posts-base"}'])  # the default is another recipe's name
    named = recipe_of("default", [other, 'register_as={"base":"reviews-base","task":"reviews"}'])
    assert names(named) == {"reviews", "reviews-base"}
    assert names(recipe_of("default", ['register_as={"base":"more"}'])) == {"sentiment", "more"}  # its own task's name


def test_every_sample_is_listed_with_its_licence() -> None:
    (table,) = re.findall(r"\| sample \|.*?\n\n", (DOCS / "data.md").read_text(), re.DOTALL)
    listed = set(re.findall(r"`(\w+)`", "\n".join(row.split("|")[1] for row in table.splitlines()[2:] if row)))
    assert listed == set(SAMPLES)


def test_the_table_of_the_tasks_has_the_titles_that_make_tasks_prints() -> None:
    table = (DOCS / "tasks.md").read_text().split("<!-- table -->")[1].split("<!-- /table -->")[0]
    for recipe, title in (row.split("|")[1:3] for row in table.strip().splitlines()[2:]):
        made = recipes.load(recipe.strip(" `")).task
        assert made
        metrics = getattr(task.of(made.name), "METRICS", None) or form.of(task.form_of(made.name)).METRICS
        assert title.strip() in {task_table.title(metric) for metric in metrics}, recipe
