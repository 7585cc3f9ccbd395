"""A checkpoint counts when it was published whole; a damaged one is passed over; an overtaken owner publishes nothing."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model import checkpoint, durable
from model.checkpoint import CheckpointError, newest_good, published, verified
from model.job import RankJob
from model.rank import Run, run
from model.world import World, join
from tests.model.conftest import Trained
from tests.model.training_runs import MIDDLE, STEPS, metrics, weights


@pytest.fixture
def checkpoints(trained: Trained, tmp_path: Path) -> Path:
    """Two good checkpoints of two ranks, in the middle and at the end."""
    return Path(shutil.copytree(trained.job["zero2"]["checkpoints"], tmp_path / "checkpoints"))


def newest(checkpoints: Path) -> Path:
    return published(checkpoints)[0]


def shard(folder: Path) -> Path:
    return next(folder.glob("state/*rank_1*optim_states.pt"))


def remove(folder: Path) -> None:
    shard(folder).unlink()


def truncate(folder: Path) -> None:
    path = shard(folder)
    path.write_bytes(path.read_bytes()[:-1])


def flip_a_bit(folder: Path) -> None:
    data = bytearray(shard(folder).read_bytes())
    data[len(data) // 2] ^= 1
    shard(folder).write_bytes(data)


def damage_the_manifest(folder: Path) -> None:
    path = folder / checkpoint.MANIFEST
    path.write_bytes(path.read_bytes()[:100])


def lose_the_manifest(folder: Path) -> None:
    (folder / checkpoint.MANIFEST).unlink()


def change_the_manifest(folder: Path) -> None:
    """A manifest that still reads well: one digit of it is another."""
    path = folder / checkpoint.MANIFEST
    path.write_bytes(path.read_bytes().replace(b'"world_size": 2', b'"world_size": 3'))


DAMAGES = [remove, truncate, flip_a_bit, damage_the_manifest, change_the_manifest, lose_the_manifest]


def test_a_published_checkpoint_lists_every_file_of_every_rank(checkpoints: Path) -> None:
    good = verified(newest(checkpoints))
    assert (good.step, good.world_size, good.zero_stage) == (STEPS, 2, 2)
    listed = {entry["path"] for entry in durable.read_json(good.folder / checkpoint.MANIFEST)["files"]}
    found = {path.relative_to(good.folder).as_posix() for path in good.folder.rglob("*") if path.is_file()}
    assert listed == found - {checkpoint.MANIFEST}
    assert good.metrics.count(b"\n") == STEPS


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    checkpoints: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    damage(newest(checkpoints))
    with caplog.at_level(logging.WARNING):
        good = newest_good(published(checkpoints))
    assert good is not None and good.step == MIDDLE
    assert f"step-{STEPS:06d} is damaged and passed over" in caplog.text


def test_published_checkpoints_of_which_none_is_good_are_an_error_and_none_at_all_is_not(
    checkpoints: Path, tmp_path: Path
) -> None:
    for folder in published(checkpoints):
        flip_a_bit(folder)
    with pytest.raises(CheckpointError, match=r"no good checkpoint .*step-000008.*step-000004"):
        newest_good(published(checkpoints))
    (tmp_path / "empty").mkdir()
    assert newest_good(published(tmp_path / "empty")) is None


@pytest.fixture(scope="module")
def world() -> World:
    """One real rank, in this process."""
    return join("cpu")


def job_of_one(trained: Trained, name: str, **changes: Any) -> tuple[dict[str, Any], RankJob]:
    job = trained.jobs.job(name, train={"zero_stage": 2}, **changes)
    return job, RankJob.parse(job)


def test_training_goes_on_from_before_the_damage_and_replaces_it(trained: Trained, world: World) -> None:
    undisturbed, parsed = job_of_one(trained, "undisturbed-alone")
    assert run(parsed)["resumed_from"] is None
    job = trained.jobs.continuation("damaged", undisturbed, MIDDLE)
    shutil.copytree(
        newest(Path(undisturbed["checkpoints"])), newest(Path(job["checkpoints"])).with_name(f"step-{STEPS:06d}")
    )
    flip_the_only_shard(newest(Path(job["checkpoints"])))
    assert run(RankJob.parse(job))["resumed_from"] == MIDDLE
    assert weights(job) == weights(undisturbed) and metrics(job) == metrics(undisturbed)
    assert verified(newest(Path(job["checkpoints"]))).step == STEPS
    assert list(Path(job["attempt"]).glob("aside-step-000008-*")), "the damaged one is kept until the attempt goes"
    (told,) = Path(job["attempt"]).glob("damaged-*.json")
    assert durable.read_json(told)["checkpoint"].endswith("/step-000008") and "SHA-256" in told.read_text()


def flip_the_only_shard(folder: Path) -> None:
    path = next(folder.glob("state/*optim_states.pt"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_finished_run_started_again_only_exports_again(trained: Trained, world: World) -> None:
    job = trained.jobs.continuation("finished", trained.job["zero2"], STEPS)
    result = run(RankJob.parse(job))
    assert (result["resumed_from"], result["steps"]) == (STEPS, STEPS)
    assert weights(job) == weights(trained.job["zero2"])
    assert metrics(job) == metrics(trained.job["zero2"])


def test_the_last_checkpoints_are_kept_and_older_ones_go(trained: Trained, world: World) -> None:
    job, parsed = job_of_one(trained, "retention", checkpoint_every=2, keep_checkpoints=2)
    run(parsed)
    assert [path.name for path in published(Path(job["checkpoints"]))] == ["step-000008", "step-000006"]
    assert not list(Path(job["attempt"]).glob("old-*"))


def test_an_overtaken_owner_publishes_nothing_and_revives_no_folder(trained: Trained, world: World) -> None:
    job, parsed = job_of_one(trained, "overtaken", checkpoint_every=0)
    this = Run(parsed, world)
    Path(job["attempt"]).rename(Path(job["attempt"]).with_name("taken-over"))
    with pytest.raises(FileNotFoundError):
        this.steps(lambda: False)
    with pytest.raises(FileNotFoundError):
        this.save()
    assert not Path(job["attempt"]).exists()
    assert published(Path(job["checkpoints"])) == []


def test_an_owner_overtaken_while_it_writes_publishes_nothing(
    trained: Trained, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, parsed = job_of_one(trained, "overtaken-late", checkpoint_every=0)
    this = Run(parsed, world)
    write = this.engine.save_checkpoint

    def take_over_then_write(*arguments: Any, **options: Any) -> Any:
        Path(job["attempt"]).rename(Path(job["attempt"]).with_name("taken-over"))
        return write(*arguments, **options)

    monkeypatch.setattr(this.engine, "save_checkpoint", take_over_then_write)
    with pytest.raises(FileNotFoundError):
        this.save()
    assert not Path(job["attempt"]).exists()
    assert published(Path(job["checkpoints"])) == []


def test_a_damaged_token_shard_stops_the_run_before_it_is_read(trained: Trained, world: World, tmp_path: Path) -> None:
    for path in [*trained.jobs.folder.glob("*.arrow"), trained.jobs.folder / "train.json"]:
        shutil.copy(path, tmp_path)
    data = bytearray((tmp_path / "1.arrow").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "1.arrow").write_bytes(data)
    _, parsed = job_of_one(trained, "bad-data", data={"manifest": str(tmp_path / "train.json"), "root": str(tmp_path)})
    with pytest.raises(Exception, match=r"1\.arrow has SHA-256 .*run the tokenize stage again"):
        run(parsed)


def test_an_error_on_rank_zero_names_its_kind(world: World) -> None:
    def fail() -> None:
        raise CheckpointError("all damaged")

    with pytest.raises(CheckpointError, match="all damaged"):
        world.from_first(fail)
    assert world.from_first(lambda: {"step": 3}) == {"step": 3}
    assert world.any(True) and not world.any(False)
