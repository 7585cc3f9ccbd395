"""MLflow says what happened: once, in order, with a true status, whatever died or was away in between."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines import registry
from pipelines.metric_files import MetricFile
from pipelines.tracking import Tracker
from tests.pipelines.mlflow_views import RECIPE, eventually, history, line, runs

ROOT = Path(__file__).parents[2]


def _started(store: Path, tmp_path: Path, key: str) -> Tracker:
    tracker = Tracker(store, tmp_path / "outbox.json")
    tracker.start_execution(key, RECIPE, {"gptline.code": "abc"})
    return tracker


def test_a_step_is_a_nested_run_with_its_configuration_points_picture_and_samples(store: Path, tmp_path: Path) -> None:
    tracker = _started(store, tmp_path, "whole")
    step = tracker.start_step("pretrain", "f-whole", {"train": {"max_steps": 5}}, {"gptline.input.tokens": "d" * 64})
    step.follow(tmp_path / "metrics.jsonl", tmp_path / "progress.jsonl")
    (tmp_path / "metrics.jsonl").write_text("".join(line(n, learning_rate=0.1) for n in range(1, 6)))
    (tmp_path / "progress.jsonl").write_text('{"step": 5, "tokens_per_second": 700.0, "mfu": null, "time": 1e9}\n')
    (tmp_path / "samples.txt").write_text("Once upon a time")
    step.finish("FINISHED", {"final_loss": 2.0, "alias": "champion", "parts": {"n": 1}}, [tmp_path / "samples.txt"])
    tracker.reuse_step("shard", "f-shard")
    assert tracker.finish_execution("FINISHED") is None

    [parent], [run] = runs(store, {"gptline.execution": "whole"}), runs(store, {"gptline.fingerprint": "f-whole"})
    assert (parent.info.status, run.info.status) == ("FINISHED", "FINISHED")
    assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert run.data.params == {"train.max_steps": "5"}
    assert parent.data.params["pretrain.sources.1"] == "b"
    assert "".join(parent.data.params[part] for part in ("note", "note.part2", "note.part3")) == RECIPE["note"]
    assert parent.data.tags["gptline.reused.shard"] == "f-shard"
    assert run.data.tags["gptline.input.tokens"] == "d" * 64
    assert run.data.tags["gptline.result.alias"] == "champion"
    assert history(store, run) == [(n, 10.0 / n) for n in range(1, 6)]
    assert run.data.metrics["final_loss"] == 2.0
    assert run.data.metrics["parts.n"] == 1.0
    assert run.data.metrics["tokens_per_second"] == 700.0
    kept = {item.path for item in registry.connect(store).list_artifacts(run.info.run_id)}
    assert kept == {"loss.png", "samples.txt"}


def test_points_arrive_while_the_step_is_running(store: Path, tmp_path: Path) -> None:
    tracker = _started(store, tmp_path, "live")
    step = tracker.start_step("pretrain", "f-live", {}, {})
    step.follow(tmp_path / "metrics.jsonl")
    (tmp_path / "metrics.jsonl").write_text(line(1) + line(2)[:-5])
    eventually(lambda: [history(store, run) for run in runs(store, {"gptline.fingerprint": "f-live"})] == [[(1, 10.0)]])
    assert runs(store, {"gptline.fingerprint": "f-live"})[0].info.status == "RUNNING"
    step.finish("KILLED", {})
    assert tracker.finish_execution("KILLED") is None
    assert runs(store, {"gptline.fingerprint": "f-live"})[0].info.status == "KILLED"


def test_a_restart_continues_the_runs_and_repeats_no_point(store: Path, tmp_path: Path) -> None:
    for last, status in ((7, "FAILED"), (10, "FINISHED")):
        attempt = tmp_path / f"attempt-{last}"
        attempt.mkdir()
        tracker = _started(store, tmp_path, "restart")
        step = tracker.start_step("pretrain", "f-restart", {"a": 1}, {})
        step.follow(attempt / "metrics.jsonl")
        # The second attempt begins at a checkpoint: its file has the first steps again.
        (attempt / "metrics.jsonl").write_text("".join(line(n) for n in range(1, last + 1)))
        step.finish(status, {"final_loss": 1.0})  # type: ignore[arg-type]
        assert tracker.finish_execution(status) is None  # type: ignore[arg-type]
        [parent], [run] = (
            runs(store, {"gptline.execution": "restart"}),
            runs(store, {"gptline.fingerprint": "f-restart"}),
        )
        assert (parent.info.status, run.info.status) == (status, status)
    assert history(store, run) == [(n, 10.0 / n) for n in range(1, 11)]
    assert history(store, run, "final_loss") == [(0, 1.0)]


def test_a_killed_driver_leaves_a_running_run_that_the_next_one_finishes(store: Path, tmp_path: Path) -> None:
    code = f"""
import os, signal, time
from pathlib import Path
from pipelines.tracking import Tracker
tracker = Tracker({str(store)!r}, Path({str(tmp_path)!r}) / "outbox.json")
tracker.start_execution("killed", {{"name": "tiny"}}, {{}})
step = tracker.start_step("pretrain", "f-killed", {{}}, {{}})
step.follow(Path({str(tmp_path)!r}) / "metrics.jsonl")
time.sleep(3600)
"""
    (tmp_path / "metrics.jsonl").write_text("".join(line(n) for n in range(1, 4)))
    driver = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
    try:
        eventually(
            lambda: any(len(history(store, run)) == 3 for run in runs(store, {"gptline.fingerprint": "f-killed"}))
        )
    finally:
        driver.kill()
        driver.wait()
    assert runs(store, {"gptline.fingerprint": "f-killed"})[0].info.status == "RUNNING"
    tracker = _started(store, tmp_path, "killed")
    step = tracker.start_step("pretrain", "f-killed", {}, {})
    step.follow(tmp_path / "metrics.jsonl")
    step.finish("FINISHED", {})
    assert tracker.finish_execution("FINISHED") is None
    [run] = runs(store, {"gptline.fingerprint": "f-killed"})
    assert run.info.status == "FINISHED"
    assert len(history(store, run)) == 3


def test_a_step_done_before_gets_the_finished_run_that_it_lacks_and_a_finished_one_is_left_alone(
    store: Path, tmp_path: Path
) -> None:
    (tmp_path / "metrics.jsonl").write_text("".join(line(n) for n in range(1, 4)))
    killed = _started(store, tmp_path, "confirmed")
    killed.start_step("pretrain", "f-confirmed", {"a": 1}, {}).leave()
    assert (tmp_path / "outbox.json").exists(), "who finds it knows that this one did not end"
    assert killed.finish_execution(None) is None
    assert {run.info.status for run in runs(store, {"gptline.fingerprint": "f-confirmed"})} <= {"RUNNING"}
    ends = set()
    for key in ("confirmed", "confirmed later"):
        tracker = _started(store, tmp_path, key)
        tracker.confirm_step("pretrain", "f-confirmed", {"a": 1}, {}, {"final_loss": 2.0}, tmp_path / "metrics.jsonl")
        assert tracker.finish_execution("FINISHED") is None
        (run,) = runs(store, {"gptline.fingerprint": "f-confirmed"})
        assert (run.info.status, len(history(store, run))) == ("FINISHED", 3)
        assert history(store, run, "final_loss") == [(0, 2.0)]
        ends.add((run.info.end_time, run.data.tags["mlflow.parentRunId"]))
        assert runs(store, {"gptline.execution": key})[0].data.tags["gptline.reused.pretrain"] == "f-confirmed"
    assert len(ends) == 1


def test_an_execution_that_fails_closes_the_runs_of_its_steps(store: Path, tmp_path: Path) -> None:
    tracker = _started(store, tmp_path, "closed")
    tracker.start_step("pretrain", "f-closed", {}, {})
    assert tracker.finish_execution("FAILED") is None
    assert runs(store, {"gptline.fingerprint": "f-closed"})[0].info.status == "FAILED"


def test_a_run_that_mlflow_refuses_is_reported_and_holds_up_no_other(store: Path, tmp_path: Path) -> None:
    tracker = _started(store, tmp_path, "refused")
    tracker.start_step("bad", "f-bad", {"a name: with ? in it": 1}, {}).finish("FINISHED", {})
    tracker.start_step("good", "f-good", {}, {}).finish("FINISHED", {})
    problem = tracker.finish_execution("FINISHED")
    assert problem is not None
    assert "refused bad (Invalid value" in problem
    assert runs(store, {"gptline.fingerprint": "f-good"})[0].info.status == "FINISHED"
    assert not (tmp_path / "outbox.json").exists()


def test_a_run_that_somebody_deleted_meanwhile_is_made_again(store: Path, tmp_path: Path) -> None:
    tracker = _started(store, tmp_path, "deleted")
    step = tracker.start_step("pretrain", "f-deleted", {}, {})
    eventually(lambda: bool(runs(store, {"gptline.fingerprint": "f-deleted"})))
    registry.connect(store).delete_run(runs(store, {"gptline.fingerprint": "f-deleted"})[0].info.run_id)
    step.follow(tmp_path / "metrics.jsonl")
    (tmp_path / "metrics.jsonl").write_text(line(1))
    step.finish("FINISHED", {})
    assert tracker.finish_execution("FINISHED") is None
    assert history(store, runs(store, {"gptline.fingerprint": "f-deleted"})[0]) == [(1, 10.0)]


def test_what_mlflow_did_not_take_waits_in_the_outbox_for_the_next_pipeline(store: Path, tmp_path: Path) -> None:
    away = Tracker("http://127.0.0.1:9", tmp_path / "outbox.json")
    away.start_execution("away", RECIPE, {})
    began = time.monotonic()
    step = away.start_step("pretrain", "f-away", {}, {})
    step.follow(tmp_path / "metrics.jsonl")
    (tmp_path / "metrics.jsonl").write_text("".join(line(n) for n in range(1, 4)))
    step.finish("FINISHED", {"final_loss": 3.0})
    assert time.monotonic() - began < 0.5, "training waited for MLflow"
    problem = away.finish_execution("FINISHED", patience=8)
    assert problem is not None
    assert "did not take all of: tiny, pretrain" in problem
    (tmp_path / "metrics.jsonl").unlink()  # the attempt's folder is gone by then

    tracker = _started(store, tmp_path, "later")
    assert tracker.finish_execution("FINISHED") is None
    [parent], [run] = runs(store, {"gptline.execution": "away"}), runs(store, {"gptline.fingerprint": "f-away"})
    assert (parent.info.status, run.info.status) == ("FINISHED", "FINISHED")
    assert history(store, run) == [(n, 10.0 / n) for n in range(1, 4)]
    assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert not (tmp_path / "outbox.json").exists()


def test_only_whole_lines_are_read_each_once_and_bad_ones_are_counted(tmp_path: Path) -> None:
    file = MetricFile(tmp_path / "metrics.jsonl")
    assert file.read() == []
    (tmp_path / "metrics.jsonl").write_text(line(1) + "not json\n" + '{"loss": 1}\n[1]\n' + line(2)[:-1])
    assert [point.step for point in file.read()] == [1]
    assert file.bad_lines == 3
    with open(tmp_path / "metrics.jsonl", "a") as log:
        log.write("\n" + line(3))
    assert [point.step for point in file.read()] == [2, 3]
    assert file.read() == []
    (tmp_path / "other").write_text(line(1) + line(2) + line(3) + line(4))
    (tmp_path / "other").rename(tmp_path / "metrics.jsonl")
    assert [point.step for point in file.read()] == [1, 2, 3, 4]


@pytest.mark.parametrize("cut", [b"", b'{"step": 1, "loss": 5.0}\n'])
def test_a_file_that_was_cut_back_is_read_from_its_beginning(tmp_path: Path, cut: bytes) -> None:
    file = MetricFile(tmp_path / "metrics.jsonl")
    (tmp_path / "metrics.jsonl").write_text(line(1) + line(2))
    file.read()
    with open(tmp_path / "metrics.jsonl", "r+b") as log:
        log.truncate(0)
        log.write(cut)
    assert [point.value for point in file.read()] == ([5.0] if cut else [])


def test_files_are_sent_to_no_other_place_than_the_registrys_own(tmp_path: Path, store: Path) -> None:
    client = registry.connect(store)
    client.create_experiment(
        "moved", artifact_location="http://127.0.0.1:9/steal"
    )  # as whoever may make experiments can
    tracker = Tracker(store, tmp_path / "outbox.json", "moved")
    tracker.start_execution("moved", RECIPE, {})
    told = tracker.finish_execution("FINISHED", patience=3.0)
    assert told is not None and "which is no folder, no bucket" in told
