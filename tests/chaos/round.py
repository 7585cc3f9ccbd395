"""One round: a line from nothing to its end under kills, and what became of it.

The one idea: whoever was killed, the harness does what a user's supervisor would do and no more: it gives the same
command again when the driver is gone, and starts the MLflow server again. All else the line has to do by itself; a
driver that gives up although it was not killed is a broken promise.
"""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.chaos import disk, outcome, victims
from tests.chaos.ledger import Ledger
from tests.chaos.moments import TRAINING, Aim, Plan, Watch
from tests.chaos.reference import Reference
from tests.chaos.site import Site, kill_all

_LOOK = 0.004  # seconds between two looks: some steps take a tenth of a second
_STALLED = 150.0  # seconds without any sign of work that count as hanging; a raylet's death is seen after 15
_SETTLE = 0.3  # seconds in which the dying may still leave a sign
_ORPHANED = 3.0  # the same after the death of a raylet or GCS, whose ranks work on for a while
_DISTURBANCES = 2  # of a living driver in one step: the product gives up at the third failure, by design
_BROKEN = 4  # broken promises after which a round is given up


@dataclass
class _Wound:
    """A kill that the line has not recovered from yet."""

    number: int
    at: float
    stage: str
    step: str
    signs: disk.Signs
    units: dict[str, int]
    checkpoint: int
    lost: float
    victim: str
    recorded: bool  # the step was done already, and its owner about to leave it


class Round:
    """State of one round. `run` does it all and returns what differs."""

    def __init__(self, site: Site, reference: Reference, plan: Plan, ledger: Ledger, number: int, limit: int, dice: random.Random, say: Callable[[str], None]) -> None:  # fmt: skip
        self.site, self.reference, self.plan, self.ledger = site, reference, plan, ledger
        self.number, self.limit, self.dice, self.say = number, limit, dice, say
        self.kills = self.restarts = self.broken = 0
        self.whole = disk.Wholeness()
        self.watches: dict[Aim, Watch] = {}
        self.wounds: list[_Wound] = []
        self.disturbed: Counter[tuple[int, str]] = Counter()
        self.server_back: float | None = None
        self.began = time.monotonic()

    def run(self) -> list[str]:
        """Run the line to its end under the aims; the differences from the reference, one line each."""
        self._start()
        while not self._ended():
            time.sleep(_LOOK)
            self._look()
            self._aim()
        self._heal(final=True)
        return self._compare()

    def _start(self) -> None:
        self.driver, self.up, self.owned = self.site.start(), time.monotonic(), False
        self.last, self.last_signs = time.monotonic(), disk.Signs()

    def _again(self, why: str) -> None:
        """Give the same command again, with the server up: who starts a line while its registry is away is told so."""
        self.restarts += 1
        if self.server_back is not None and self.site.server:
            self.server_back = None
            self.site.server.start()
            self.site.server.wait()
        self.ledger.add("restart", round=self.number, why=why)
        self._start()

    def _ended(self) -> bool:
        """Whether the line is finished. A driver that ended otherwise is started again, and counts as a broken promise."""
        code = self.driver.poll()
        if code is None:
            return False
        missing = set(self.reference.steps) - set(disk.recorded(self.site.work))
        if code == 0 and not missing:
            return True
        said = self.site.log.read_text()[-3000:]
        self._break(f"the driver ended with {code} and was not killed; missing: {sorted(missing)}", said)
        if self.broken > _BROKEN:
            raise GaveUp(f"{self.broken} broken promises in one round")
        self._again("it ended by itself")
        return False

    def _break(self, what: str, said: str = "") -> None:
        self.broken += 1
        self.ledger.add("broken", round=self.number, what=what, said=said, kill=self.kills)
        self.say(f"BROKEN PROMISE: {what}\n" + "".join(f"    | {line}\n" for line in said.splitlines()[-25:]))

    def _look(self) -> None:
        """Keep account of what the line does by itself."""
        now, at = time.monotonic(), disk.working(self.site.work, self.driver.pid)
        self.owned = self.owned or at is not None
        if self.server_back is not None and now >= self.server_back and self.site.server:
            self.server_back = None
            self.site.server.start()
        if now - self.last < 0.1 and not self.wounds:
            return
        signs = disk.signs(self.site.work, at)
        if signs != self.last_signs:
            self.last, self.last_signs = now, signs
        self.site.note()
        self._heal()
        if now - self.last > _STALLED:
            self._break(f"no sign of work for {_STALLED:.0f} s", self.site.log.read_text()[-3000:])
            kill_all(self.site.processes())
            self._again("it hung")

    def _aim(self) -> None:
        """Kill, if the moment of an aim has come; pass over an aim whose moment is gone."""
        for aim in self.plan.heads() if self.kills < self.limit else ():
            if aim not in self.watches:
                self.watches = {
                    head: self.watches.get(head) or Watch(head, self.reference.seconds) for head in self.plan.heads()
                }
            up = time.monotonic() - self.up
            due = self.watches[aim].due(
                self.site.work, self.driver.pid, up, len(self.reference.steps), lambda: victims.ray_age(self.driver)
            )
            if due is None:
                done = disk.recorded(self.site.work)
                self.ledger.add("missed", round=self.number, aim=str(aim), victim=aim.victim)
                self.plan.missed(aim, [name for name in self.reference.steps if name not in done])
            elif due and self._kill(aim):
                self.plan.hit(aim)
                return

    def _kill(self, aim: Aim) -> bool:
        """Kill the aim's victim and write it down. False if nobody plays that role now."""
        at = disk.working(self.site.work, self.driver.pid)
        role, key = aim.victim, (self.site.starts, at.step if at else "")
        if role in victims.SURVIVED - {"server"} and self.disturbed[key] >= _DISTURBANCES:
            role = "driver"
        found = victims.find(role, self.site, self.driver)
        if not found or self.driver.poll() is not None:
            return False
        titles = [found[0].name(), found[0].pid] if role != "power" else [f"{len(found)} processes", self.driver.pid]
        wound = self._wound(at, role)
        if role == "power" and self.site.server:
            found += self.site.server.processes()
        kill_all(found)
        self.disturbed[key] += 1
        self.kills += 1
        self._tell(aim, role, titles, wound, at)
        self.wounds.append(wound)
        if role in ("server", "power") and self.site.server:
            self.server_back = time.monotonic() + (self.dice.uniform(0, 3) if role == "server" else 0)
        if role in ("driver", "power"):
            self.driver.wait()
            self._check_published()
            self._again(f"the {role} was killed")
        return True

    def _wound(self, at: disk.Working | None, role: str) -> _Wound:
        """How the line stands just before a kill."""
        done = len(disk.recorded(self.site.work)) >= len(self.reference.steps)
        stage = at.stage if at else "end" if done else "between" if self.owned else "start"
        started = time.time() - (time.monotonic() - self.up)
        return _Wound(
            self.kills + 1, time.monotonic(), stage, at.step if at else "", disk.signs(self.site.work, at),
            disk.certificates(self.site.work), disk.checkpoint(at.folder) if at else 0,
            disk.since_commit(self.site.work, at, started),
            role,
            at is not None and (at.folder / "record.json").exists(),
        )  # fmt: skip

    def _tell(self, aim: Aim, role: str, titles: list[Any], wound: _Wound, at: disk.Working | None) -> None:
        step = wound.signs.train[2] if wound.step in TRAINING else None
        self.ledger.add(
            "kill", round=self.number, number=self.kills, victim=role, name=titles[0], pid=titles[1], stage=wound.stage,
            step=wound.step, aim=str(aim), seconds=round(wound.at - self.began, 2), train_step=step,
            checkpoint=wound.checkpoint, units=len(wound.units), lost_s=round(wound.lost, 2), start=self.site.starts,
        )  # fmt: skip
        how_far = f", training step {step}, checkpoint {wound.checkpoint}" if step is not None else ""
        self.say(
            f"{wound.at - self.began:6.1f} s  kill {self.kills}: {role} ({titles[0]}, {titles[1]}) in "
            f"{wound.step or wound.stage}{how_far}, {len(wound.units)} units, {wound.lost:.1f} s since the last commit"
        )

    def _check_published(self) -> None:
        """Whatever has its real name is whole, at any moment: nobody lives who could mend it before it is looked at."""
        for problem in self.whole.problems(self.site.work):
            self.ledger.add("torn", round=self.number, kill=self.kills, what=problem)
            self.say(f"DIFFERENCE: after kill {self.kills}: {problem}")

    def _heal(self, final: bool = False) -> None:
        """Close the wounds once there is a sign of work again, and say what was lost."""
        at = disk.working(self.site.work, self.driver.pid)
        for wound in list(self.wounds):
            now = disk.signs(self.site.work, at)
            if not final and not _recovered(wound, now):
                continue
            self.wounds.remove(wound)
            resumed = self._resumed(wound, at)
            kept = disk.certificates(self.site.work)
            # The orphaned ranks of a killed driver may have gone further before they ended: then nothing is lost.
            lost = max(0, wound.signs.train[2] - resumed) if resumed is not None else None
            redone = sum(kept.get(name) != stamp for name, stamp in wound.units.items())
            after = round(time.monotonic() - wound.at, 2)
            self.ledger.add(
                "back", round=self.number, kill=wound.number, after_s=after, lost_s=round(wound.lost, 2),
                resumed_from=resumed, lost_steps=lost, units_redone=redone,
            )  # fmt: skip
            if resumed is not None and resumed < wound.checkpoint:
                self._break(f"{wound.step} went on from step {resumed}, checkpoint {wound.checkpoint} was published")
            told = f", from training step {resumed}: {lost} steps again" if resumed is not None else ""
            self.say(
                f"           at work {after:.1f} s after kill {wound.number}{told}; {redone} finished units made again"
            )

    def _resumed(self, wound: _Wound, at: disk.Working | None) -> int | None:
        """The training step that was resumed from, where that was seen."""
        attempt, count, step = wound.signs.train
        if wound.step not in TRAINING or not step or wound.recorded:
            return None
        if at and at.step == wound.step:
            lines = disk.progress(at.attempt)
            fresh = lines[count:] if at.attempt.name == attempt else lines
            if at.attempt.name != attempt:
                return int(fresh[0]["step"]) - 1 if fresh else None
            return next((int(line["step"]) - 1 for line in fresh if line["step"] <= step), step)
        folder = disk.recorded(self.site.work).get(wound.step)
        metrics = json.loads((folder / "record.json").read_bytes())["metrics"] if folder else {}
        return metrics.get("resumed_from")

    def _compare(self) -> list[str]:
        """All that has to hold at the end of the round."""
        found = [f"left over: process {process}" for process in self.site.left(20)]
        if self.site.server:
            self.site.server.kill()
        checked = self.site.ask("verify")
        found += outcome.unverified(checked.stdout + checked.stderr)
        seen = outcome.facts(self.site.work, self.site.registry)
        found += outcome.leftovers(self.site.work) + outcome.curve_matches_metrics(self.site.work, seen)
        found += outcome.differences(self.reference.facts, seen)
        files = outcome.compared_files(seen)
        self.ledger.add(
            "round", round=self.number, files=files, facts=len(seen), differences=found, kills=self.kills,
            restarts=self.restarts, seconds=round(time.monotonic() - self.began, 1), served=self.site.server is not None,
        )  # fmt: skip
        for line in found:
            self.say(f"DIFFERENCE: {line}")
        return found


def _recovered(wound: _Wound, now: disk.Signs) -> bool:
    """Whether work went on after the kill. That nobody trains any more is no sign of it, nor what the dying still did."""
    settled = time.monotonic() - wound.at >= (_ORPHANED if wound.victim in ("raylet", "gcs", "apart") else _SETTLE)
    counted = (now.records, now.units) != (wound.signs.records, wound.signs.units)
    return settled and (counted or now.train not in (wound.signs.train, disk.Signs().train))


class GaveUp(RuntimeError):
    """A round that breaks promise after promise is not going to end."""
