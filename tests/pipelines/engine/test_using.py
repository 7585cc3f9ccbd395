"""Users and a cleaner of one work directory: who lives is not disturbed, who was taken for dead can do no harm."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from model import durable
from pipelines.engine import lease as leases
from pipelines.engine import owning
from pipelines.engine.lease import Busy, Overtaken, Owner
from pipelines.engine.using import cleaning, empty_trash, left_in_trash, using

HOLD = """
import sys, time
from pathlib import Path
from pipelines.engine import using
with getattr(using, sys.argv[1])(Path(sys.argv[2]), 2.0, print) as held:
    if sys.argv[1] == "cleaning":
        (held / "moved").mkdir()
    print("in", flush=True)
    time.sleep(600)
"""


def told(owner: Owner) -> None:
    """Nobody has to be told."""


def killed(what: str, root: Path) -> None:
    """Somebody who was killed with SIGKILL while `using` or `cleaning` the work directory."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, what, str(root)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "in\n"
    process.kill()
    process.communicate()


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes cannot be looked up, as those of another host; only signs of life count."""
    monkeypatch.setattr(leases, "is_gone", lambda owner: False)
    monkeypatch.setattr(leases, "is_here", lambda owner: False)


def test_a_cleaner_leaves_where_somebody_lives_and_says_who(tmp_path: Path) -> None:
    with using(tmp_path, 2.0, told), pytest.raises(Busy, match=r"in use by process .*nothing was removed"):
        with cleaning(tmp_path, 2.0, told):
            pass
    with cleaning(tmp_path, 2.0, told):
        pass


@pytest.mark.usefixtures("elsewhere")
def test_a_living_user_on_another_host_is_seen_by_its_sign_of_life(tmp_path: Path) -> None:
    with using(tmp_path, 4.0, told), pytest.raises(Busy), cleaning(tmp_path, 4.0, told):
        pass


def test_the_owner_of_a_step_is_not_disturbed_either(tmp_path: Path) -> None:
    with owning.owning(tmp_path / "steps" / "toy", 2.0, True, told), pytest.raises(Busy):
        with cleaning(tmp_path, 2.0, told):
            pass


def test_a_killed_user_keeps_nobody_out(tmp_path: Path) -> None:
    killed("using", tmp_path)
    assert len(list(tmp_path.glob("gc/lease/user-*"))) == 1
    with cleaning(tmp_path, 60.0, told):
        assert list(tmp_path.glob("gc/lease/user-*")) == []


@pytest.mark.usefixtures("elsewhere")
def test_a_user_that_was_taken_for_dead_begins_no_step_when_it_wakes(tmp_path: Path) -> None:
    with using(tmp_path, 0.2, told) as use:
        use._stop.set()  # frozen
        with cleaning(tmp_path, 0.2, told):
            pass
        with pytest.raises(Overtaken, match="was cleaned while this process made no sign of life"):
            use.confirm(tmp_path)


@pytest.mark.usefixtures("elsewhere")
def test_a_step_of_somebody_taken_for_dead_cannot_be_committed_when_he_wakes(tmp_path: Path) -> None:
    folder = tmp_path / "steps" / "toy"
    lease = leases.acquire(folder, 0.2)
    lease._stop.set()  # frozen
    with cleaning(tmp_path, 0.2, told):
        assert lease.attempt.is_file(), "a tombstone stands there"
    with pytest.raises(OSError):
        durable.write_bytes(lease.attempt / "record.json", b"late")
    lease.release()
    assert leases.held(folder) is None


def test_who_was_overtaken_gives_back_nothing_of_a_step_that_was_removed_and_begun_anew(tmp_path: Path) -> None:
    """Generations begin anew with the folder: the old owner's release must not release the new owner's lease."""
    old = leases.acquire(tmp_path / "step", 2.0)
    old._stop.set()
    durable.remove_tree(tmp_path / "step")
    new = leases.acquire(tmp_path / "step", 2.0)
    assert new.generation == old.generation
    old.release()
    assert leases.held(tmp_path / "step") is not None
    new.release()


def test_a_cleaner_that_was_taken_for_dead_removes_nothing_when_it_wakes(tmp_path: Path) -> None:
    (tmp_path / "steps" / "needed").mkdir(parents=True)
    with pytest.raises(Overtaken, match="was taken over"), cleaning(tmp_path, 2.0, told) as trash:
        found = leases.held(tmp_path / "gc")
        assert found is not None
        overtaking = leases.overtake(tmp_path / "gc", found.generation, 2.0)
        assert overtaking is not None
        overtaking.release()
        durable.gather([tmp_path / "steps" / "needed"], trash)
    assert (tmp_path / "steps" / "needed").is_dir()


def test_a_user_overtakes_a_killed_cleaner_and_throws_away_what_it_had_moved(tmp_path: Path) -> None:
    killed("cleaning", tmp_path)
    assert [path.name for path in left_in_trash(tmp_path)] == ["moved"]
    with using(tmp_path, 60.0, told):
        assert left_in_trash(tmp_path) == []


def test_a_user_waits_for_a_cleaner_at_work(tmp_path: Path) -> None:
    waited: list[Owner] = []
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, "cleaning", str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "in\n"

    def on_wait(owner: Owner) -> None:
        waited.append(owner)
        process.kill()
        process.wait()

    with using(tmp_path, 60.0, on_wait):
        assert [owner.pid for owner in waited] == [process.pid]
    process.communicate()


def test_cleaning_for_years_leaves_a_bounded_number_of_marks(tmp_path: Path) -> None:
    for _ in range(70):
        with cleaning(tmp_path, 2.0, told) as trash:
            (trash / "moved").mkdir()
        empty_trash(tmp_path)
    assert len(list((tmp_path / "gc").rglob("*"))) < 2 * 50 + 10


def test_a_candidate_that_slept_while_marks_were_cleared_does_not_become_owner(tmp_path: Path) -> None:
    for _ in range(5):
        leases.acquire(tmp_path, 2.0).release()
    leases.clear_marks(tmp_path, keep=2)
    assert not (tmp_path / "lease" / "000002.json").exists()
    assert leases.overtake(tmp_path, 1, 2.0) is None, "generation 2 is free again, and long past"
    owner = leases.acquire(tmp_path, 2.0)
    assert owner.generation == 6
    owner.release()
