"""One MLflow run is made to say what it should.

The one idea: nothing is *sent*, things are made *so*. What a run should say is compared with what the store has, and
the difference is supplied; after trouble nothing is believed and the store is asked again. So a restart, an outage or
a request whose answer was lost needs no special case, and each thing is there once.
"""

from __future__ import annotations

import logging
from itertools import islice
from pathlib import Path
from typing import Any

from pipelines import mlflow_runs
from pipelines.fetching import check_address
from pipelines.metric_files import loss_curve
from pipelines.mlflow_runs import KEY_TAG, PARENT_TAG
from pipelines.wanted_runs import Outcome, WantedRun

_METRICS_A_BATCH, _ITEMS_A_BATCH, _TAG = 1000, 100, 5000  # MLflow's limits; the last in characters

log = logging.getLogger(__name__)


class Mirror:
    """A store's experiment, in which runs are made so. Every method may raise what MLflow raises."""

    def __init__(self, client: Any, experiment: str) -> None:
        self._client = client
        self._experiment = experiment

    def end_the_dead(self, parent: WantedRun) -> None:
        """Mark KILLED what killed pipelines of the same work directory left RUNNING."""
        key = parent.identity[KEY_TAG]
        mlflow_runs.end_the_dead(self._client, parent.tags.get(mlflow_runs.WORK_TAG, ""), key, self._experiment)

    def is_finished(self, run: WantedRun) -> bool:
        """Whether the store has the run as FINISHED."""
        found = mlflow_runs.find_run(self._client, run.identity, self._experiment)
        return found is not None and found.info.status == "FINISHED"

    def supply(self, run: WantedRun, close: bool) -> None:
        """Supply what the store lacks of the run; its end too, if it has ended and with `close`."""
        self._open(run)
        self._log_points(run)
        if close and run.outcome is not None and not run.points:
            self._close(run, run.outcome)

    def _open(self, run: WantedRun) -> None:
        """Find or create the run, mark it as running, and bring its parameters and tags up to date."""
        from mlflow.entities import Param, RunTag

        wanted = dict(run.tags)
        if run.parent is not None and PARENT_TAG not in run.told:
            wanted[PARENT_TAG] = self._run_of({KEY_TAG: run.parent}, "pipeline").info.run_id
        if run.run_id is None:
            found = self._run_of(run.identity, run.name)
            # Whoever may make experiments says where their runs' files go, and with whose credentials.
            check_address(str(self._client.tracking_uri), found.info.artifact_uri, f"MLflow's run {run.name}")
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
        return mlflow_runs.find_or_create_run(self._client, identity, name, self._experiment)

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
        self._open(run)  # the tags that came with the outcome
        self._log_figures(run, outcome)
        self._log_files(run, outcome)
        assert run.run_id is not None
        mlflow_runs.drop_doubles(self._client, run.identity, run.run_id, self._experiment)
        self._client.set_terminated(run.run_id, outcome.status, max(outcome.ended, run.started))
        run.closed = True

    def _log_figures(self, run: WantedRun, outcome: Outcome) -> None:
        """Figures that have no step: a new point where the last one says something else."""
        from mlflow.entities import Metric

        figures = []
        for key, value in outcome.figures.items():
            if key in run.filed:
                continue
            history = self._client.get_metric_history(run.run_id, key)
            if not history or history[-1].value != value:
                step = max((metric.step for metric in history), default=-1) + 1
                figures.append(Metric(key, value, outcome.ended, step))
            else:
                run.filed.add(key)
        for start in range(0, len(figures), _METRICS_A_BATCH):
            batch = figures[start : start + _METRICS_A_BATCH]
            self._client.log_batch(run.run_id, metrics=batch)
            run.filed |= {metric.key for metric in batch}

    def _log_files(self, run: WantedRun, outcome: Outcome) -> None:
        """The picture of the loss, and the files to keep; each again only if it is not known to have arrived."""
        if run.curve and "loss.png" not in run.filed:
            self._client.log_figure(run.run_id, loss_curve(run.curve, run.name), "loss.png")
            run.filed.add("loss.png")
        for path in outcome.artifacts:
            if path not in run.filed:
                if Path(path).exists():
                    self._client.log_artifact(run.run_id, path)
                else:
                    log.warning("%s is not there any more and is missing in MLflow's run %s", path, run.name)
                run.filed.add(path)
