"""What a person sees of a run: progress while it lasts, a table and the results at its end.

The one idea: everything said here is read from records and outputs, so a run that had nothing to do says the same.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from model import durable
from pipelines import run as runs
from pipelines.engine import lease as leases
from pipelines.engine.record import Record
from pipelines.engine.step import Attempt, Planned
from pipelines.errors import StepFailed, StepInterrupted
from pipelines.run import Outcome, Workspace

_EVERY = 10.0  # seconds between two progress lines where there is no terminal


def run(workspace: Workspace, out: Console, err: Console) -> None:
    """Run the workspace's flow and tell it. StepFailed or StepInterrupted after the reason was recorded."""
    started = time.monotonic()
    trackers: list[Any] = []
    with _execution(workspace, out, trackers) as watch:
        outcomes = list(
            runs.run(
                workspace,
                watch,
                on_wait=lambda owner: err.print(f"waiting: {owner} is at work on this step", markup=False),
                on_damage=lambda damage: err.print(f"rebuilding: {damage}", markup=False),
            )
        )
        for tracker in trackers:
            for outcome in outcomes:
                if not outcome.done_now:
                    tracker.reuse_step(outcome.record.step, outcome.record.fingerprint)
    _summary(workspace, outcomes, out, time.monotonic() - started)


@contextlib.contextmanager
def _execution(workspace: Workspace, out: Console, tracker: list[Any]) -> Iterator[runs.Watch]:
    """The watch of one execution: progress, and tracking. The one `tracker` begins with the first step done now."""

    @contextlib.contextmanager
    def watch(attempt: Attempt) -> Iterator[None]:
        if not tracker:
            tracker.append(_tracker(workspace))
        with _failures_told(attempt), _tracked(tracker[0], attempt), _progress(attempt, out):
            yield

    status = "FAILED"
    try:
        yield watch
        status = "FINISHED"
    except (StepInterrupted, KeyboardInterrupt):
        status = "KILLED"
        raise
    finally:
        if tracker:
            undelivered = tracker[0].finish_execution(status)
            if undelivered:
                out.print(f"tracking: {undelivered}", markup=False)
            _leave_ray()


def _leave_ray() -> None:
    if "ray" in sys.modules:
        from cluster import services

        services.disconnect()


def _tracker(workspace: Workspace) -> Any:
    from pipelines.engine.fingerprint import digest
    from pipelines.engine.record import code_version
    from pipelines.tracking import Tracker

    recipe = workspace.recipe.model_dump(mode="json")
    tracker = Tracker(workspace.execution.registry, workspace.root / "outbox.json")
    tags = {"gptline.recipe": workspace.recipe.name, "gptline.work": str(workspace.root)}
    tracker.start_execution(
        digest(recipe), recipe, tags | {f"gptline.{key}": value for key, value in code_version().items()}
    )
    return tracker


@contextlib.contextmanager
def _tracked(tracker: Any, attempt: Attempt) -> Iterator[None]:
    """One nested MLflow run, which mirrors the attempt's metrics while it works and its outcome at the end."""
    tags = {f"gptline.input.{name}": source.digest for name, source in attempt.inputs.items()}
    tracked = tracker.start_step(attempt.name, attempt.fingerprint, attempt.config, tags)
    tracked.follow(attempt.scratch / "metrics.jsonl", attempt.scratch / "progress.jsonl")
    try:
        yield
    except (StepInterrupted, KeyboardInterrupt):
        tracked.finish("KILLED", {}, [])
        raise
    except BaseException:
        tracked.finish("FAILED", {}, [])
        raise
    artifacts = [
        path for path in (attempt.folder / "outputs").glob("*") if path.is_file() and path.stat().st_size < 1 << 20
    ]
    tracked.finish("FINISHED", attempt.metrics, sorted(artifacts))


@contextlib.contextmanager
def _failures_told(attempt: Attempt) -> Iterator[None]:
    """Any failure of a step names the step, the reason, and where its files and logs are."""
    try:
        yield
    except KeyboardInterrupt:
        raise
    except Exception as error:
        from pipelines.stages.training import Interrupted

        if isinstance(error, Interrupted):
            raise StepInterrupted(str(error)) from error
        reason = str(error) or type(error).__name__
        raise StepFailed(
            f"step {attempt.name} failed: {type(error).__name__}: {reason}\n"
            f"its files and logs are in {attempt.scratch}\nnext: mend the cause and give the same command; what is finished is kept"
        ) from error


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
            speed = max(done, 1e-9) / (last[0] - begun)
            told = f"{done:.0f}/{total:.0f} {unit}, {speed:,.1f} {unit}/s, {(total - done) / speed:.0f} s to go"
            out.print(f"  {name}: {told}, {_figures(figures)}", markup=False)

    return report


def _figures(figures: Mapping[str, float | str]) -> str:
    return "  ".join(f"{name.replace('_', ' ')} {value}" for name, value in figures.items())


def _summary(workspace: Workspace, outcomes: list[Outcome], out: Console, seconds: float) -> None:
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
    for line in results(workspace, {outcome.record.step: outcome.planned for outcome in outcomes}):
        out.print(line, markup=False)
    out.print(f"\n{len(done)} of {len(outcomes)} steps done now, {seconds:.1f} s in all", markup=False)


def figure(record: Record) -> str:
    """The one figure of a step that says most."""
    m = record.metrics
    match record.stage:
        case "prepare_task":
            return f"{m['train_examples']:,} to train, {m['test_examples']:,} to test"
        case "shard":
            documents, size = (m[f"train_{name}"] + m[f"heldout_{name}"] for name in ("documents", "bytes"))
            dropped = m["duplicates"] + m["contaminated"] + m["rejected"]
            return f"{documents:,} documents, {size / 1e6:.1f} MB, {dropped:,} dropped"
        case "train_tokenizer":
            return f"vocabulary of {m['vocab_size']:,}"
        case "tokenize":
            return f"{m['train_tokens'] + m['heldout_tokens']:,} tokens, {m['bytes_per_token']:.2f} bytes each"
        case "pretrain" | "finetune":
            return f"loss {m['final_loss']:.3f}, {m['tokens_per_second']:,.0f} tokens/s"
        case "evaluate" if "accuracy" in m:
            return f"accuracy {m['accuracy']:.1%}, TF-IDF {m['tfidf_accuracy']:.1%}"
        case "evaluate":
            return f"{m['bits_per_byte']:.3f} bits per byte, xz {m['xz_bits_per_byte']:.3f}"
        case "register" | "pull":
            return f"{m['name']} version {m['version']}, {m['alias']}"
    return ""


def results(workspace: Workspace, planned: Mapping[str, Planned]) -> Iterator[str]:
    """What came out: versions, held-out metrics beside the baselines, folders, continuations, next commands."""
    released = [kind for kind in ("task", "base") if f"pull-{kind}" in planned]
    for kind in released:
        yield from _released(kind, planned)
    if not released:
        return
    folder = planned["evaluate-base"].folder
    assert folder is not None
    yield "\nthe base model continues held-out text:"
    for sample in durable.read_json(folder / "outputs" / "continuations.json"):
        yield f"  {sample['prompt']!r} -> {sample['continuation']!r}"
    name = _record(planned[f"register-{released[0]}"]).metrics["name"]
    recipe = "" if workspace.recipe.name == "default" else f" RECIPE={workspace.recipe.name}"
    yield "\nnext:"
    commands = {
        "make ui": "MLflow: runs, curves, versions",
        f"make pull MODEL={name}@champion DEST=/tmp/{name}": "the model elsewhere",
        'make generate PROMPT="To be"': "the base model continues a text",
        f"make run{recipe}": "again: does only what changed",
    }
    yield from (f"  {command:<48} # {what}" for command, what in commands.items())


def _record(planned: Planned) -> Record:
    assert planned.record is not None
    return planned.record


def _released(kind: str, planned: Mapping[str, Planned]) -> Iterator[str]:
    registered, measured = _record(planned[f"register-{kind}"]).metrics, _record(planned[f"evaluate-{kind}"]).metrics
    folder = planned[f"pull-{kind}"].folder
    assert folder is not None
    yield f"\n{registered['name']} version {registered['version']}, alias {registered['alias']} ({registered['gates']})"
    if kind == "task":
        yield (
            f"  held-out accuracy {measured['accuracy']:.1%} ({measured['accuracy_low']:.1%} to {measured['accuracy_high']:.1%}), "
            f"macro-F1 {measured['macro_f1']:.3f} on {measured['examples']:,} sentences"
        )
        for baseline, title in (("majority", "majority class"), ("tfidf", "TF-IDF + logistic regression")):
            yield f"  {title}: accuracy {measured[f'{baseline}_accuracy']:.1%}, macro-F1 {measured[f'{baseline}_macro_f1']:.3f}"
    else:
        compared = ", ".join(f"{name} {measured[f'{name}_bits_per_byte']:.3f}" for name in ("unigram", "gzip", "xz"))
        yield f"  held-out {measured['bits_per_byte']:.3f} bits per byte (perplexity {measured['perplexity']:.1f} a token); {compared}"
    yield f"  pulled to {folder / 'outputs' / 'model'}"


def status(workspace: Workspace, out: Console, as_json: bool) -> None:
    """What is made, what is being made and by whom, what it measured."""
    rows: list[dict[str, Any]] = []
    for name, planned in runs.plan(workspace).items():
        owner = leases.current_owner(planned.folder) if planned.folder else None
        state = f"being made by {owner}" if owner else "done" if planned.done else "to do"
        record = planned.record
        rows.append(
            {"step": name, "state": state, "why": list(planned.reasons), "finished": record and record.finished,
             "seconds": record and record.seconds, "figure": figure(record) if record else "", "metrics": record and record.metrics}
        )  # fmt: skip
    if as_json:
        sys.stdout.write(
            json.dumps({"recipe": workspace.recipe.name, "work": str(workspace.root), "steps": rows}, indent=1) + "\n"
        )
        return
    table = Table(box=None, pad_edge=False)
    for title in ("step", "state", "finished", "time", "key figure"):
        table.add_column(title)
    for row in rows:
        finished = str(row["finished"])[:19].replace("T", " ") if row["finished"] else ""
        table.add_row(
            row["step"], row["state"], finished, f"{row['seconds']:.1f} s" if row["seconds"] else "", row["figure"]
        )
    out.print(table)
    out.print(f"work directory {_size(workspace.root)}; next: make plan (why), make run (do it)", markup=False)


def _size(root: Path) -> str:
    total = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
    return f"{root}: {total / 1e6:.1f} MB"
