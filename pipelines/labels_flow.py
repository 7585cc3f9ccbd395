"""The steps that measure how many labels a task needs: a fine-tuning and an evaluation for each point of each curve.

The one idea: every point is made of the steps that make a model, so a killed measurement goes on where it was, and one
more draw costs one more draw.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pipelines.config import Recipe
from pipelines.engine.step import Input, Step
from pipelines.labels_config import FewLabels, Start
from pipelines.stages import few_examples, labels

Build = Callable[[Recipe], list[Step]]


@dataclass(frozen=True)
class Point:
    """One fine-tuning: on so many labels (None: all) of one draw."""

    start: Start
    labels: int | None
    draw: int

    @property
    def name(self) -> str:
        """What its steps' names end with."""
        return f"{self.start.name}-{self.labels or 'all'}-{self.draw}"


def points(config: FewLabels) -> Iterator[Point]:
    """All points, the cheap ones first: a table with few draws is there early."""
    for draw in range(1, config.draws + 1):
        for count in (*config.labels, None):
            drawn = (start for start in config.starts if draw <= (start.draws or draw))
            yield from (Point(start, count, draw) for start in drawn)


def build(recipe: Recipe, whole: Build) -> list[Step]:
    """The steps of `recipe.few_labels`; `whole` gives those that would make a recipe's models."""
    assert recipe.few_labels
    steps: dict[str, Step] = {}
    made = list(points(recipe.few_labels))
    for start in recipe.few_labels.starts:
        for step in _before(recipe, start, whole):
            steps[step.name] = step
            if (
                step.name == "prepare_task"
            ):  # at once: that more are asked for than there are is said before anything trains
                steps |= {_drawn(point): _draw(point) for point in made if point.labels is not None}
    for point in made:
        steps |= {step.name: step for step in _point(recipe, point, whole)}
    return [*steps.values(), _table(recipe.few_labels)]


def _recipe(recipe: Recipe, start: Start) -> Recipe:
    """The recipe that makes the model of one curve."""
    own = {"finetune": start.finetune} if start.finetune else {}
    if start.pretrained is None:
        return recipe.model_copy(update={"few_labels": None} | own)
    nothing = dict.fromkeys(("shard", "tokenizer", "model", "pretrain", "few_labels"))
    return recipe.model_copy(update={"pretrained": start.pretrained} | nothing | own)


def _import(start: Start) -> str:
    """The step that imports what a curve begins with: its own one, or the recipe's, which all other curves share."""
    return f"import-{start.name}" if start.pretrained else "import"


def _before(recipe: Recipe, start: Start, whole: Build) -> Iterator[Step]:
    """What stands before fine-tuning. Two curves may begin with two imported models, each its own step."""
    for step in whole(_recipe(recipe, start)):
        if step.name == "finetune":
            return
        if step.name == "import":
            yield replace(step, name=_import(start))
        elif step.name not in ("evaluate-base", "register-base", "pull-base"):
            yield step


def _drawn(point: Point) -> str:
    """The step that draws the labels, which all curves share."""
    return f"labels-{point.labels}-{point.draw}"


def _draw(point: Point) -> Step:
    train = {"train": Input("prepare_task", "train.jsonl")}
    return Step(_drawn(point), few_examples.STAGE, {"labels": point.labels, "seed": point.draw}, train)


def _point(recipe: Recipe, point: Point, whole: Build) -> Iterator[Step]:
    """Fine-tune, evaluate: the recipe's own steps under the point's name, on the drawn labels."""
    made, few = _recipe(recipe, point.start), recipe.few_labels
    assert few and made.finetune
    tuned = few.tuned(made.finetune, point.labels, point.draw)
    steps = {step.name: step for step in whole(made.model_copy(update={"finetune": tuned}))}
    train = Input("prepare_task" if point.labels is None else _drawn(point), "train.jsonl")
    renamed = {"import": _import(point.start), "finetune": f"finetune-{point.name}"}
    for name, group in (("finetune", "examples"), ("evaluate-task", "train")):
        inputs = _renamed(steps[name].inputs, renamed) | {group: train}
        config = {**steps[name].config, **(_baseline(recipe) if name == "evaluate-task" else {})}
        yield replace(steps[name], name=f"{name.removesuffix('-task')}-{point.name}", config=config, inputs=inputs)


def _baseline(recipe: Recipe) -> dict[str, Any]:
    """So many labels and no more: TF-IDF may look at those of the validation split only where a model does, to stop early."""
    assert recipe.few_labels and recipe.finetune
    looks = any((start.finetune or recipe.finetune).early_stopping for start in recipe.few_labels.starts)
    return {} if looks else {"cross_validation": True}


def _renamed(inputs: Mapping[str, Input], names: Mapping[str, str]) -> dict[str, Any]:
    return {group: replace(source, step=names.get(source.step, source.step)) for group, source in inputs.items()}


def _table(config: FewLabels) -> Step:
    """The step that draws the picture. Its inputs are the evaluations and, for the number of all labels, the examples."""
    made = list(points(config))
    evaluations = {point.name: Input(f"evaluate-{point.name}", "metrics.json") for point in made}
    listed = [{"curve": point.start.name, "labels": point.labels, "evaluation": point.name} for point in made]
    return Step(
        "labels", labels.STAGE, {"points": listed}, evaluations | {"train": Input("prepare_task", "train.jsonl")}
    )
