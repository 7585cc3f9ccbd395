"""Commands on toy stages that the fault tests kill: functions of the work directory. No Ray, no models, no MLflow."""

from __future__ import annotations

import sys
from pathlib import Path

from model import durable
from pipelines import pull, recipes, run
from pipelines.config import Execution
from pipelines.engine import digests
from pipelines.engine import record as records
from pipelines.engine import step as steps
from pipelines.engine.digests import Digests
from pipelines.engine.record import Record
from pipelines.engine.step import Attempt
from pipelines.model_card import Card
from pipelines.package import build_package, verify_package
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


def _export(folder: Path, weights: bytes) -> None:
    """What training hands over, as far as packaging looks at it."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(weights)


def package(root: Path) -> None:
    """Package an export in a folder of the attempt, as the stage `register` does: a rerun has another attempt."""
    root.mkdir(exist_ok=True)
    _export(root / "export", b"weights" * 100)
    attempt = root / f"attempt-{len(list(root.glob('attempt-*')))}"
    attempt.mkdir()
    build_package(root / "export", attempt / "package", Card("toy", "text-classification", "A test."))


def packages(root: Path) -> None:
    """Two packages, to be pulled one after the other; not killed, only prepared."""
    root.mkdir()
    for version in ("1", "2"):
        _export(root / f"export-{version}", b"weights" * int(version) * 100)
        card = Card("toy", "text-classification", "A test.")
        build_package(root / f"export-{version}", root / f"package-{version}", card)


def pulled(root: Path) -> None:
    """Pull the second package over a pull of the first. The registry's part, fetching, is a plain copy here."""
    source = root / "package-2"
    manifest = verify_package(source)

    def fetch(staging: Path) -> None:
        for name in ["MANIFEST.json", *manifest["files"]]:
            durable.write_bytes(staging / name, (source / name).read_bytes())
        verify_package(staging)

    pull.place(root / "pulled" / "model", manifest["digest"], fetch)


def careless(root: Path) -> None:
    """A step that writes its record in place: what the tests must find."""

    def commit(record: Record, attempt: Attempt) -> None:
        durable.publish_folder(attempt.outputs, attempt.folder / "outputs")
        (attempt.folder / "record.json").write_bytes(records.to_json(record))

    steps._commit = commit
    root.mkdir(exist_ok=True)
    toys.run(root, toys.flow(text="a")[:1])
