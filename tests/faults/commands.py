"""Commands on toy stages that the fault tests kill: functions of the work directory. No Ray, no models, no MLflow."""

from __future__ import annotations

import datetime
import sys
from pathlib import Path
from typing import Any

from model import durable
from pipelines import cleaning, pull, recipes, run, sources
from pipelines.aliased import aliased
from pipelines.config import Source
from pipelines.engine import record as records
from pipelines.engine import step as steps
from pipelines.engine.digests import Digests
from pipelines.engine.record import Record
from pipelines.engine.step import Attempt
from pipelines.execution import Execution
from pipelines.model_card import Card
from pipelines.model_versions import ModelVersion
from pipelines.package import build_package
from pipelines.retention import Retention
from tests.faults.forkserver import outcome
from tests.pipelines import nightly
from tests.pipelines.engine import toys
from tests.pipelines.tiny_exports import safetensors


def workspace(root: Path, text: str, lease_seconds: float, **config: Any) -> run.Workspace:
    """The toy flow in `root`."""
    execution = toys.EXECUTION | {"lease_seconds": lease_seconds}
    steps = toys.flow(text=text, **config)
    return run.Workspace(recipes.tiny(), Execution(), root, steps, Digests(root / "digests.json"), execution)


def flow(root: Path, text: str = "ab", lease_seconds: float = 2.0, wait: bool = True, **config: Any) -> None:
    """Run the toy flow as `pipelines.run` runs a real one: plan, lease, units, outputs, record, digests."""
    root.mkdir(exist_ok=True)
    outcomes = list(
        run.run(
            workspace(root, text, lease_seconds, **config),
            run.unwatched,
            on_wait=lambda owner: print(f"waiting: {owner} is at work on this step", file=sys.stderr, flush=True),
            on_damage=lambda damage: print(f"rebuilding: {damage}", file=sys.stderr, flush=True),
            wait=wait,
        )
    )
    told = f"{sum(outcome.done_now for outcome in outcomes)} of {len(outcomes)} steps done now"
    print(told, file=sys.stderr, flush=True)


def hasty(root: Path) -> None:
    """A flow of one unit whose owner counts as dead after a moment: for being frozen and overtaken."""
    flow(root, "a", lease_seconds=0.1)


def beating(root: Path) -> None:
    """A flow that outlives its lease many times, if nobody keeps it alive."""
    flow(root, lease_seconds=0.2, seconds=0.5)


# Of processes that live: however late a busy machine lets one give its sign of life, nobody takes it for dead.
PATIENT = 120.0


def slow(root: Path) -> None:
    """A flow that works long enough to be met at work."""
    flow(root, lease_seconds=PATIENT, seconds=0.5)


def frail(root: Path) -> None:
    """`slow`, whose owner counts as dead after two seconds: for being frozen, or not seen."""
    flow(root, seconds=0.5)


def slow_abc(root: Path) -> None:
    """Like `slow`, of other units."""
    flow(root, "abc", PATIENT, seconds=0.3)


def slow_bcd(root: Path) -> None:
    """Shares two units with `slow_abc`."""
    flow(root, "bcd", PATIENT, seconds=0.3)


def impatient(root: Path) -> None:
    """`slow`, but it does not wait for anybody."""
    flow(root, lease_seconds=PATIENT, wait=False, seconds=0.5)


def rounds(root: Path) -> None:
    """The flow in one folder after the other, each when a line comes in: for starting many processes at once."""
    print("ready", flush=True)
    for line in sys.stdin:
        flow(root / line.strip(), lease_seconds=PATIENT, seconds=0.2)
        print("done", flush=True)


def _export(folder: Path, weights: bytes) -> None:
    """What training hands over, as far as packaging looks at it."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(safetensors(weights))


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
    """Pull the second package over a pull of the first, through a cache. The registry is a folder here."""
    source = root / "package-2"
    digest = durable.read_json(source / "MANIFEST.json")["digest"]
    origin = pull.From("registry", cache=root / "cache")
    version = ModelVersion("toy", 2, str(source), digest, None)
    pull.pull_version(origin, version, root / "pulled" / "model", "toy@2")


NIGHTS = [["a"], ["a", "b"], ["a", "b", "c"]]  # what the corpus of `nights` holds, night for night


def nights(root: Path) -> None:
    """Three nights of a toy line, all the same age; not killed, only prepared."""
    registry = nightly.registry(root.parent / f"{root.name}-registry")
    for number, files in enumerate(NIGHTS):
        nightly.go(root, nightly.flow(files, champion=number == 0), registry)


def gc(root: Path) -> None:
    """Keep the newest of each step, and the champion's run."""
    registry = f"sqlite:///{root.parent / 'prepared-registry' / 'mlflow.db'}"
    now = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=1)
    cleaning.collect(root, Retention(days=0, count=1), now, lambda: aliased(root, registry), seconds=2.0)


def careless(root: Path) -> None:
    """A step that writes its record in place: what the tests must find."""

    def commit(record: Record, attempt: Attempt) -> None:
        durable.publish_folder(attempt.outputs, attempt.folder / "outputs")
        (attempt.folder / "record.json").write_bytes(records.to_json(record))

    steps._commit = commit
    root.mkdir(exist_ok=True)
    toys.run(root, toys.flow(text="a")[:1])


def corpus(root: Path) -> None:
    """Find the files of a corpus that has a folder in it."""
    (root / "corpus" / "folder").mkdir(parents=True)
    for name in ("a.txt", "folder/b.txt"):
        (root / "corpus" / name).write_text("text")
    found = sources.described(Source(path=str(root / "corpus")), root / "cache", durable.sha256, fetch=False)
    assert len(found) == 2, found


if __name__ == "__main__":  # python -m tests.faults.commands NAME FOLDER
    sys.exit(outcome(lambda: globals()[sys.argv[1]](Path(sys.argv[2]))))
