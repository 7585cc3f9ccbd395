"""What a line on several hosts is compared with: the same recipe, undisturbed, by one machine alone.

The one idea: hosts are nowhere in a recipe, so what several of them make together, in whatever circumstances, is what
one makes, to the byte where the numerics are the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tests.chaos import disk, outcome
from tests.chaos.reference import Reference, reference
from tests.hosts.fleet import Fleet

# Many shards and steps, so that there is something to be lost, and batches that two and three ranks can share.
RECIPE: Mapping[str, object] = {
    "shard.shard_bytes": 16384,
    "pretrain.max_steps": 120,
    "pretrain.global_batch_size": 12,
    "finetune.max_steps": 30,
    "finetune.global_batch_size": 12,
}
# What decides the last bits, and is the same on all machines here.
NUMERICS: Mapping[str, object] = {"execution.ranks": 2, "execution.threads": 1, "execution.micro_batch_size": 2}
# A cluster computes evaluations with the threads of a rank, a single machine with those of its workers.
ALONE: Mapping[str, object] = {"execution.workers": 1, "execution.checkpoint_every": 10}
ON_HOSTS: Mapping[str, object] = {
    "execution.placement": "strict_spread",
    "execution.checkpoint_every": 10,
    "execution.lease_seconds": 5.0,
    "execution.wait_for_ranks": 40.0,
}


def alone(until: str | None = None, **changed: object) -> Reference:
    """What one machine makes of the recipe. `changed` are settings, with __ for the dot."""
    return reference("tiny", until, settings={**RECIPE, **NUMERICS, **ALONE, **dotted(changed)})


def settings(**changed: object) -> dict[str, object]:
    """The settings of a line on several hosts."""
    return {**RECIPE, **NUMERICS, **ON_HOSTS, **dotted(changed)}


def dotted(changed: Mapping[str, object]) -> dict[str, object]:
    """Keywords as settings."""
    return {key.replace("__", "."): value for key, value in changed.items()}


def differences(fleet: Fleet, expected: Reference) -> list[str]:
    """In what the fleet's line differs from the reference, and what the dead have left over."""
    seen = outcome.facts(fleet.work, fleet.registry)
    wrong = outcome.differences(expected.facts, seen) + outcome.leftovers(fleet.work)
    return wrong + outcome.curve_matches_metrics(fleet.work, seen)


def checkpoint(work: Path, stage: str) -> int:
    """The newest checkpoint of a stage, 0 if there is none."""
    return max((disk.checkpoint(folder) for folder in (work / "steps").glob(f"{stage}-*")), default=0)


def tokens(work: Path) -> int:
    """How many token shards are finished."""
    return len(list((work / "units" / "tokens").glob("*/*.json")))


def progress(work: Path, stage: str) -> int:
    """The step that a stage has made last, 0 if there is none."""
    attempts = sorted((work / "steps").glob(f"{stage}-*/attempts/*"))
    return max((found[-1]["step"] for attempt in attempts if (found := disk.progress(attempt))), default=0)


def aliases(fleet: Fleet) -> dict[str, str]:
    """The version that is champion, by model."""
    seen = outcome.facts(fleet.work, fleet.registry)
    return {name.split()[1]: value for name, value in seen.items() if name.endswith("alias champion")}
