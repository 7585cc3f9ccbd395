"""MLflow runs that mirror what the pipeline does: one parent run an execution, one nested run a step.

The one idea: nothing is *sent*, things are made *so*. Each run has a wanted state here (tags, parameters, points,
outcome); a thread of its own compares it with the store and supplies what is missing. Runs are found by tags that
name the work, points by their step. So a restart, an outage or a request whose answer was lost needs no special
case: the next comparison finds what arrived, and each thing is there once.

Training never waits for MLflow. What could not be delivered when the pipeline ends is kept in the outbox, a file
in the work directory, and delivered by the next pipeline. The file is there from the start to the end of a pipeline:
who finds it knows that one was killed, or could not deliver, and that MLflow may lack something.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from model import durable
from pipelines import registry
from pipelines.metric_files import MetricFile, loss_curve, numbers, system_points
from pipelines.wanted_runs import Outcome, Status, WantedRun, params

_POLL = 2.0  # seconds between two looks at the metrics files
_SAMPLE = 10.0  # seconds between two system samples
_REFUSALS = 3  # times that MLflow may refuse a run before it is given up
_LONGEST_WAIT = 30.0  # seconds between two attempts while the store is away
_METRICS_A_BATCH, _ITEMS_A_BATCH, _TAG = 1000, 100, 5000  # MLflow's limits; the last in characters

log = logging.getLogger(__name__)


class StepRun:
    """The run of one step while the step is at work. Its methods return at once and never raise for MLflow."""

    def __init__(self, wanted: WantedRun, wake: threading.Event) -> None:
        self.wanted = wanted
        self._wake = wake
        self._files: list[MetricFile] = []
        self._reading = threading.Lock()

    def follow(self, *paths: Path) -> None:
        """Mirror these JSON-lines files, as they grow, until `finish`. They need not exist yet."""
        self._files += [MetricFile(path) for path in paths]

    def read(self) -> None:
        """Take up what the files have gained. Called by the tracker's thread, and by `finish`."""
        with self._reading:
            for file in self._files:
                points = file.read()
                self.wanted.points.extend(points)
                self.wanted.curve += [point for point in points if point.key == "loss"]

    def finish(self, status: Status, metrics: Mapping[str, Any], artifacts: Sequence[Path] = ()) -> None:
        """Say how the step ended. Call it while the followed files are still there; `artifacts` have to stay.

        Numbers in `metrics` become metrics, other plain values tags.
        """
        self.read()
        if bad := sum(file.bad_lines for file in self._files):
            log.warning(
                "step %s: %d lines of its metrics files are not valid and are not in MLflow", self.wanted.name, bad
            )
        facts = {f"gptline.result.{key}": value for key, value in metrics.items() if isinstance(value, str)}
        self.wanted.tags |= facts
        kept = [str(path) for path in artifacts]
        self.wanted.outcome = Outcome(status, _now(), dict(numbers(metrics)), kept)
        self._wake.set()

    def leave(self) -> None:
        """Say no more about the run: it is somebody else's who does the same step."""
        self.wanted.closed = True


class Tracker:
    """Mirrors one pipeline execution to the MLflow store at `location`, in a thread of its own."""

    def __init__(self, location: str | Path, outbox: Path, experiment: str = registry.EXPERIMENT) -> None:
        self._location = location
        self._outbox = outbox
        self._experiment = experiment
        self._client: Any = None
        self._wake = threading.Event()
        self._ending = threading.Event()
        self._trouble = ""
        self._refused: list[str] = []
        self._sampled = time.monotonic()
        # What an earlier pipeline could not deliver comes first.
        self._runs = [WantedRun.from_json(content) for content in durable.read_json(outbox)] if outbox.exists() else []
        self._steps: list[StepRun] = []
        self._done_before: list[WantedRun] = []
        self._parent: WantedRun | None = None
        self._thread = threading.Thread(target=self._mirror, name="mlflow mirror", daemon=True)

    def start_execution(self, key: str, recipe: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        """Begin, or continue, the parent run of the execution `key`. Returns at once; MLflow is imported elsewhere."""
        identity = {"gptline.execution": key}
        self._parent = WantedRun(str(recipe.get("name", "pipeline")), identity, params(recipe), dict(tags))
        self._keep([run for run in self._runs if run.outcome is not None])
        self._runs.append(self._parent)
        self._thread.start()

    def start_step(self, name: str, fingerprint: str, config: Mapping[str, Any], tags: Mapping[str, str]) -> StepRun:
        """Begin, or continue, the nested run of a step."""
        step = self._step_run(name, fingerprint, config, tags)
        self._steps.append(step)
        self._runs.append(step.wanted)
        self._wake.set()
        return step

    def _step_run(self, name: str, fingerprint: str, config: Mapping[str, Any], tags: Mapping[str, str]) -> StepRun:
        assert self._parent is not None, "start_execution comes first"
        identity = {"gptline.step": name, "gptline.fingerprint": fingerprint}
        parent = self._parent.identity["gptline.execution"]
        return StepRun(WantedRun(name, identity, params(config), dict(tags), parent), self._wake)

    def reuse_step(self, name: str, fingerprint: str) -> None:
        """Note on the parent run that a step was done already."""
        assert self._parent is not None, "start_execution comes first"
        self._parent.tags[f"gptline.reused.{name}"] = fingerprint

    def confirm_step(
        self,
        name: str,
        fingerprint: str,
        config: Mapping[str, Any],
        tags: Mapping[str, str],
        metrics: Mapping[str, Any],
        curve: Path,
        artifacts: Sequence[Path] = (),
    ) -> None:
        """See to it that a step that was done before has its finished run: who did it may have been killed before.

        A run that the store has as FINISHED is left as it is; asking that is all it costs. `curve` is a metrics file.
        """
        self.reuse_step(name, fingerprint)
        step = self._step_run(name, fingerprint, config, tags)
        step.follow(curve)
        step.finish("FINISHED", metrics, artifacts)
        # The thread must not meet the run before it knows that this step was done before.
        self._done_before.append(step.wanted)
        self._runs.append(step.wanted)

    def finish_execution(self, status: Status | None, patience: float = 60.0) -> str | None:
        """End the parent run and deliver what is left, for `patience` seconds. None, or what was not delivered, and why.

        What may still succeed is in the outbox then: the next pipeline delivers it. With no `status` the parent run
        is left as it is: the same execution goes on elsewhere.
        """
        assert self._parent is not None, "start_execution comes first"
        for step in self._steps:
            if step.wanted.outcome is None and status is not None:
                step.finish(status, {})
        if status is None:
            self._parent.closed = True
        else:
            self._parent.outcome = Outcome(status, _now(), {}, [])
        self._ending.set()
        self._wake.set()
        self._thread.join(patience)
        left = [run for run in self._runs if not run.closed]
        problems = [f"MLflow at {self._location} refused {refused}" for refused in self._refused]
        if left:
            self._keep(left)
            names, why = ", ".join(run.name for run in left), self._trouble or "it is slow"
            problems.append(
                f"MLflow at {self._location} did not take all of: {names} ({why}); kept in {self._outbox} for the next run"
            )
        else:
            self._outbox.unlink(missing_ok=True)
        return "; ".join(problems) or None

    def _keep(self, runs: Sequence[WantedRun]) -> None:
        durable.write_json(self._outbox, [run.as_json() for run in runs])

    def _mirror(self) -> None:
        """The thread: look, deliver, wait; longer while the store is away."""
        system_points()  # the machine's load is measured from here on
        failures = 0
        while True:
            try:
                self._observe()
                self._deliver()
                failures = 0
            except Exception as error:  # whatever it is, training goes on; finish_execution reports it
                failures += 1
                self._note(error)
            if self._ending.is_set() and all(run.closed for run in self._runs):
                return
            patience = min(_POLL * 2 ** min(failures, 8), _LONGEST_WAIT)
            self._wake.wait(min(patience, 1.0) if self._ending.is_set() else patience)
            self._wake.clear()

    def _observe(self) -> None:
        """Read the followed files and, every 10 s, the machine's load."""
        working = [step for step in self._steps if step.wanted.outcome is None and not step.wanted.closed]
        for step in working:
            step.read()
        if time.monotonic() - self._sampled >= _SAMPLE:
            self._sampled = time.monotonic()
            for step in working:
                step.wanted.points.extend(system_points())

    def _note(self, error: Exception) -> None:
        """Remember the trouble and say it, once."""
        summary = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
        if summary != self._trouble:
            log.warning("MLflow at %s: %s; the pipeline goes on, tracking will be caught up", self._location, summary)
        self._trouble = summary

    def _deliver(self) -> None:
        """Supply what the store lacks. Its own trouble ends the attempt, one run's trouble only that run."""
        if self._client is None:
            self._client = registry.connect(self._location)
        for run in [run for run in self._runs if not run.closed]:
            try:
                if self._is_finished_already(run):
                    run.closed = True
                    continue
                self._open(run)
                self._log_points(run)
                if run.outcome is not None and not run.points:
                    self._close(run, run.outcome)
            except Exception as error:
                run.forget()
                if getattr(error, "error_code", "") != "INVALID_PARAMETER_VALUE":
                    raise
                self._note(error)
                self._refuse(run, error)

    def _is_finished_already(self, run: WantedRun) -> bool:
        """Whether a step that was done before this pipeline has all it needs in the store."""
        if not any(run is done for done in self._done_before):
            return False
        found = registry.find_run(self._client, run.identity, self._experiment)
        return found is not None and found.info.status == "FINISHED"

    def _refuse(self, run: WantedRun, error: Exception) -> None:
        """Give up a run that MLflow understands and refuses, after a few tries: asking for ever would not help."""
        run.refusals += 1
        if run.refusals == _REFUSALS:
            run.closed = True
            self._refused.append(f"{run.name} ({error})")

    def _open(self, run: WantedRun) -> None:
        """Find or create the run, mark it as running, and bring its parameters and tags up to date."""
        from mlflow.entities import Param, RunTag

        wanted = dict(run.tags)
        if run.run_id is None:
            if run.parent is not None:
                wanted["mlflow.parentRunId"] = self._run_of({"gptline.execution": run.parent}, "pipeline").info.run_id
            found = self._run_of(run.identity, run.name)
            new = [Param(key, value) for key, value in run.params.items() if key not in found.data.params]
            for start in range(0, len(new), _ITEMS_A_BATCH):
                self._client.log_batch(found.info.run_id, params=new[start : start + _ITEMS_A_BATCH])
            self._client.update_run(found.info.run_id, status="RUNNING", name=run.name)
            run.started = found.info.start_time
            run.run_id = found.info.run_id
        untold = {key: value for key, value in wanted.items() if run.told.get(key) != value}
        tags = [RunTag(key, value[:_TAG]) for key, value in untold.items()]
        for start in range(0, len(tags), _ITEMS_A_BATCH):
            self._client.log_batch(run.run_id, tags=tags[start : start + _ITEMS_A_BATCH])
        run.told |= untold

    def _run_of(self, identity: dict[str, str], name: str) -> Any:
        return registry.find_or_create_run(self._client, identity, name, self._experiment)

    def _log_points(self, run: WantedRun) -> None:
        """Log what the store has not, in order, in batches."""
        from mlflow.entities import Metric

        while batch := list(islice(run.points, _METRICS_A_BATCH)):
            fresh = []
            for point in batch:
                step = (point.timestamp - run.started) // 1000 if point.step is None else point.step
                if step not in self._steps_of(run, point.key):
                    run.steps[point.key].add(step)
                    fresh.append(Metric(point.key, point.value, point.timestamp, step))
            if fresh:
                self._client.log_batch(run.run_id, metrics=fresh)
            for _ in batch:
                run.points.popleft()

    def _steps_of(self, run: WantedRun, key: str) -> set[int]:
        """The steps at which the store has a point of the metric; asked once, and again after trouble."""
        if key not in run.steps:
            run.steps[key] = {metric.step for metric in self._client.get_metric_history(run.run_id, key)}
        return run.steps[key]

    def _close(self, run: WantedRun, outcome: Outcome) -> None:
        """Figures, picture and files, and the status last: who sees it FINISHED sees all of it."""
        from mlflow.entities import Metric

        self._open(run)  # the tags that came with the outcome
        figures = []
        for key, value in outcome.figures.items():
            history = self._client.get_metric_history(run.run_id, key)
            if not history or history[-1].value != value:
                figures.append(
                    Metric(key, value, outcome.ended, max((metric.step for metric in history), default=-1) + 1)
                )
        for start in range(0, len(figures), _METRICS_A_BATCH):
            self._client.log_batch(run.run_id, metrics=figures[start : start + _METRICS_A_BATCH])
        if run.curve:
            self._client.log_figure(run.run_id, loss_curve(run.curve, run.name), "loss.png")
        for path in outcome.artifacts:
            if Path(path).exists():
                self._client.log_artifact(run.run_id, path)
            else:
                log.warning("%s is not there any more and is missing in MLflow's run %s", path, run.name)
        self._client.set_terminated(run.run_id, outcome.status, max(outcome.ended, run.started))
        run.closed = True


def _now() -> int:
    return int(1000 * time.time())
