"""What waits for MLflow in the work directory survives kills while it is written, damage, and two pipelines at once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines import narrate
from pipelines.outbox import Outbox, is_waiting
from pipelines.wanted_runs import Outcome, WantedRun
from tests.faults.mlflow_life import ROOT
from tests.pipelines.engine import toys
from tests.pipelines.mlflow_views import history, runs
from tests.pipelines.test_narrate import QUIET, only, workspace


def run_of(name: str) -> WantedRun:
    return WantedRun(name, {"gptline.fingerprint": name}, {"a": "1"}, {}, None, outcome=Outcome("FINISHED", 1, {}, []))


def names(path: Path) -> list[str]:
    return [run.name for run in Outbox(path).take()]


def damages(data: bytes) -> dict[str, bytes]:
    at = data.index(b'"FINISHED"')
    return {
        "empty": b"", "truncated": data[:at], "no JSON": b"\0" * len(data), "another JSON": b'{"runs": 3}',
        "flipped": data[: at + 1] + bytes([data[at + 1] ^ 1]) + data[at + 2 :],
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["empty", "truncated", "no JSON", "another JSON", "flipped"])
def test_a_damaged_outbox_is_set_aside_and_what_is_on_record_is_told_again(
    store: Path, tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    mine, others = only(f"mine-{kind}", "curve"), only(f"others-{kind}", "curve")
    toys.run(tmp_path, [mine, others])  # done, and MLflow knows nothing of it
    outbox = tmp_path / "outbox.json"
    Outbox(outbox).keep([run_of("kept")])
    damaged = damages(outbox.read_bytes())[kind]
    outbox.write_bytes(damaged)
    narrate._run(workspace(tmp_path, store, mine), QUIET, QUIET)  # the recipe of the other step is not run now
    assert [record.message for record in caplog.records if "outbox.json is damaged" in record.message]
    for step in (mine, others):
        (run,) = runs(store, {"gptline.step": step.name})
        assert (run.info.status, run.data.metrics["final_loss"]) == ("FINISHED", 5.0)
        assert history(store, run) == [(1, 10.0), (2, 5.0)]
    assert not outbox.exists()
    assert (tmp_path / "outbox.json.damaged").read_bytes() == damaged


@pytest.mark.parametrize("call", ["rename", "fsync", "link"])
def test_an_outbox_is_the_old_one_or_the_new_one_whenever_its_writer_is_killed(tmp_path: Path, call: str) -> None:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    code = """
import sys
from pathlib import Path
from tests.faults.test_mlflow_outbox import run_of
from pipelines.outbox import Outbox
outbox = Outbox(Path(sys.argv[1]))
outbox.keep([*outbox.take(), run_of("new")])
"""
    seen, number = set(), 1
    while True:
        outbox = tmp_path / f"{call}-{number}.json"
        Outbox(outbox).keep([run_of("old")])
        inject = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"inject={call}:signal=KILL:when={number}"]
        done = subprocess.run(
            [*inject, sys.executable, "-B", "-c", code, str(outbox)], cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False,
        )  # fmt: skip
        seen.add(tuple(names(outbox)))
        if done.returncode == 0:
            break
        number += 1
    assert seen <= {("old",), ("old", "new")} and ("old", "new") in seen
    assert (number > 1) == (call != "link"), f"{number - 1} kills at {call}"


def test_two_pipelines_at_once_lose_nothing_of_each_other(tmp_path: Path) -> None:
    path = tmp_path / "outbox.json"
    one, two = Outbox(path), Outbox(path)
    one.keep([])
    two.keep(two.take())
    one.keep([run_of("undelivered")])
    two.clear()
    assert names(path) == ["undelivered"], "the other one's is left to be found"
    three = Outbox(path)
    three.keep(three.take())
    one.keep([run_of("more")])
    three.keep([run_of("third")])
    assert names(path) == ["undelivered", "more", "third"]


def killed(path: Path, *waiting: str) -> None:
    """Leave the outbox of a process that is gone."""
    code = (
        "import sys; from pathlib import Path; from pipelines.outbox import Outbox\n"
        "from tests.faults.test_mlflow_outbox import run_of\n"
        "Outbox(Path(sys.argv[1])).keep([run_of(name) for name in sys.argv[2:]])"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code, str(path), *waiting], cwd=ROOT, env=environment, check=True)


def test_the_outbox_of_another_recipe_stays_while_it_lives_and_is_taken_over_whole_when_it_is_dead(
    tmp_path: Path,
) -> None:
    ours, theirs = tmp_path / "outbox-ours.json", tmp_path / "outbox-theirs.json"
    Outbox(theirs).keep([run_of("of a living one")])
    one = Outbox(ours)
    assert not is_waiting(ours) and one.take() == []
    one.keep([])
    one.clear()
    assert names(theirs) == ["of a living one"], "neither taken nor removed by a pipeline that ended meanwhile"

    killed(theirs, "of a dead one")
    assert is_waiting(ours)
    two = Outbox(ours)
    assert [run.name for run in two.take()] == ["of a dead one"] and two.incomplete
    assert theirs.exists(), "until what it holds is kept by somebody else"
    two.keep([run_of("of a dead one")])
    assert not theirs.exists()
    three = Outbox(ours)
    assert [run.name for run in three.take()] == ["of a dead one"] and three.incomplete, "also if we are killed as well"


def test_whoever_goes_on_with_a_dead_execution_meanwhile_keeps_its_own_outbox(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "outbox-ours.json", tmp_path / "outbox-theirs.json"
    killed(theirs, "of a dead one")
    box = Outbox(ours)
    taken = box.take()
    Outbox(theirs).keep([])  # it was given again, between our two looks
    box.keep(taken)
    assert theirs.exists() and names(ours) == ["of a dead one"]


def test_what_a_pipeline_could_not_deliver_when_it_ended_is_anybodys(tmp_path: Path) -> None:
    Outbox(tmp_path / "outbox-theirs.json").keep([run_of("undelivered")], ended=True)
    box = Outbox(tmp_path / "outbox-ours.json")
    assert [run.name for run in box.take()] == ["undelivered"] and not box.incomplete


def test_a_recipe_that_is_never_run_again_is_told_by_the_next_one_after_a_kill(store: Path, tmp_path: Path) -> None:
    mine, others = only("mine-after-a-kill", "curve"), only("others-before-a-kill", "curve")
    toys.run(tmp_path, [mine, others])  # done, and MLflow knows nothing of it
    killed(tmp_path / "outbox-others.json")
    narrate._run(workspace(tmp_path, store, mine), QUIET, QUIET)  # has nothing to do itself
    assert [run.info.status for run in runs(store, {"gptline.step": others.name})] == ["FINISHED"]
    assert not list(tmp_path.glob("outbox*"))


def test_a_run_that_is_being_written_may_lose_points_meanwhile() -> None:
    assert WantedRun.from_json(run_of("x").as_json()) == run_of("x")
