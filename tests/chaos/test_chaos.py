"""The harness itself: it catches planted faults, tells true sums, and aims at the same things for the same seed."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import psutil
import pytest

from tests import test_architecture
from tests.chaos import disk, ledger, moments, outcome, planted, site, victims
from tests.chaos.ledger import Ledger

STEPS = ["prepare_task", "shard", "train_tokenizer", "tokenize", "pretrain", "evaluate-base", "register-base", "pull-base"]  # fmt: skip
TRAIN = {"pretrain": 60}
checkout = test_architecture.checkout


ONE, *OTHERS = planted.FAULTS


@pytest.mark.parametrize("name", [ONE, *(pytest.param(name, marks=pytest.mark.thorough) for name in OTHERS)])
def test_a_build_with_a_commit_that_is_not_atomic_is_caught(name: str, tmp_path: Path) -> None:
    fault = planted.FAULTS[name]
    with planted.build(fault) as tree:
        done = planted.batch(fault, tree, tmp_path / "log.jsonl")
    assert done.returncode == 1 and fault.seen in done.stdout, done.stdout + done.stderr
    assert ledger.sums(ledger.read(tmp_path / "log.jsonl"))["differences"] > 0


def test_the_same_kill_changes_nothing_in_the_sound_build(tmp_path: Path) -> None:
    fault = planted.FAULTS["the record is written before the outputs"]
    done = planted.batch(fault, site.ROOT, tmp_path / "log.jsonl")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("1 kills") and done.stdout.endswith(" 0 differences\n")


@pytest.mark.parametrize("name", planted.FAULTS)
def test_every_planted_fault_still_fits_the_code(name: str) -> None:
    with planted.build(planted.FAULTS[name]) as tree:
        compile((tree / planted.FAULTS[name].file).read_text(), name, "exec")


def test_the_seed_decides_what_is_aimed_at_and_every_stage_gets_its_share() -> None:
    def aims(seed: str) -> list[moments.Aim]:
        plan = moments.Plan(random.Random(seed), STEPS, victims.ALL, TRAIN).draw(25)
        return plan.aims + plan.free

    assert aims("1") == aims("1") != aims("2")
    placed = [STEPS.index(aim.step) for aim in aims("1") if aim.step in STEPS]
    assert placed == sorted(placed) and set(placed) == set(range(len(STEPS)))
    assert {aim.victim for seed in "123456" for aim in aims(seed)} == set(victims.ALL)


def test_an_aim_that_came_too_late_is_replaced_by_one_at_a_step_that_is_left() -> None:
    plan = moments.Plan(random.Random(1), STEPS, victims.ALL, TRAIN).draw(20)
    count = len(plan.aims)
    for _ in range(count):
        plan.missed(plan.aims[0], ["pull-base"])
    assert [aim.step for aim in plan.aims if aim.step != "end"] == ["pull-base"] * len(
        [aim for aim in plan.aims if aim.step != "end"]
    )


def test_every_kind_of_difference_has_a_name() -> None:
    expected = {"file a": "1", "file b": "2", "run pretrain": "FINISHED"}
    seen = {"file a": "1", "file c": "3", "run pretrain": "RUNNING"}
    assert outcome.differences(expected, expected) == []
    assert outcome.differences(expected, seen) == [
        "file b: is missing",
        "file c: is there and should not be (3)",
        "run pretrain: RUNNING instead of FINISHED",
    ]


def _finished_step(work: Path) -> Path:
    folder = work / "steps" / "toy-0123456789ab"
    (folder / "outputs").mkdir(parents=True)
    (folder / "attempts").mkdir()
    (folder / "attempts" / "000001-aa").write_text("a tombstone")
    (folder / "outputs" / "a.txt").write_text("abc")
    file = {"path": "steps/toy-0123456789ab/outputs/a.txt", "size": 3, "sha256": disk.sha256(folder / "outputs/a.txt")}
    (folder / "record.json").write_text(json.dumps({"step": "toy", "outputs": [file]}))
    return folder


def test_what_is_published_and_not_whole_is_named(tmp_path: Path) -> None:
    folder = _finished_step(tmp_path)
    assert list(disk.Wholeness().problems(tmp_path)) == []
    (folder / "outputs" / "a.txt").write_text("abd")
    assert list(disk.Wholeness().problems(tmp_path)) == ["record of toy names a.txt, which has other bytes"]
    (folder / "outputs" / "a.txt").unlink()
    (folder / "checkpoints" / "step-000010").mkdir(parents=True)
    missing, torn = disk.Wholeness().problems(tmp_path)
    assert missing == "record of toy names a.txt, which is missing" and torn.startswith("step-000010/MANIFEST.json is")


def test_what_the_dead_have_left_is_named_and_a_tombstone_is_not(tmp_path: Path) -> None:
    folder = _finished_step(tmp_path)
    assert outcome.leftovers(tmp_path) == []
    (folder / "attempts" / "000002-bb").mkdir()
    (folder / ".checkpoints.1234.tmp").mkdir()
    (tmp_path / ".outbox-12ab.json.5678.tmp").touch()  # nobody's folder: the product sweeps it by its age
    (tmp_path / ".other.5678.tmp").touch()
    assert outcome.leftovers(tmp_path) == [
        "left over: .other.5678.tmp",
        "left over: steps/toy-0123456789ab/.checkpoints.1234.tmp",
        "left over: steps/toy-0123456789ab/attempts/000002-bb",
    ]


def test_what_verify_names_is_a_difference() -> None:
    sums = "work: 3 files (0.1 MB) checked, {} damaged, 0 missing, {} unowned"
    assert outcome.unverified(sums.format(0, 0)) == []
    assert outcome.unverified("unowned: .digests.json.12ab.tmp\n" + sums.format(0, 1)) == []
    assert outcome.unverified("damaged: a/b\n" + sums.format(1, 0)) == ["verify: damaged: a/b"]
    assert outcome.unverified("gptline: there is no such folder") == ["verify: gptline: there is no such folder"]


def test_a_log_adds_up_even_if_the_harness_was_killed_while_it_wrote(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    batch = Ledger(path, commit="c" * 40, seed="1")
    for number, turn in enumerate((1, 1, 2)):
        batch.add("kill", round=turn, number=number, stage="pretrain", victim="driver")
    batch.add("restart", round=1)
    batch.add("round", round=1, files=10, differences=["one"])
    with open(path, "a") as file:
        file.write('{"event": "kill", "rou')
    assert ledger.verdict(ledger.read(path)) == "3 kills, 1 restarts, 10 files compared, 1 differences"
    assert ledger.sums(ledger.read(path))["kills in unfinished rounds"] == 1
    Ledger(path, commit="d" * 40, seed="2").add("kill", round=1, number=1, stage="shard", victim="worker")
    report = list(ledger.report(path))
    assert report[-1] == "4 kills, 1 restarts, 10 files compared, 1 differences"
    assert "(the batch was interrupted)" in report[0] and any(
        line.split()[:4] == ["all", "3", "1", "4"] for line in report
    )


def test_pulling_the_plug_leaves_no_process_however_it_hides(tmp_path: Path) -> None:
    with site.site() as place:
        orphan = "import os, sys, time; os.fork() and os._exit(0); os.setsid(); time.sleep(60)"
        place.driver = psutil.Popen([sys.executable, "-c", orphan], env=place.environment())
        place.driver.wait()
        found = place.processes()
        assert len(found) == 1 and found[0].ppid() != psutil.Process().pid
        site.kill_all(found)
        assert place.processes() == []
    assert not place.folder.exists()


def test_make_chaos_hands_on_kills_and_seed(checkout: Path) -> None:
    said = test_architecture.make(checkout, "chaos", "KILLS=5", "SEED=$a 'b'").stdout
    assert said == "<-m><tests.chaos><--kills><5><--seed><$a 'b'>"
    assert test_architecture.make(checkout, "chaos").stdout == "<-m><tests.chaos><--kills><30><--seed><1>"
