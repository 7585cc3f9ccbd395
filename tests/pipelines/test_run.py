"""Walking the steps: damage that planning could not see is found by who reads it, and made again."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from model import durable
from pipelines import recipes, run
from pipelines.engine import step as steps
from pipelines.engine.digests import Digests
from pipelines.engine.step import Input, Step
from pipelines.execution import Execution
from tests.pipelines.engine import toys


def workspace(root: Path, *more: Step) -> run.Workspace:
    return run.Workspace(
        recipes.tiny(), Execution(), root, [*toys.flow(), *more], Digests(root / "digests.json"), toys.EXECUTION
    )


def walked(space: run.Workspace, damage: list[str]) -> list[tuple[str, bool]]:
    outcomes = run.run(space, toys.unwatched, lambda owner: None, damage.append)
    return [(outcome.record.step, outcome.done_now) for outcome in outcomes]


def hidden_damage(space: run.Workspace) -> Path:
    """Damage the manifest in a way that planning cannot see: the cache holds the new stat signature and the old digest."""
    path = next(space.root.glob("steps/letters-*/outputs/manifest.json"))
    digest = durable.sha256(path)
    path.write_bytes(b"[]")
    time.sleep(0.1)  # longer than a tick: the cache refuses to remember a file that was changed just now
    space.digests.learn(path, digest)
    return path


AGAIN = Step("again", toys.JOIN, {}, {"letters": Input("letters", "manifest.json")})


def test_damage_found_while_reading_is_made_again_and_the_run_goes_on(tmp_path: Path) -> None:
    damage: list[str] = []
    walked(workspace(tmp_path), damage)
    space = workspace(tmp_path, AGAIN)
    path = hidden_damage(space)
    assert walked(space, damage)[-3:] == [("letters", True), ("join", False), ("again", True)]
    assert len(damage) == 1 and "is damaged" in damage[0] and durable.read_json(path)


def test_damage_that_comes_back_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    walked(workspace(tmp_path), [])
    space = workspace(tmp_path, AGAIN)
    hidden_damage(space)
    commit = steps._commit

    def rotten(record: steps.Record, attempt: steps.Attempt) -> None:
        commit(record, attempt)
        if record.step == "letters":
            (attempt.folder / "outputs" / "manifest.json").write_bytes(b"[]")

    monkeypatch.setattr(steps, "_commit", rotten)
    with pytest.raises(steps.Damaged):
        walked(space, [])


def test_an_unknown_last_step_is_refused_with_the_names_there_are(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the steps are letters, join"):
        run.until(workspace(tmp_path), "nothing")
    assert [step.name for step in run.until(workspace(tmp_path), "letters").steps] == ["letters"]
