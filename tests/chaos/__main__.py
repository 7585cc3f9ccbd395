"""Kill anything, at any moment, and compare: `make chaos KILLS=30 SEED=1`, or `python -m tests.chaos --help`.

The one idea: the `tiny` recipe is run to its end again and again, each time in a fresh place and under kills drawn from
the seed, until so many kills have really happened; what each round leaves is compared with an undisturbed run's.

    python -m tests.chaos --kills 30 --seed 1            # exit code 1 on any difference or broken promise
    python -m tests.chaos --report .cache/chaos.jsonl    # the tables over all batches
    python -m tests.chaos --self-test                    # planted faults have to be caught
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from tests.chaos import ledger as ledgers
from tests.chaos import moments, planted, victims
from tests.chaos.reference import commit, reference, template
from tests.chaos.round import GaveUp, Round
from tests.chaos.site import ROOT, SETTINGS, kill_all, seed_registry, site

_A_ROUND = 26  # kills aimed at in one round, at most
_LINGER = 90.0  # seconds: Ray's agents give up after 60
_SPARE = 3  # aims more than are wanted, because some will miss


def main() -> int:
    """One batch, a report or the self-test; the exit code."""
    options = _options()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))  # unwinds, so that nothing is left running
    if options.report:
        if not Path(options.report).is_file():
            raise SystemExit(f"--report {options.report}: there is no such log; run make chaos first")
        print("\n".join(ledgers.report(Path(options.report))))
        return 0
    if options.self_test:
        return planted.self_test()
    log = ledgers.Ledger(Path(options.log), commit=commit(options.tree), seed=options.seed, recipe=options.recipe, kills=options.kills)  # fmt: skip
    return batch(options, log)


def batch(options: argparse.Namespace, log: ledgers.Ledger) -> int:
    """Rounds until `options.kills` kills have happened or the time is over; 0 if all is as it should be."""
    say(f"reference: the undisturbed run of {options.recipe} at {commit(options.tree)[:12]}")
    expected = reference(options.recipe, options.until, options.reference or options.tree)
    say(
        f"reference: {len(expected.steps)} steps, {len(expected.facts)} facts, {sum(expected.seconds.values()):.0f} s of steps"
    )
    began, number, killed, lingering = time.monotonic(), 0, 0, list[psutil.Process]()
    while killed < options.kills and time.monotonic() - began < options.minutes * 60:
        number += 1
        kills, left = one_round(options, log, expected, number, options.kills - killed)
        killed, lingering = killed + kills, lingering + left
    seconds = time.monotonic() - began
    wait_for(lingering, log)
    log.add("end", seconds=round(seconds, 1))
    print("\n".join(ledgers.table(log.events)))
    found = ledgers.sums(log.events)
    say(f"{number} rounds in {seconds:.0f} s: {seconds / max(1, killed):.1f} s a kill; {found['broken promises']} broken promises; seed {options.seed}")  # fmt: skip
    print(ledgers.verdict(log.events), flush=True)
    return 1 if found["differences"] or found["kills in unfinished rounds"] else 0


def wait_for(lingering: list[psutil.Process], log: ledgers.Ledger) -> None:
    """Ray's agents have to end by themselves when they give up asking for their dead Ray."""
    began = time.monotonic()
    _, left = psutil.wait_procs(lingering, timeout=_LINGER)
    say(f"{len(lingering)} agents of killed Rays lived on for a while, the last one for {time.monotonic() - began:.0f} s after the last round")  # fmt: skip
    for process in left:
        log.add("broken", round=0, what=f"left over: process {process}", said="", kill=0)
        say(f"DIFFERENCE: left over: process {process}")
    kill_all(left)


def one_round(
    options: argparse.Namespace, log: ledgers.Ledger, expected: Any, number: int, wanted: int
) -> tuple[int, list[psutil.Process]]:
    """One round in a fresh place; how many kills it took, and which of Ray's agents outlived it."""
    dice = random.Random(f"{options.seed} {number}")
    roles = options.victims.split(",")
    plan = moments.Plan(dice, expected.steps, roles, expected.train_steps)
    plan = (
        moments.Plan.of(options.aim) if options.aim else plan.draw(min(wanted + _SPARE, options.a_round), options.only)
    )
    served, fresh = "server" in roles and dice.random() < options.served, dice.random() < 0.3
    with site(tree=options.tree, recipe=options.recipe, until=options.until) as place:
        seed_registry(place, None if fresh and not served else template(), served)
        say(
            f"round {number}: {len(plan.aims) + len(plan.free)} kills aimed at, MLflow {'behind a server' if served else 'in a folder'}, in {place.folder}"
        )
        this = Round(place, expected, plan, log, number, wanted, dice, say)
        try:
            different = this.run()
            say(f"round {number}: {this.kills} kills, {this.restarts} restarts, {len(different)} differences, {time.monotonic() - this.began:.0f} s")  # fmt: skip
        except GaveUp as end:
            say(f"round {number} was given up: {end}")
        return this.kills, place.lingering


def say(line: str) -> None:
    """Print, at once."""
    print(line, flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=30, help="kills that have to happen")
    parser.add_argument("--seed", default="1", help="decides what is aimed at")
    parser.add_argument("--recipe", default="tiny", help=f"a recipe; runs with {SETTINGS}")
    parser.add_argument("--log", default=str(ROOT / ".cache" / "chaos.jsonl"), help="JSONL log, appended to")
    parser.add_argument("--report", help="print the tables over all batches of this log and end")
    parser.add_argument("--self-test", action="store_true", help="builds with planted faults have to be caught")
    parser.add_argument("--victims", default=",".join(victims.ALL), help="who may be killed, with commas")
    parser.add_argument("--minutes", type=float, default=1e6, help="begin no round after so long")
    parser.add_argument("--a-round", type=int, default=_A_ROUND, help="kills aimed at in one round, at most")
    parser.add_argument("--served", type=float, default=0.25, help="share of rounds with an MLflow server")
    parser.add_argument(
        "--only", choices=moments.FREE, help="aim at moments of this kind only: ray, while a Ray starts"
    )
    parser.add_argument("--until", help="the last step, for a shorter line")
    parser.add_argument(
        "--tree", type=lambda text: Path(text).absolute(), default=ROOT, help="the code that is run, if not this one"
    )
    parser.add_argument("--reference", type=Path, help="the code that the undisturbed run is made with, if another one")
    parser.add_argument(
        "--aim", type=_given, action="append", help="STEP,KIND,VALUE,VICTIM: these instead of drawn ones"
    )
    return parser.parse_args()


def _given(text: str) -> moments.Aim:
    step, kind, value, victim = text.split(",")
    return moments.Aim(step, kind, float(value), victim)


if __name__ == "__main__":
    sys.exit(main())
