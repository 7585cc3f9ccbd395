"""Commands on toy stages that the fault tests kill: functions of the work directory. No Ray, no models, no MLflow."""

from __future__ import annotations

import sys
from pathlib import Path

from pipelines import recipes, run
from pipelines.config import Execution
from pipelines.engine import digests
from pipelines.engine.digests import Digests
from tests.pipelines.engine import toys

# Remember every digest at once: with the real tick it depends on the clock how often the cache is written.
digests._TICK_NS = -(10**18)


def workspace(root: Path, text: str = "ab") -> run.Workspace:
    """The toy flow in `root`."""
    return run.Workspace(
        recipes.tiny(), Execution(), root, toys.flow(text=text), Digests(root / "digests.json"), toys.EXECUTION
    )


def flow(root: Path) -> None:
    """Run the toy flow as `pipelines.run` runs a real one: plan, lease, units, outputs, record, digests."""
    root.mkdir(exist_ok=True)
    outcomes = list(
        run.run(
            workspace(root),
            run.unwatched,
            on_wait=lambda owner: print(f"waiting: {owner} is at work on this step", file=sys.stderr),
            on_damage=lambda damage: print(f"rebuilding: {damage}", file=sys.stderr),
        )
    )
    print(f"{sum(outcome.done_now for outcome in outcomes)} of {len(outcomes)} steps done now", file=sys.stderr)
