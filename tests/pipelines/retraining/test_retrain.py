"""Nights of one model: what a slot does, says and leaves, with the real steps and a clock that is set by hand."""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pipelines import patience, promotion_log, registry, slots
from pipelines.engine.record import Record
from pipelines.errors import GivenUp, StepInterrupted
from pipelines.package import read_manifest
from pipelines.run import Workspace
from pipelines.sources import SourceError
from pipelines.verification import verify
from tests.pipelines.retraining.scene import ROOT, Scene, shakespeare
from tests.test_architecture import HEAVY, PROBE

NEW = "new.txt"


@pytest.fixture(scope="module")
def nights(store: Path, ray_apart: None, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """A night without anything new, and one with a new file."""
    # The planted champions know nothing: the base is beaten by bits, but no accuracy rises by 0.9 in six steps.
    scene = Scene(tmp_path_factory.mktemp("nights"), store, "nights", how={"minimum_gain": 0.9})
    scene.plant_champions()
    scene.night(do=_nobody)
    scene.add(NEW, shakespeare(200_000, 220_000))
    scene.night()
    return scene


def test_a_night_without_anything_new_does_nothing_and_is_on_record(nights: Scene) -> None:
    first = nights.slots[0]
    assert (first.outcome, first.reason, first.version) == ("nothing new", "nothing new since nights@1", None)
    assert first.opened.startswith("2031-01-02T03:00") and first.closed is not None and first.tries == ()


def test_a_new_file_is_the_reason(nights: Scene) -> None:
    second = nights.slots[1]
    assert second.why == "1 new file" and [Path(file["file"]).name for file in second.new] == [NEW]
    assert second.tries[0].how == "done" and second.closed and second.key != nights.slots[0].key


def test_the_challenger_begins_from_the_base_champion_with_its_tokenizer(nights: Scene) -> None:
    before = registry.resolve(nights.registry, "nights-base@1")
    records = nights.records
    assert records["champion-base"].sources["package"][0]["sha256"] == before.digest
    assert records["pretrain"].inputs["base"] == records["champion-base"].part(
        "export/", _folder(nights, "champion-base")
    )
    tokenizers = {record["files"]["tokenizer.json"]["sha256"] for record in _manifests(nights)}
    assert len(tokenizers) == 1


def test_the_base_is_better_by_more_than_noise_and_promoted_and_the_task_is_not(nights: Scene) -> None:
    second, compared = nights.slots[1], nights.records["compare-base"].metrics
    assert compared["low"] > 0.9 and second.also["promoted"] and second.also["version"] == 2
    assert (second.outcome, second.version, second.figures["metric"]) == ("kept", 2, "accuracy")
    assert second.figures["low"] <= 0.9 and "is not above 0.9" in second.reason and second.figures["latency_ms"] > 0
    assert registry.alias_version(nights.registry, "nights", "champion") == 1
    assert registry.alias_version(nights.registry, "nights", "candidate") == 2
    tags = registry.version_tags(nights.registry, "nights", 2)
    assert tags and tags["gptline.promotion"] == second.reason and tags["gptline.slot"] == "2"
    log = promotion_log.read(nights.registry, "nights-base")
    assert [(entry.by, entry.before, entry.to) for entry in log] == [("run", None, 1), ("retrain", 1, 2)]


def test_the_comparison_of_the_base_agrees_with_its_evaluation(nights: Scene) -> None:
    compared, evaluated = (nights.records[step].metrics for step in ("compare-base", "evaluate-base"))
    assert compared["challenger"] == pytest.approx(evaluated["bits_per_byte"], abs=1e-6)


def test_lineage_names_every_raw_file_that_the_weights_have_seen(nights: Scene) -> None:
    base, task = (manifest["lineage"] for manifest in _manifests(nights))
    seen = set(base["champion-base"]["sources"]["corpus"])
    assert len(seen) == 6 and seen < set(base["shard"]["sources"]["corpus"])
    assert "corpus" not in task["champion-task"]["sources"], "it was compared with, not begun from"


def test_sources_that_were_tried_are_not_tried_again(nights: Scene) -> None:
    finished = nights.finished()
    slot = nights.night(do=_nobody)
    assert slot.outcome == "nothing new" and "were tried in slot 2 (kept, version 2)" in slot.reason
    assert nights.finished() == finished


def test_a_registry_that_is_away_when_a_slot_opens_is_asked_again(
    nights: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def away_at_first(location: str | Path, name: str, alias: str) -> int | None:
        asked.append(name)
        if len(asked) == 1:
            raise ConnectionError("http://mlflow:5000 cannot be reached")
        return alias_version(location, name, alias)

    alias_version = registry.alias_version
    monkeypatch.setattr(registry, "alias_version", away_at_first)
    monkeypatch.setattr(patience, "_FIRST_PAUSE", 0.01)
    assert nights.night(do=_nobody).outcome == "nothing new"
    assert asked == ["nights-base", "nights-base", "nights"]


def test_the_command_looks_without_importing_anything_heavy_and_history_lists_it(nights: Scene) -> None:
    arguments = ["retrain", *_options(nights), "--work", str(nights.work)]
    probe = PROBE.format(arguments=arguments, heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "nothing new: the same sources were tried in slot 2" in done.stdout and "LOADED []" in done.stderr
    told = json.loads(_command(nights, "history", "--json"))["slots"]
    assert [one["outcome"] for one in told if one["model"] == "nights"].count("nothing new") == len(told) - 1


def test_a_line_that_is_bad_fails_the_slot_by_name_and_the_next_night_without_it_is_well(nights: Scene) -> None:
    bad = nights.corpus / "bad.jsonl"
    bad.write_text('{"text": "fine"}\n{"text": broken}\n')
    with pytest.raises(SourceError, match=r"bad\.jsonl.*2"):
        nights.night()
    failed = nights.slots[-1]
    assert failed.outcome == "failed" and "bad.jsonl" in failed.reason and len(failed.tries) == 1
    with pytest.raises(GivenUp, match=f"slot {failed.number}, which was given up"):
        nights.night(do=_nobody)
    bad.unlink()
    assert nights.night(do=_nobody).outcome == "nothing new"
    assert registry.alias_version(nights.registry, "nights", "champion") == 1


def test_failures_are_tried_again_later_and_later_and_then_given_up(nights: Scene) -> None:
    nights.clock.slept.clear()
    with pytest.raises(GivenUp, match="given up after 3 failures; the last one: no room"):
        nights.night(force=True, do=_no_room)
    assert nights.clock.slept == [60.0, 120.0]
    slot = nights.slots[-1]
    assert (slot.outcome, [one.how for one in slot.tries]) == ("failed", ["failed"] * 3)


def test_an_interrupted_slot_is_gone_on_with_although_a_file_came_and_the_champion_moved(nights: Scene) -> None:
    extra = nights.corpus / "extra.txt"
    extra.write_text(shakespeare(300_000, 301_000))
    with pytest.raises(StepInterrupted):
        nights.night(do=_interrupted)
    opened = nights.slots[-1]
    assert (opened.outcome, opened.why, opened.tries[-1].how) == ("open", "2 new files", "interrupted")
    late = nights.corpus / "late.txt"
    late.write_text(shakespeare(310_000, 311_000))
    seen: list[Workspace] = []
    with pytest.raises(GivenUp):
        nights.night(do=lambda workspace: _looked(workspace, seen))
    assert nights.slots[-1].number == opened.number and nights.slots[-1].key == opened.key
    (corpus,) = [step.sources["corpus"] for step in seen[0].steps if step.name == "shard"]
    assert "extra.txt" in str(corpus) and "late.txt" not in str(corpus)
    assert seen[0].settings["slot"] == opened.number
    late.unlink()
    extra.unlink()


def test_an_open_slot_whose_file_is_gone_is_superseded(nights: Scene) -> None:
    extra = nights.corpus / "other.txt"
    extra.write_text(shakespeare(320_000, 321_000))
    with pytest.raises(StepInterrupted):
        nights.night(do=_interrupted)
    number = nights.slots[-1].number
    extra.unlink()
    assert nights.night(do=_nobody).number == number + 1
    closed = nights.slots[-2]
    assert closed.outcome == "superseded" and "other.txt is gone" in closed.reason


def test_a_second_timer_says_who_is_at_work_and_leaves_with_0(nights: Scene) -> None:
    said: list[str] = []

    def meanwhile(workspace: Workspace) -> Mapping[str, Record]:
        said.append(_command(nights, "retrain", *_options(nights)))
        raise StepInterrupted("enough")

    with pytest.raises(StepInterrupted):
        nights.night(force=True, do=meanwhile)
    assert "nights is being worked on by process" in said[0]
    nights.corpus.joinpath(NEW).touch()  # another time stamp, the same bytes: the open slot stands
    with pytest.raises(StepInterrupted):
        nights.night(do=_interrupted)
    assert [one.how for one in nights.slots[-1].tries] == ["interrupted", "interrupted"]


def test_verify_knows_every_file_of_retraining(nights: Scene) -> None:
    report = verify(nights.work)
    assert (report.damaged, report.missing, report.unowned) == ([], [], [])
    path = nights.work / "retrain" / "nights" / "slots" / "000001.json"
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"nothing new", b"nothing old"))
    assert verify(nights.work).damaged == [str(path.relative_to(nights.work))]
    with pytest.raises(slots.SlotDamaged, match=path.name):
        nights.slots  # noqa: B018
    path.write_bytes(whole)


def test_missed_nights_are_caught_up_once_by_the_command(store: Path, ray_apart: None, tmp_path: Path) -> None:
    """After a boot: a week of nights was missed. The champion's sources are unchanged, so the slot has nothing to do."""
    scene = Scene(tmp_path / "missed", store, "missed")
    scene.plant_champions()
    since = datetime.datetime.now().astimezone() - datetime.timedelta(days=7)
    catch_up = ["catch-up", "daily 03:00", "--since", since.isoformat(timespec="seconds"), *_options(scene)]
    said = _command(scene, *catch_up)
    assert said.startswith("missed: ") and "retraining now" in said and "nothing new since missed@1" in said
    assert [slot.outcome for slot in scene.slots] == ["nothing new"], "one slot makes up for seven"
    assert _command(scene, *catch_up) == "nothing was missed\n"
    assert len(scene.slots) == 1


def _nobody(workspace: Workspace) -> Mapping[str, Record]:
    raise AssertionError("there was nothing to do")


def _no_room(workspace: Workspace) -> Mapping[str, Record]:
    raise RuntimeError("no room")


def _interrupted(workspace: Workspace) -> Mapping[str, Record]:
    raise StepInterrupted("stopped by a signal")


def _looked(workspace: Workspace, seen: list[Workspace]) -> Mapping[str, Record]:
    seen.append(workspace)
    raise RuntimeError("enough")


def _folder(scene: Scene, step: str) -> str:
    return f"steps/{step}-{scene.records[step].fingerprint[:12]}"


def _manifests(scene: Scene) -> list[dict[str, Any]]:
    folders = [scene.work / _folder(scene, f"register-{kind}") for kind in ("base", "task")]
    return [read_manifest(folder / "outputs" / "package" / "MANIFEST.json") for folder in folders]


def _options(scene: Scene) -> list[str]:
    """The scene's recipe and registry for the command line."""
    recipe = scene.folder / "recipe.py"
    recipe.write_text(
        "from pathlib import Path\nfrom tests.pipelines.retraining.scene import small\n"
        f"def same(): return small(Path({str(scene.corpus)!r}), {scene.name!r}, **{scene.how!r})\n"
    )
    return ["--recipe", f"{recipe}:same", "--set", f"execution.registry={scene.registry}"]


def _command(scene: Scene, *arguments: str) -> str:
    command = [sys.executable, "-m", "pipelines", *arguments, "--work", str(scene.work)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
