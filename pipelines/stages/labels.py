"""labels: what many fine-tunings with few and many labels reached, as one table and one picture.

The one idea: the figure that matters for few labels is a curve, each point of it over several draws of the labels, beside
the same fine-tuning from random weights and beside TF-IDF on the very same labels.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator
from typing import Any

from model import durable
from pipelines.engine.step import Attempt, Stage

STAGE = Stage("labels", 2, "pipelines.stages.labels:run")
TFIDF = "TF-IDF + logistic regression"


def run(attempt: Attempt) -> dict[str, Any]:
    """Write labels.json, labels.md and labels.svg from the evaluations of all points; returns the means by curve."""
    every = len(attempt.inputs["train"].path("train.jsonl").read_bytes().splitlines())
    points = [
        {
            "curve": point["curve"],
            "labels": point["labels"] or every,
            "metrics": durable.read_json(attempt.inputs[point["evaluation"]].path("metrics.json")),
        }
        for point in attempt.config["points"]
    ]
    curves = summarised(points)
    durable.write_json(attempt.outputs / "labels.json", curves)
    durable.write_bytes(attempt.outputs / "labels.md", "".join(line + "\n" for line in table(curves)).encode())
    _draw(curves, attempt)
    return {
        f"{_name(curve['curve'])}_{point['labels']}": point["mean"] for curve in curves for point in curve["points"]
    }


def summarised(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One entry a curve: its accuracy at each number of labels, mean, lowest and highest over the draws."""
    found: dict[str, dict[int, list[float]]] = {}
    for point in points:
        found.setdefault(point["curve"], {}).setdefault(point["labels"], []).append(point["metrics"]["accuracy"])
    # Every curve's evaluation has the TF-IDF of the same labels beside it: that of the curve with most draws has all of them.
    ((most_drawn, _),) = Counter(point["curve"] for point in points).most_common(1)
    for point in (point for point in points if point["curve"] == most_drawn):
        found.setdefault(TFIDF, {}).setdefault(point["labels"], []).append(point["metrics"]["tfidf_accuracy"])
    return [
        {
            "curve": name,
            "points": [
                {"labels": labels, "mean": round(statistics.fmean(values), 6), "low": min(values), "high": max(values), "draws": len(values)}
                for labels, values in sorted(by_labels.items())
            ],
        }
        for name, by_labels in found.items()
    ]  # fmt: skip


def table(curves: list[dict[str, Any]]) -> Iterator[str]:
    """A Markdown table: a row for each number of labels, a column for each curve; mean (lowest to highest)."""
    yield "| labels | " + " | ".join(curve["curve"] for curve in curves) + " |"
    yield "| ---: |" + " :---: |" * len(curves)
    for row in zip(*(curve["points"] for curve in curves), strict=True):
        cells = [f"{point['mean']:.1%} ({point['low']:.1%} to {point['high']:.1%})" for point in row]
        yield f"| {row[0]['labels']:,} | " + " | ".join(cells) + " |"


def _name(curve: str) -> str:
    """A curve's name as MLflow takes it for a metric."""
    return "".join(letter if letter.isalnum() else "_" for letter in curve)


def _draw(curves: list[dict[str, Any]], attempt: Attempt) -> None:
    """labels.svg: accuracy over the number of labels. No date and no random ids in it: equal curves, equal bytes."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "gptline"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for curve in curves:
        labels = [point["labels"] for point in curve["points"]]
        (line,) = axes.plot(labels, [point["mean"] for point in curve["points"]], marker="o", label=curve["curve"])
        low, high = ([point[end] for point in curve["points"]] for end in ("low", "high"))
        axes.fill_between(labels, low, high, alpha=0.15, color=line.get_color())
    axes.set(xscale="log", xlabel="labelled examples", ylabel="accuracy on the held-out test set")
    axes.legend()
    axes.grid(alpha=0.3)
    with durable.writing(attempt.outputs / "labels.svg") as draft:
        figure.savefig(draft, format="svg", metadata={"Date": None})
    pyplot.close(figure)
