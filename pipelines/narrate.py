"""What a person sees of a run: progress while it lasts, a table and the results at its end.

The one idea: everything said here is read from records and outputs, so a run that had nothing to do says the same.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from cluster import apart
from cluster import site as sites
from pipelines import outbox
from pipelines import run as runs
from pipelines.engine import lease as leases
from pipelines.engine import record as records
from pipelines.engine.fingerprint import digest
from pipelines.engine.lease import Overtaken
from pipelines.engine.step import Attempt, Damaged, source_digests
from pipelines.errors import StepFailed, StepInterrupted, disk_trouble
from pipelines.results import Given, figure, results
from pipelines.run import Outcome, Workspace
from pipelines.store import StoreDamaged

_EVERY = 10.0  # seconds between two progress lines where there is no terminal


def run(workspace: Workspace, out: Console, err: Console, given: Given, wait: bool = True) -> list[Outcome]:
    """Run the workspace's flow and tell it; the outcome of each step. StepFailed or StepInterrupted after the reason was recorded, Busy without `wait`."""
    started = time.monotonic()
    try:
        outcomes = _run(workspace, out, err, wait)
    except (KeyboardInterrupt, SystemExit) as stop:  # SystemExit: Ray's own answer to SIGTERM, and ours
        raise StepInterrupted(f"stopped by a signal; what is finished is kept\nnext: {given.again()}") from stop
    _summary(workspace, outcomes, out, time.monotonic() - started, given)
    return outcomes


def _run(workspace: Workspace, out: Console, err: Console, wait: bool = True) -> list[Outcome]:
    """The outcome of each step, in order; the last one of a step that was walked again after damage was found."""
    began, trackers, outcomes = records.now(), list[Any](), dict[str, Outcome]()
    with _execution(workspace, out, trackers) as watch:
        for outcome in runs.run(
            workspace,
            watch,
            on_wait=lambda owner: err.print(f"waiting: {owner} is at work on this step", markup=False),
            on_damage=lambda damage: err.print(f"rebuilding: {damage}", markup=False),
            wait=wait,
        ):
            before = outcomes.get(outcome.record.step)
            done_now = outcome.done_now or (before is not None and before.done_now)
            outcomes[outcome.record.step] = replace(outcome, done_now=done_now)
        if not trackers and outbox.is_waiting(_outbox(workspace)):
            trackers.append(_tracker(workspace))  # an earlier run was killed, or MLflow was away: now is the time
        for tracker in trackers:
            for outcome in outcomes.values():
                if not outcome.done_now:
                    _confirm(tracker, outcome, began)
            if tracker.has_more_to_tell:
                _recover(tracker, workspace, {outcome.record.fingerprint for outcome in outcomes.values()})
    return list(outcomes.values())


def _confirm(tracker: Any, outcome: Outcome, began: str) -> None:
    """Tell MLflow of a step that was done before."""
    record, folder = outcome.record, outcome.planned.folder
    assert folder is not None
    if record.finished >= began and not leases.is_dead(leases.latest_owner(folder)):  # who made it just now mirrors it
        tracker.reuse_step(record.step, record.fingerprint)
        return
    tags = {f"gptline.input.{name}": record.inputs[name] for name in outcome.planned.step.inputs}
    curve = folder / "outputs" / "metrics.jsonl"
    tracker.confirm_step(
        record.step, record.fingerprint, record.config, tags, record.metrics, curve, _artifacts(folder)
    )


def _recover(tracker: Any, workspace: Workspace, told: set[str]) -> None:
    """Others were killed or their outbox is lost: tell MLflow of all finished steps that are on record here."""
    for folder in sorted((workspace.root / "steps").glob("*")):
        with contextlib.suppress(records.RecordDamaged):  # its own recipe's next run says so and makes it again
            record = records.read(folder)
            if record is not None and record.fingerprint not in told:
                tags = {f"gptline.input.{name}": value for name, value in record.inputs.items()}
                tracker.confirm_step(
                    record.step, record.fingerprint, record.config, tags, record.metrics,
                    folder / "outputs" / "metrics.jsonl", _artifacts(folder), reused=False,
                )  # fmt: skip


@contextlib.contextmanager
def _execution(workspace: Workspace, out: Console, tracker: list[Any]) -> Iterator[runs.Watch]:
    """The watch of one execution: progress, and tracking. The one `tracker` begins with the first step done now."""

    @contextlib.contextmanager
    def watch(attempt: Attempt) -> Iterator[None]:
        if not tracker:
            tracker.append(_tracker(workspace))
        with _tracked(tracker[0], attempt), _failures_told(attempt), _progress(attempt, out):
            yield

    status: str | None = "FAILED"
    try:
        yield watch
        status = "FINISHED"
    except (StepInterrupted, KeyboardInterrupt, SystemExit):
        status = "KILLED"
        raise
    except Overtaken:
        status = None  # the winner's execution has the same run
        raise
    finally:
        if tracker:
            undelivered = tracker[0].finish_execution(status)
            if undelivered:
                out.print(f"tracking: {undelivered}", markup=False)
            apart.end()


def _tracker(workspace: Workspace) -> Any:
    from pipelines.tracking import Tracker

    recipe = workspace.recipe.model_dump(mode="json")
    tracker = Tracker(workspace.execution.registry, _outbox(workspace))
    tags = {"gptline.recipe": workspace.recipe.name, "gptline.work": str(workspace.root)}
    tracker.start_execution(
        _execution_key(workspace),
        recipe,
        tags | {f"gptline.{key}": value for key, value in records.code_version().items()},
    )
    return tracker


def _execution_key(workspace: Workspace) -> str:
    """What tells executions apart: a run after a kill continues the same MLflow run, one over new data has its own."""
    recipe, sources = workspace.recipe.model_dump(mode="json"), [source_digests(step) for step in workspace.steps]
    return digest({"recipe": recipe, "sources": sources, "work": str(workspace.root)})


def _outbox(workspace: Workspace) -> Path:
    return workspace.root / f"outbox-{_execution_key(workspace)[:16]}.json"


@contextlib.contextmanager
def _tracked(tracker: Any, attempt: Attempt) -> Iterator[None]:
    """One nested MLflow run, which mirrors the attempt's metrics while it works and its outcome at the end."""
    tags = {f"gptline.input.{name}": source.digest for name, source in attempt.inputs.items()}
    tracked = tracker.start_step(attempt.name, attempt.fingerprint, attempt.config, tags)
    tracked.follow(attempt.scratch / "metrics.jsonl", attempt.scratch / "progress.jsonl")
    try:
        yield
    except (StepInterrupted, KeyboardInterrupt, SystemExit):
        tracked.finish("KILLED", {}, [])
        raise
    except Overtaken:
        tracked.leave()  # the winner's run is the same one, and goes on
        raise
    except BaseException:
        tracked.finish("FAILED", {}, [])
        raise
    tracked.finish("FINISHED", attempt.metrics, _artifacts(attempt.folder))


def _artifacts(folder: Path) -> list[Path]:
    """The outputs of a step that are kept with its MLflow run: the small files."""
    return sorted(path for path in (folder / "outputs").glob("*") if path.is_file() and path.stat().st_size < 1 << 20)


@contextlib.contextmanager
def _failures_told(attempt: Attempt) -> Iterator[None]:
    """Any failure of a step's work names the step, the reason, and where its files and logs are.

    Damage and overtaking are no failures of the work: who runs the steps knows what to do about them.
    """
    try:
        yield
    except (Damaged, Overtaken, StepInterrupted, StoreDamaged):
        raise
    except Exception as error:
        from pipelines.stages.training import Interrupted

        if isinstance(error, Interrupted):
            raise StepInterrupted(str(error)) from error
        reason = disk_trouble(error) or str(error) or type(error).__name__
        logs = f"\nRay's logs are in {_ray_logs(attempt.execution)}" if apart.used() else ""
        raise StepFailed(
            f"step {attempt.name} failed: {type(error).__name__}: {reason}\n"
            f"its files are in {attempt.scratch} until the step is run again{logs}\n"
            "next: mend the cause and give the same command; what is finished is kept"
        ) from error


def _ray_logs(execution: Mapping[str, Any]) -> str:
    """Where the Ray that was used writes: one started for the run, or the site's."""
    ray = sites.read(execution["site"]).ray if execution["site"] else None
    return f"{ray.temp if ray else '/tmp/ray'}/session_latest/logs"


@contextlib.contextmanager
def _progress(attempt: Attempt, out: Console) -> Iterator[None]:
    """A live bar on a terminal, a line now and then elsewhere, and a line when the step is done."""
    started = time.monotonic()
    out.print(f"{attempt.name} ...", markup=False, end="\r" if out.is_terminal else "\n")
    if out.is_terminal:
        with _bar(attempt, out):
            yield
    else:
        attempt.report = _lines(attempt.name, out)
        yield
    out.print(f"{attempt.name:<16} done in {time.monotonic() - started:5.1f} s", markup=False)


@contextlib.contextmanager
def _bar(attempt: Attempt, out: Console) -> Iterator[None]:
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description:<16}"), BarColumn(), TextColumn("{task.completed:.0f}/{task.total:.0f} {task.fields[unit]}"),
        TimeRemainingColumn(), TextColumn("{task.fields[figures]}"),
    )  # fmt: skip
    with Progress(*columns, console=out, transient=True) as progress:
        task = progress.add_task(attempt.name, total=1, unit="", figures="")

        begun = time.monotonic()

        def report(done: float, total: float, unit: str, **figures: float | str) -> None:
            speed = f"{done / (time.monotonic() - begun + 1e-9):,.1f} {unit}/s  "
            progress.update(task, completed=done, total=total, unit=unit, figures=speed + _figures(figures))

        attempt.report = report
        yield


def _lines(name: str, out: Console) -> Any:
    last = [time.monotonic()]
    begun = time.monotonic()

    def report(done: float, total: float, unit: str, **figures: float | str) -> None:
        if time.monotonic() - last[0] > _EVERY:
            last[0] = time.monotonic()
            told = [f"{done:.0f}/{total:.0f} {unit}"]
            if done:
                speed = done / (last[0] - begun)
                told += [f"{speed:,.1f} {unit}/s", f"{(total - done) / speed:.0f} s to go"]
            if figures:
                told += [_figures(figures)]
            out.print(f"  {name}: {', '.join(told)}", markup=False)

    return report


def _figures(figures: Mapping[str, float | str]) -> str:
    return "  ".join(f"{name.replace('_', ' ')} {value}" for name, value in figures.items())


def _summary(workspace: Workspace, outcomes: list[Outcome], out: Console, seconds: float, given: Given) -> None:
    """The table of steps, what was made, and the next commands."""
    done = [outcome for outcome in outcomes if outcome.done_now]
    if not done:
        out.print(f"nothing to do: all {len(outcomes)} steps of recipe {workspace.recipe.name} are done", markup=False)
    table = Table(box=None, pad_edge=False)
    for title in ("step", "what it did", "time", "key figure"):
        table.add_column(title, justify="right" if title == "time" else "left")
    for outcome in outcomes:
        record = outcome.record
        table.add_row(
            record.step, "done now" if outcome.done_now else "already done", f"{record.seconds:.1f} s", figure(record)
        )
    out.print(table)
    for line in results({outcome.record.step: outcome.planned for outcome in outcomes}, given):
        out.print(line, markup=False)
    out.print(f"\n{len(done)} of {len(outcomes)} steps done now, {seconds:.1f} s in all", markup=False)
