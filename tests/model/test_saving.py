"""Training goes on while a checkpoint is written: what is published is what a blocking save would have written, or nothing."""

from __future__ import annotations

import logging
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from model import durable, saving
from model.checkpoint import MANIFEST, folder_name, published, verified
from model.job import RankJob
from model.rank import Run, run
from model.train import StepReport
from model.world import World, join
from tests.model.conftest import Trained
from tests.model.saving_runs import held_disk
from tests.model.training_runs import MIDDLE, STEPS, finish, metrics, start, weights

STAGES = range(4)


@pytest.fixture(scope="module")
def disturbed(trained: Trained) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """For each kind the job and what its two ranks saw: disks that are held, checkpoints that are damaged, a full disk."""
    jobs = {
        f"held{stage}": trained.jobs.job(f"held{stage}", train={"zero_stage": stage}, checkpoint_every=0)
        for stage in STAGES
    }
    jobs["damaged"] = trained.jobs.continuation("damaged-for-two", trained.job["zero2"], MIDDLE)
    jobs["full"] = trained.jobs.job("full", train={"zero_stage": 2})
    arguments = [kind.rstrip("0123") for kind in jobs]
    seen, _ = finish(start(list(jobs.values()), ranks=2, module="tests.model.saving_runs", kinds=arguments))
    return {kind: (job, answer) for (kind, job), answer in zip(jobs.items(), seen, strict=True)}


@pytest.mark.parametrize("stage", STAGES)
def test_a_checkpoint_written_late_has_the_bytes_of_a_blocking_save(disturbed: dict[str, Any], stage: int) -> None:
    job, seen = disturbed[f"held{stage}"]
    assert (seen["early"], seen["step"]) == ([], STEPS), "training went on to its end while nothing was published"
    folder = Path(job["checkpoints"], folder_name(MIDDLE))
    written = {entry["path"]: entry["sha256"] for entry in durable.read_json(folder / MANIFEST)["files"]}
    assert written.pop("metrics.jsonl") and len(seen["blocking"]) == {0: 1, 1: 3, 2: 3, 3: 4}[stage]
    assert written == seen["blocking"]
    good = verified(folder)
    assert good.metrics.count(b"\n") == good.step == MIDDLE


def test_a_disk_that_is_full_for_one_rank_is_a_clear_error_of_all_and_publishes_nothing(
    disturbed: dict[str, Any],
) -> None:
    job, seen = disturbed["full"]
    for error in seen["errors"]:
        assert f"the checkpoint of step {MIDDLE} could not be written to {job['attempt']}" in error
        assert "rank 1: OSError: [Errno 27] File too large: '" in error and "run again" in error
    assert seen["published"] == [] and seen["left"] == []


def test_damage_in_any_file_is_seen_by_all_ranks_whoever_hashes_it(disturbed: dict[str, Any]) -> None:
    _, seen = disturbed["damaged"]
    assert seen.pop("None") == [STEPS, STEPS]
    assert len(seen) == 5, "three of DeepSpeed's, the metrics and the manifest"
    assert set(map(tuple, seen.values())) == {(MIDDLE, MIDDLE)}


def test_the_same_run_finishes_with_the_same_bytes_once_there_is_room(
    trained: Trained, disturbed: dict[str, Any]
) -> None:
    job, seen = disturbed["full"]
    assert seen["then"]["resumed_from"] is None
    assert weights(job) == weights(trained.job["zero2"]) and metrics(job) == metrics(trained.job["zero2"])


@pytest.fixture(scope="module")
def world() -> World:
    """One real rank, in this process."""
    return join("cpu")


def alone(trained: Trained, name: str, **changes: Any) -> tuple[dict[str, Any], RankJob]:
    job = trained.jobs.job(name, train={"zero_stage": 2}, **changes)
    return job, RankJob.parse(job)


def test_a_checkpoint_that_is_due_before_the_last_is_published_waits_for_it(
    trained: Trained, world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    job, parsed = alone(trained, "slow", checkpoint_every=MIDDLE - 1)
    go_on, wait = threading.Event(), saving.wait

    def noticed(futures: Any) -> Any:
        go_on.set()
        return wait(futures)

    monkeypatch.setattr(saving, "wait", noticed)
    with held_disk(go_on), caplog.at_level(logging.WARNING):
        run(parsed)
    assert (
        f"the checkpoint of step {MIDDLE - 1} was not published when that of step {2 * MIDDLE - 2} was due"
        in caplog.text
    )
    assert [path.name for path in published(Path(job["checkpoints"]))] == [
        folder_name(step) for step in (STEPS, 2 * MIDDLE - 2, MIDDLE - 1)
    ]


def test_an_attempt_that_is_taken_over_while_files_are_written_publishes_nothing(
    trained: Trained, world: World
) -> None:
    job, parsed = alone(trained, "overtaken-writing", checkpoint_every=0)
    this, go_on = Run(parsed, world), threading.Event()
    with held_disk(go_on):
        this.begin_save()
        Path(job["attempt"]).rename(Path(job["attempt"]).with_name("taken"))
        go_on.set()
        with pytest.raises(FileNotFoundError, match="the attempt was taken over"):
            this.saver.finish()
    assert not Path(job["attempt"]).exists() and published(Path(job["checkpoints"])) == []


def test_ranks_that_start_again_fence_and_sweep_what_the_start_before_left(trained: Trained, world: World) -> None:
    job, parsed = alone(trained, "two-starts", checkpoint_every=0)
    first, go_on = Run(parsed, world), threading.Event()
    with held_disk(go_on):
        first.begin_save()
        second = Run(parsed, world)
        go_on.set()
        with pytest.raises(FileNotFoundError, match="its ranks were started again"):
            first.saver.finish()
    assert [path.name for path in Path(job["attempt"]).glob("start-*")] == [second.shelf.start.name]
    assert published(Path(job["checkpoints"])) == []
    second.step = 1
    second.save()
    assert [path.name for path in published(Path(job["checkpoints"]))] == [folder_name(1)]


def test_ranks_that_live_on_while_others_took_their_place_write_nothing_down_and_deliver_nothing(
    trained: Trained, world: World
) -> None:
    """What a host does that was cut off: it goes on where it was, and still sees the shared folder."""
    job, parsed = alone(trained, "lives-on", checkpoint_every=0)
    attempt, outputs = Path(job["attempt"]), Path(job["outputs"])
    first = Run(parsed, world)
    assert first.steps(lambda: first.step == MIDDLE)
    second = Run(parsed, world)
    second.steps(lambda: second.step == 1)
    written = (attempt / "metrics.jsonl").read_bytes()
    with pytest.raises(FileNotFoundError, match="its ranks were started again"):
        first.steps(lambda: False)
    first.journal.record(StepReport(STEPS, 1.0, 1.0, 1.0, 1, 1.0))  # had it looked a moment before
    assert (attempt / "metrics.jsonl").read_bytes() == written and written.count(b"\n") == 1
    second.steps(lambda: False)
    second.export()
    delivered = durable.sha256(outputs / "export" / "model.safetensors")
    with pytest.raises(FileNotFoundError):
        first.export()
    assert durable.sha256(outputs / "export" / "model.safetensors") == delivered


def test_checkpoints_by_time_are_decided_by_the_clock_of_rank_zero(trained: Trained, world: World) -> None:
    job, parsed = alone(trained, "by-time", checkpoint_every=0, checkpoint_seconds=1e-6)
    run(parsed)
    assert [path.name for path in published(Path(job["checkpoints"]))] == [folder_name(s) for s in range(STEPS, 0, -1)]
    job, parsed = alone(trained, "by-long-time", checkpoint_every=0, checkpoint_seconds=1e6)
    run(parsed)
    assert [path.name for path in published(Path(job["checkpoints"]))] == [folder_name(STEPS)]


def test_permanent_checkpoints_stay_and_are_resumed_from(trained: Trained, world: World) -> None:
    changes: dict[str, Any] = {"checkpoint_every": 2, "keep_checkpoints": 1, "permanent_every": 3}
    job = trained.jobs.job("permanent", train={"zero_stage": 2}, **changes)
    job["permanent"] = str(Path(job["checkpoints"]).with_name("permanent"))
    assert run(RankJob.parse(job))["resumed_from"] is None
    temporary, permanent = published(Path(job["checkpoints"])), published(Path(job["permanent"]))
    assert [path.name for path in temporary] == [folder_name(STEPS)]
    assert [path.name for path in permanent] == [folder_name(6), folder_name(3)]
    durable.remove_tree(Path(job["checkpoints"]))  # as the step's commit does
    Path(job["checkpoints"]).mkdir()
    before = weights(job)
    assert run(RankJob.parse(job))["resumed_from"] == 6
    assert weights(job) == before


def test_a_checkpoint_that_nobody_verified_pushes_no_good_one_out(trained: Trained, world: World) -> None:
    job, parsed = alone(trained, "unknown", checkpoint_every=1)
    run(parsed)
    kept = trained.jobs.continuation("retained", job, 1, checkpoint_every=1, keep_checkpoints=3)
    for step in (2, 3):
        shutil.copytree(Path(job["checkpoints"], folder_name(step)), Path(kept["checkpoints"], folder_name(step)))
    (Path(kept["checkpoints"], folder_name(2)) / MANIFEST).unlink()
    this = Run(RankJob.parse(kept), world)
    assert this.resumed and this.resumed.step == 3
    this.steps(lambda: this.step == 4)
    this.save()
    names = [folder_name(step) for step in (4, 3, 2, 1)]
    assert [path.name for path in published(Path(kept["checkpoints"]))] == names, "1 may be the third good one"
    this.steps(lambda: this.step == 5)
    this.save()
    assert [path.name for path in published(Path(kept["checkpoints"]))] == [folder_name(step) for step in (5, 4, 3)]
