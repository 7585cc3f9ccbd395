"""What the tasks reached, as one table: ours beside the baselines, on how many test examples, and how long it took.

The one idea: a task says which of its metrics and baselines matter (`METRICS`, in its module or its form's), and the table
reads them from the records of the runs, and from their reports how far ours is from each baseline by more than noise. No
figure stands here that a run did not write.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from model import durable
from pipelines.engine.step import Planned
from pipelines.forms import form
from pipelines.tasks import task

_LESS_IS_BETTER = ("perplexity", "bits_per_byte", "repetition")
_SHARES = ("accuracy", "exact_match")  # shown in percent
_POINTS = ("bleu", "chrf", "perplexity")  # shown with one digit after the point
_OF_ALL = ("perplexity", "bits_per_byte")  # of each test example, where only some are asked for an answer
_BENCHMARK = "_benchmark"  # after the name of a metric: on somebody else's test set, with its own number of examples
_TITLES = {"bleu": "BLEU", "chrf": "chrF", "f1": "F1", "macro_f1": "macro-F1", "tfidf": "TF-IDF"}
LEGEND = (
    "bold: as good as ours or better; ~: within noise, the paired 95 % interval of the difference holds 0 "
    "(distinct-n, macro-F1, a span's exact match and the majority class are not paired)"
)


@dataclass(frozen=True)
class Row:
    """One metric of one task."""

    recipe: str
    task: str
    metric: str
    ours: float
    interval: tuple[float, float] | None
    baselines: dict[str, float]
    examples: int
    seconds: float
    within_noise: tuple[str, ...] = ()  # the baselines that ours is not told from by these examples

    @property
    def beaten(self) -> list[str]:
        """The baselines that are no better than ours."""
        sign = -1 if self.metric.endswith(_LESS_IS_BETTER) else 1
        return [name for name, theirs in self.baselines.items() if sign * self.ours > sign * theirs]


def rows(recipe: str, name: str, planned: Mapping[str, Planned]) -> Iterator[Row]:
    """The rows of task `name` from the steps of a run that is done."""
    record = planned["evaluate-task"].record
    assert record is not None
    m: Mapping[str, Any] = record.metrics
    seconds = sum(step.record.seconds for step in planned.values() if step.record)
    report = _report(planned["evaluate-task"])
    chosen = getattr(task.of(name), "METRICS", None) or form.of(task.form_of(name)).METRICS
    for metric, baselines in chosen.items():
        if metric in m:
            interval = (m[f"{metric}_low"], m[f"{metric}_high"]) if f"{metric}_low" in m else None
            simple = {one: m[f"{one}_{metric}"] for one in baselines if f"{one}_{metric}" in m}
            close = tuple(one for one in simple if _holds_zero(_paired(report, one, metric)))
            yield Row(recipe, name, metric, m[metric], interval, simple, _examples(metric, m), seconds, close)


def _examples(metric: str, m: Mapping[str, Any]) -> int:
    """How many test examples a metric rests on."""
    if metric.endswith(_BENCHMARK):
        return int(m[f"examples{_BENCHMARK}"])
    return int(m["examples"] if metric in _OF_ALL else m.get("asked", m["examples"]))


def _report(step: Planned) -> Mapping[str, Any]:
    """The report beside a step's metrics, where there is one."""
    file = step.folder / "outputs" / "report.json" if step.folder else None
    return durable.read_json(file) if file and file.exists() else {}


def _paired(report: Mapping[str, Any], baseline: str, metric: str) -> Sequence[float | None]:
    """The paired interval of ours minus a baseline's figure, as the report of its form has it; none where it has none."""
    if metric.endswith(_BENCHMARK):
        return _paired(report.get("benchmark", {}), baseline, metric.removesuffix(_BENCHMARK))
    if (baseline, metric) == ("tfidf", "accuracy"):
        interval = report.get("against_tfidf", {}).get("accuracy_gain_interval_by_group", ())
        return (None, None) if interval is None else interval
    found = report.get("against", {}).get(baseline, {})
    found = found if metric == "f1" and "low" in found else found.get(metric, {})  # of a span it is F1's
    return (found["low"], found["high"]) if found else ()


def _holds_zero(interval: Sequence[float | None]) -> bool:
    """Whether it says that there may be no difference; so does one that is missing for want of groups."""
    return bool(interval) and (interval[0] is None or interval[1] is None or interval[0] <= 0 <= interval[1])


def markdown(found: Iterable[Row]) -> Iterator[str]:
    """The table, in Markdown. A baseline that is as good as ours or better is in bold, one within noise has a ~."""
    yield "| recipe | metric | ours (95 % interval) | baselines (**not beaten**, ~ within noise) | test examples | minutes |"
    yield "|---|---|---:|---|---:|---:|"
    for row in found:
        interval = f" ({' to '.join(shown(row.metric, end) for end in row.interval)})" if row.interval else ""
        simple = ", ".join(_baseline(row, name) for name in row.baselines)
        yield (
            f"| `{row.recipe}` | {title(row.metric)} | {shown(row.metric, row.ours)}{interval} | {simple} | "
            f"{row.examples:,} | {row.seconds / 60:.1f} |"
        )


def _baseline(row: Row, name: str) -> str:
    text = f"{title(name)} {'~' if name in row.within_noise else ''}{shown(row.metric, row.baselines[name])}"
    return text if name in row.beaten else f"**{text}**"


def title(name: str) -> str:
    """A metric's or baseline's name as people write it."""
    if name.endswith(_BENCHMARK):
        return f"{title(name.removesuffix(_BENCHMARK))} on the benchmark"
    return _TITLES.get(name, name.replace("_", " "))


def shown(metric: str, value: float) -> str:
    """A figure with as many digits as it is worth."""
    metric = metric.removesuffix(_BENCHMARK)
    if metric.endswith(_SHARES):
        return f"{value:.1%}"
    return f"{value:.1f}" if metric.endswith(_POINTS) else f"{value:.3f}"
