"""Ten nights of a growing corpus on a clock that is set by hand: empty ones, bad data, a worse model, a crash, two timers."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from model import durable
from pipelines import promotion, registry
from pipelines.errors import GivenUp
from pipelines.sources import SourceError
from pipelines.verification import verify
from tests.pipelines.retraining.scene import ROOT, Scene, shakespeare

pytestmark = pytest.mark.thorough


def test_ten_nights(store: Path, ray_apart: None, tmp_path: Path) -> None:
    scene = Scene(tmp_path / "ten", tmp_path / "registry", "ten")
    shutil.copytree(store, scene.registry)
    first = scene.night()
    assert (first.why, first.outcome, first.version) == ("ten has no champion yet", "promoted", 1)

    assert scene.night().outcome == "nothing new"

    scene.add(
        "3.jsonl", "".join(json.dumps({"text": shakespeare(a, a + 2000)}) + "\n" for a in range(200_000, 230_000, 2000))
    )
    third = scene.night(minimum_gain=-1.0)
    assert (third.outcome, third.version, third.also["promoted"]) == ("promoted", 2, True)
    _only_the_new_was_made(scene)

    (scene.corpus / "4.jsonl").write_text('{"text": "good"}\n{"text": 7}\n')
    with pytest.raises(SourceError, match=r"4\.jsonl.*2"):
        scene.night()
    with pytest.raises(GivenUp, match="slot 4, which was given up"):
        scene.night()
    assert [slot.outcome for slot in scene.slots[-2:]] == ["failed", "blocked"]
    assert registry.alias_version(scene.registry, "ten", "champion") == 2

    scene.add("4.jsonl", json.dumps({"text": shakespeare(240_000, 250_000)}) + "\n")
    worse = scene.night(learning_rate_factor=20.0)
    assert worse.outcome == "kept" and not worse.also["promoted"], worse
    assert worse.also["reason"].startswith("not promoted: bits_per_byte") and "is not above 0" in worse.also["reason"]
    assert registry.alias_version(scene.registry, "ten-base", "champion") == 2

    scene.add("7.txt", shakespeare(260_000, 280_000))
    _crash_in_the_middle(scene, tmp_path)

    scene.add("9.txt", shakespeare(320_000, 330_000))
    timers = [_process(scene) for _ in range(2)]
    said = sorted(_last(timer.communicate(timeout=240)[0]) for timer in timers)
    number = scene.slots[-1].number
    assert "ten is being worked on by process" in said[0] and said[1].startswith(f"slot {number} ")

    before = registry.alias_version(scene.registry, "ten", "champion")
    promotion.promote(scene.registry, "ten@1", "a quieter one", anyway=True)
    assert registry.alias_version(scene.registry, "ten", "champion") == 1
    promotion.rollback(scene.registry, "ten", "not so good")
    scene.clock.next_night()
    scene.clock.next_night()
    last = scene.night()
    assert last.outcome == "nothing new" and registry.alias_version(scene.registry, "ten", "champion") == before
    assert last.number >= 10 and [slot.number for slot in scene.slots] == list(range(1, last.number + 1))
    report = verify(scene.work)
    assert (report.damaged, report.missing, report.unowned) == ([], [], [])


def _only_the_new_was_made(scene: Scene) -> None:
    shard, tokenize = (scene.records[step].metrics for step in ("shard", "tokenize"))
    assert shard["pieces_reused"] >= 6
    assert 1 <= shard["pieces"] - shard["pieces_reused"] <= 5, "30 kB, by 8 kB, and a group that they join"
    made = tokenize["shards"] - tokenize["shards_reused"]
    assert tokenize["shards_reused"] >= 6 and made <= 2 * (shard["pieces"] - shard["pieces_reused"])


def _crash_in_the_middle(scene: Scene, tmp_path: Path) -> None:
    """SIGKILL while it pre-trains; a file comes; the next call ends it with the bytes of an undisturbed night."""
    undisturbed = Scene(
        tmp_path / "undisturbed" / "ten", tmp_path / "undisturbed" / "registry", "ten", clock=scene.clock
    )
    shutil.rmtree(undisturbed.folder)
    shutil.copytree(scene.folder, undisturbed.folder)
    shutil.copytree(scene.registry, undisturbed.registry)
    begun = len(list(scene.work.glob("steps/pretrain-*")))
    victim = _process(scene)
    while len(list(scene.work.glob("steps/pretrain-*"))) == begun:
        assert victim.poll() is None, victim.communicate()[0]
        time.sleep(0.02)
    time.sleep(2)
    os.kill(victim.pid, signal.SIGKILL)
    victim.communicate()
    opened = scene.slots[-1]
    assert (opened.outcome, [one.how for one in opened.tries]) == ("open", ["running"])
    scene.add("8.txt", shakespeare(300_000, 310_000))
    ended = scene.night()
    assert (ended.number, ended.key, ended.opened) == (opened.number, opened.key, opened.opened)
    assert [one.how for one in ended.tries] == ["killed", "done"]
    assert ended.why == "1 new file" if len(opened.new) == 1 else "8.txt" not in str(ended.new)
    expected = undisturbed.night()
    assert (expected.outcome, expected.version, expected.key) == (ended.outcome, ended.version, ended.key)
    for kind in ("base", "task"):
        assert _package(scene, kind) == _package(undisturbed, kind)
    following = scene.night()
    assert "8.txt" in str(following.new) and following.version


def _package(scene: Scene, kind: str) -> str:
    folder = scene.work / "steps" / f"register-{kind}-{scene.records[f'register-{kind}'].fingerprint[:12]}"
    return str(durable.read_json(folder / "outputs" / "registered.json")["digest"])


def _last(said: str) -> str:
    """What the night said of itself; Ray may have said more."""
    found = [line for line in said.splitlines() if line.startswith(("slot ", "busy: "))]
    assert found, said
    return found[-1]


def _process(scene: Scene) -> subprocess.Popen[str]:
    told: dict[str, Any] = {
        "folder": str(scene.folder), "registry": str(scene.registry), "name": scene.name, "at": scene.clock.at.isoformat(), "how": {},
    }  # fmt: skip
    command = [sys.executable, "-m", "tests.pipelines.retraining.night", json.dumps(told)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
