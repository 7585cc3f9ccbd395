"""When to kill: moments drawn from a seed, spread over the stages, and recognised by watching the work directory.

The one idea: the seed decides what is aimed at (which step, how far into it, which victim); the machine decides what
is hit, and what was hit is what is written down.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.chaos import disk
from tests.chaos.victims import OUTSIDE, STARTING, WEIGHTS

TRAINING = ("pretrain", "finetune")
_TRAINING_AIMS = 4  # aims at a training step for one at any other, there is more to be hit in it
_STARTED = 12.0  # seconds, after which a Ray is taken to be up
_FRESH = 0.5  # seconds by which a kill at a start may come late
_LASTS = {"start": 2.5, "ray": 8.0, "end": 1.5}  # seconds; a Ray takes so long to start on a busy machine
FREE = ("start", "anytime", "ray")


@dataclass(frozen=True)
class Aim:
    """One intended kill: in which step, at which kind of moment, and of whom.

    `kind` and `value`: "time", a share of the step's usual time; "train_step", its number; "checkpoint", one of this or
    a later step appears; "outputs" and "record", the
    moment these appear and up to 30 ms later; "start", "ray", "end" and "anytime", seconds after a start, the start of a
    Ray, the last record, the aim before.
    """

    step: str
    kind: str
    value: float
    victim: str

    def __str__(self) -> str:
        where = {
            "time": f"{self.value:.0%} of its time",
            "train_step": f"training step {self.value:.0f}",
            "checkpoint": f"checkpoint {self.value:.0f}",
        }
        return f"{self.step}, {where.get(self.kind, self.kind)}"


class Plan:
    """The aims of one round: `aims` at steps, in the order of the line, and `free` ones beside them, at any step.

    An aim whose moment has passed gives another one further on.
    """

    def __init__(self, dice: random.Random, steps: Sequence[str], victims: Sequence[str], train_steps: Mapping[str, int]) -> None:  # fmt: skip
        self._dice, self._steps, self._victims, self._train_steps = dice, list(steps), victims, train_steps
        self.aims: list[Aim] = []
        self.free: list[Aim] = []
        self._replace = True

    @staticmethod
    def of(aims: Sequence[Aim]) -> Plan:
        """These aims and no others."""
        plan = Plan(random.Random(0), [], (), {})
        plan.aims, plan._replace = list(aims), False
        return plan

    def draw(self, count: int, only: str | None = None) -> Plan:
        """Add `count` aims: each step gets its share, and so do starts, ends and moments that aim at no step; or `only` one of these."""
        slots = [name for name in self._steps for _ in range(_TRAINING_AIMS if name in TRAINING else 2)]
        slots += ["start", "start", "ray", "ray", "anytime", "anytime", "end"]
        slots = [only] * count if only else slots
        chosen: list[str] = []
        while len(chosen) < count:
            chosen += self._dice.sample(slots, min(len(slots), count - len(chosen)))
        for name in chosen:
            self._place(self._aim(name))
        return self

    def heads(self) -> list[Aim]:
        """The aims whose turn it is."""
        return self.aims[:1] + self.free[:1]

    def hit(self, aim: Aim) -> None:
        """The aim is done with."""
        (self.free if aim.kind in FREE else self.aims).pop(0)

    def missed(self, aim: Aim, left: Sequence[str]) -> None:
        """The aim came too late: another one, at one of the steps that are `left`, takes its place."""
        self.hit(aim)
        if left and self._replace:
            self._place(self._aim(self._dice.choice(list(left))))

    def _place(self, aim: Aim) -> None:
        if aim.kind in FREE:
            self.free.append(aim)
        else:
            order = {name: index for index, name in enumerate([*self._steps, "end"])}
            later = [index for index, other in enumerate(self.aims) if order[other.step] > order[aim.step]]
            self.aims.insert(min(later, default=len(self.aims)), aim)

    def _aim(self, name: str) -> Aim:
        dice = self._dice
        usual_victims = STARTING if name == "ray" else WEIGHTS.get(name.split("-")[0], OUTSIDE)
        weights = dict(usual_victims) | ({} if name == "ray" else {"server": 2.0})
        possible = {victim: weight for victim, weight in weights.items() if victim in self._victims} or {"driver": 1}
        victim = dice.choices(list(possible), list(possible.values()))[0]
        if name == "anytime":
            return Aim(name, name, dice.uniform(0, 25), victim)
        if name in _LASTS:
            return Aim(name, name, dice.uniform(0, _LASTS[name]), victim)
        usual = (
            ["train_step", "train_step", "train_step", "checkpoint"] + ["time"] * 2
            if name in TRAINING
            else ["time"] * 6
        )
        kind = dice.choice([*usual, "outputs", "record"])
        counted = kind in ("train_step", "checkpoint")
        value = dice.randint(1, self._train_steps[name]) if counted else dice.uniform(0, 1)
        return Aim(name, kind, value, victim)


class Watch:
    """Waits for one aim's moment while a driver works: call `due` again and again."""

    def __init__(self, aim: Aim, seconds: Mapping[str, float]) -> None:
        self.aim, self._seconds = aim, seconds
        self._since: float | None = None  # when the step was first seen at work
        self._began = time.monotonic()
        self._committing: float | None = None

    def due(self, work: Path, pid: int, up: float, wanted: int, ray: Callable[[], float | None]) -> bool | None:
        """Whether it is the moment: None once it is too late. `up` are the driver's seconds, `ray` its newest Ray's, `wanted` its steps."""
        aim, now = self.aim, time.monotonic()
        if aim.kind == "anytime":
            return now - self._began >= aim.value
        if aim.kind == "start":  # of the next driver that starts
            return aim.value <= up < aim.value + _FRESH
        if aim.kind == "ray":
            return (age := ray()) is not None and aim.value <= age < _STARTED  # or as soon as the victim is there
        done = disk.recorded(work)
        if aim.kind == "end":
            self._since = self._since or (now if len(done) >= wanted else None)
            return self._since is not None and now - self._since >= aim.value
        at = disk.working(work, pid)
        if at is not None and at.step == aim.step:
            self._since = self._since or now
            return self._inside(at, now)
        return None if aim.step in done else False

    def _inside(self, at: disk.Working, now: float) -> bool:
        assert self._since is not None
        if self.aim.kind == "time":
            return now - self._since >= self.aim.value * self._seconds.get(at.step, 1.0)
        if self.aim.kind == "train_step":
            lines = disk.progress(at.attempt)
            return bool(lines) and lines[-1]["step"] >= self.aim.value
        if self.aim.kind == "checkpoint":
            return disk.checkpoint(at.folder) >= self.aim.value
        if (at.folder / {"outputs": "outputs", "record": "record.json"}[self.aim.kind]).exists():
            self._committing = self._committing or now
        return self._committing is not None and now - self._committing >= self.aim.value * 0.03
