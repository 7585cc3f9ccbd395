"""MLflow runs that mirror what the pipeline does: one parent run an execution, one nested run a step.

The one idea: each run has a wanted state here (tags, parameters, points, outcome), and a thread of its own makes it so
(see `mirror.py`), for as long as it takes. Training never waits for MLflow. What could not be delivered when the pipeline ends is kept in the outbox, a file
in the work directory, and delivered by the next pipeline. The file is there from the start to the end of a pipeline:
who finds it knows that one was killed, or could not deliver, and that MLflow may lack something.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines import registry
from pipelines.metric_files import MetricFile, numbers, system_points
from pipelines.mirror import Mirror
from pipelines.mlflow_runs import KEY_TAG, OWNER_TAG, owner_tag
from pipelines.outbox import Outbox
from pipelines.patience import is_away
from pipelines.wanted_runs import Outcome, Status, WantedRun, params

_POLL = 2.0  # seconds between two looks at the metrics files
_SAMPLE = 10.0  # seconds between two system samples
_REFUSALS = 3  # times that MLflow may refuse a run before it is given up
_LONGEST_WAIT = 30.0  # seconds between two attempts while the store is away

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
        self._outbox = Outbox(outbox)
        self._experiment = experiment
        self._mirrored: Mirror | None = None
        self._wake = threading.Event()
        self._ending = threading.Event()
        self._given_up = threading.Event()
        self._trouble = ""
        self._refused: list[str] = []
        self._sampled = time.monotonic()
        self._runs = self._outbox.take()  # what an earlier pipeline could not deliver comes first
        self._steps: list[StepRun] = []
        self._done_before: list[WantedRun] = []
        self._parent: WantedRun | None = None
        self._thread = threading.Thread(target=self._mirror, name="mlflow mirror", daemon=True)

    @property
    def has_more_to_tell(self) -> bool:
        """Whether other killed pipelines had more to say than they kept: `confirm_step` then tells what records say."""
        return self._outbox.incomplete

    def start_execution(self, key: str, recipe: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        """Begin, or continue, the parent run of the execution `key`. Returns at once; MLflow is imported elsewhere."""
        said: dict[str, str] = {}
        for earlier in [run for run in self._runs if run.identity == {KEY_TAG: key}]:
            said |= earlier.tags  # it goes on: how it ended the last time is not the end
            self._runs.remove(earlier)
        owned = said | dict(tags) | {OWNER_TAG: owner_tag()}
        self._parent = WantedRun(str(recipe.get("name", "pipeline")), {KEY_TAG: key}, params(recipe), owned)
        self._outbox.keep([run for run in self._runs if run.outcome is not None])
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
        parent = self._parent.identity[KEY_TAG]
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
        reused: bool = True,
    ) -> None:
        """See to it that a step that was done before has its finished run: who did it may have been killed before.

        A run that the store has as FINISHED is left as it is; asking that is all it costs. `curve` is a metrics file.
        Without `reused` it is no step of this execution.
        """
        if reused:
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
        self._given_up.set()  # what is in the outbox is the next pipeline's: no late word of ours may cross it
        self._wake.set()
        left = [run for run in self._runs if not run.closed]
        problems = [f"MLflow at {self._location} refused {refused}" for refused in self._refused]
        if left:
            self._outbox.keep(left, ended=True)
            names, why = ", ".join(run.name for run in left), self._trouble or "it is slow"
            problems.append(
                f"MLflow at {self._location} did not take all of: {names} ({why}); kept in {self._outbox.path} for the next run"
            )
        else:
            self._outbox.clear()
        return "; ".join(problems) or None

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
            if self._given_up.is_set() or (self._ending.is_set() and all(run.closed for run in self._runs)):
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
        if self._mirrored is None:
            mirrored = Mirror(registry.connect(self._location), self._experiment)
            if self._parent is not None:
                mirrored.end_the_dead(self._parent)
            self._mirrored = mirrored
        for run in [run for run in self._runs if not run.closed]:
            self._supply(self._mirrored, run)
        for run in [run for run in self._runs if not run.closed and run.parent is None and run.outcome]:
            self._supply(self._mirrored, run)  # its steps' runs are closed by now

    def _supply(self, mirrored: Mirror, run: WantedRun) -> None:
        """Make one run so. What MLflow understands and refuses is given up after a few tries."""
        if self._given_up.is_set():
            return
        try:
            if any(run is done for done in self._done_before) and mirrored.is_finished(run):
                run.closed = True
                return
            mirrored.supply(run, close=not self._awaits_steps(run))
        except Exception as error:
            if is_away(error):
                run.doubt()  # progress is kept: a network that loses a request in twenty must not keep us for ever
                raise
            run.forget()
            if getattr(error, "error_code", "") != "INVALID_PARAMETER_VALUE":
                raise
            self._note(error)
            self._refuse(run, error)

    def _awaits_steps(self, run: WantedRun) -> bool:
        """Whether it is the parent of a run that is still open: a parent ends last."""
        key = run.identity.get(KEY_TAG)
        return key is not None and any(step.parent == key and not step.closed for step in self._runs)

    def _refuse(self, run: WantedRun, error: Exception) -> None:
        """Give up a run that MLflow refuses, after a few tries: asking for ever would not help."""
        run.refusals += 1
        if run.refusals == _REFUSALS:
            run.closed = True
            self._refused.append(f"{run.name} ({error})")


def _now() -> int:
    return int(1000 * time.time())
