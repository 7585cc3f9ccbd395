"""Steps: done is a record; what changed is said; a kill at any write loses nothing and changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from model import durable
from pipelines.engine import lease as leases
from pipelines.engine import plan as planning
from pipelines.engine import record as records
from pipelines.engine import step as steps
from pipelines.engine.step import Input, Stage, Step
from tests.pipelines.engine import toys


def test_a_second_run_does_nothing(tmp_path: Path) -> None:
    assert toys.run(tmp_path, toys.flow()) == ["letters", "join"]
    assert toys.run(tmp_path, toys.flow()) == []


def test_the_record_lists_everything_that_was_promised(tmp_path: Path) -> None:
    toys.run(tmp_path, toys.flow())
    planned = toys.plan(tmp_path, toys.flow())["letters"]
    content = durable.read_json(planned.folder / "record.json")  # type: ignore[operator]
    assert {
        "stage",
        "fingerprint",
        "config",
        "inputs",
        "outputs",
        "metrics",
        "code",
        "libraries",
        "started",
        "finished",
        "schema",
    } <= set(content)
    assert all(set(output) == {"path", "size", "sha256"} for output in content["outputs"])
    for output in content["outputs"]:
        assert durable.sha256(tmp_path / output["path"]) == output["sha256"]
    assert len([output for output in content["outputs"] if output["path"].startswith("units/")]) == 3


def test_only_what_reads_a_changed_output_is_done_again(tmp_path: Path) -> None:
    toys.run(tmp_path, toys.flow())
    assert toys.run(tmp_path, toys.flow(other=1)) == ["letters"]  # join reads the manifest, which is as it was
    assert toys.run(tmp_path, toys.flow(text="abd")) == ["letters", "join"]


def test_plan_says_which_field_changed(tmp_path: Path) -> None:
    toys.run(tmp_path, toys.flow())
    planned = toys.plan(tmp_path, toys.flow(text="abd"))
    assert planned["letters"].reasons == ("text: 'abc' -> 'abd'",)
    assert planned["join"].reasons == ("waits for letters",)


def test_plan_says_that_a_version_or_an_input_changed(tmp_path: Path) -> None:
    toys.run(tmp_path, toys.flow())
    newer = [Step("letters", Stage("letters", 2, toys.LETTERS.run), {"text": "abc"}), toys.flow()[1]]
    assert toys.plan(tmp_path, newer)["letters"].reasons == ("stage letters is now version 2, was 1",)
    toys.run(tmp_path, toys.flow(text="xyz")[:1])
    assert toys.plan(tmp_path, toys.flow(text="xyz"))["join"].reasons == ("input letters changed",)


@pytest.mark.parametrize("victim", ["outputs", "units"])
def test_damage_is_said_by_plan_and_made_again_with_the_same_bytes(tmp_path: Path, victim: str) -> None:
    toys.run(tmp_path, toys.flow())
    before = toys.digests(tmp_path)
    folder = toys.plan(tmp_path, toys.flow())["letters"].folder
    path = folder / "outputs/manifest.json" if victim == "outputs" else next((tmp_path / "units").rglob("*.txt"))  # type: ignore[operator]
    path.write_bytes(b"damaged")
    assert "is damaged" in toys.plan(tmp_path, toys.flow())["letters"].reasons[0]
    assert toys.run(tmp_path, toys.flow()) == ["letters"]
    assert toys.digests(tmp_path) == before


def test_damage_that_kept_its_stat_signature_is_found_when_it_is_read(tmp_path: Path) -> None:
    toys.run(tmp_path, toys.flow())
    planned = toys.plan(tmp_path, toys.flow())
    (planned["letters"].folder / "outputs/manifest.json").write_bytes(b"damaged")  # type: ignore[operator]
    other = Step("again", toys.JOIN, {}, {"letters": Input("letters", "manifest.json")})
    with pytest.raises(steps.Damaged, match=r"manifest.json, an output of step letters, is damaged"):
        steps.run(
            planning.plan(other, planned, tmp_path, toys.Digests(tmp_path / "d"), toys.EXECUTION),
            planned,
            tmp_path,
            toys.EXECUTION,
            toys.unwatched,
        )


def test_an_unfinished_step_with_outputs_in_place_is_not_done(tmp_path: Path) -> None:
    toys.run(tmp_path, toys.flow())
    planned = toys.plan(tmp_path, toys.flow())["letters"]
    (planned.folder / "record.json").unlink()  # type: ignore[operator]
    assert toys.run(tmp_path, toys.flow()) == ["letters"]


def test_an_overtaken_attempt_cannot_commit(tmp_path: Path) -> None:
    step = Step("late", Stage("late", 1, "tests.pipelines.engine.toys:overtaken"), {})
    planned = planning.plan(step, {}, tmp_path, toys.Digests(tmp_path / "d"), toys.EXECUTION)
    with pytest.raises(leases.Overtaken, match=r"step late-.*: attempt 000001-.* was taken over by process"):
        steps.run(planned, {}, tmp_path, toys.EXECUTION, toys.unwatched)
    assert planned.folder is not None and records.read(planned.folder) is None
    assert not (planned.folder / "outputs").exists()


def test_of_two_runs_that_planned_the_same_step_the_second_finds_it_done(tmp_path: Path) -> None:
    step = toys.flow()[0]
    first, second = (planning.plan(step, {}, tmp_path, toys.Digests(tmp_path / "d"), toys.EXECUTION) for _ in range(2))
    record, done_here = steps.run(first, {}, tmp_path, toys.EXECUTION, toys.unwatched)
    assert done_here
    assert steps.run(second, {}, tmp_path, toys.EXECUTION, toys.unwatched) == (record, False)


def test_a_damaged_record_is_said_and_the_step_is_made_again(tmp_path: Path) -> None:
    toys.run(tmp_path, toys.flow())
    before = toys.digests(tmp_path)
    path = toys.plan(tmp_path, toys.flow())["letters"].folder / "record.json"  # type: ignore[operator]
    path.write_text(path.read_text().replace('"letters": 3', '"letters": 4'))
    assert "record.json is damaged" in toys.plan(tmp_path, toys.flow())["letters"].reasons[0]
    assert toys.run(tmp_path, toys.flow()) == ["letters"]
    assert toys.digests(tmp_path) == before


def test_the_draft_of_a_killed_task_is_no_output(tmp_path: Path) -> None:
    step = Step("litter", Stage("litter", 1, "tests.pipelines.engine.toys:litter"), {})
    toys.run(tmp_path, [step])
    record = toys.plan(tmp_path, [step])["litter"].record
    assert record is not None and [Path(file.path).name for file in record.outputs] == ["whole.txt"]


def test_a_kill_while_an_attempt_is_removed_does_not_lock_the_step(tmp_path: Path) -> None:
    toys.run(tmp_path, toys.flow())
    folder = toys.plan(tmp_path, toys.flow())["letters"].folder
    assert folder is not None
    (folder / "attempts" / ".000001-abc.123.tmp").mkdir()
    (folder / "record.json").unlink()
    assert toys.run(tmp_path, toys.flow()) == ["letters"]
