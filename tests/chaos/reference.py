"""The undisturbed run that all others are compared with: made once for a code, a recipe and a machine.

The one idea: it is kept under a digest of everything that decides it (DESIGN rule 3: recipe, code, numerics), so that
batches share it and a changed line of code makes it anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.chaos import disk, outcome
from tests.chaos.site import ROOT, SETTINGS, seed_registry, site

CACHE = ROOT / ".cache" / "chaos"


@dataclass(frozen=True)
class Reference:
    """What an undisturbed line gives, in which order, and how long each step took."""

    facts: outcome.Facts
    seconds: dict[str, float]
    train_steps: dict[str, int]

    @property
    def steps(self) -> list[str]:
        """The steps in the order in which they were done."""
        return list(self.seconds)


def reference(
    recipe: str, until: str | None, tree: Path = ROOT, settings: Mapping[str, object] = SETTINGS
) -> Reference:
    """The reference, from the cache or made now with the code in `tree`."""
    key = {
        "recipe": recipe,
        "until": until,
        "settings": dict(settings),
        "code": _code(recipe, tree),
        "machine": _machine(),
    }
    name = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()[:16]
    file = CACHE / f"reference-{name}.json"
    if not file.exists():
        made = _make(recipe, until, tree, settings)
        CACHE.mkdir(parents=True, exist_ok=True)
        draft = file.with_suffix(f".{os.getpid()}")
        draft.write_text(json.dumps(asdict(made)))
        draft.rename(file)
    return Reference(**json.loads(file.read_text()))


def _make(recipe: str, until: str | None, tree: Path, settings: Mapping[str, object]) -> Reference:
    with site(recipe=recipe, until=until, tree=tree, settings=settings) as quiet:
        seed_registry(quiet, template(), served=False)
        if quiet.start().wait():
            raise RuntimeError(f"the undisturbed run failed:\n{quiet.log.read_text()}")
        made = measured(quiet.work, quiet.registry)
        wrong = outcome.leftovers(quiet.work) + outcome.curve_matches_metrics(quiet.work, made.facts)
        if wrong:
            raise RuntimeError(f"the undisturbed run is no reference: {wrong}")
        return made


def measured(work: Path, registry: Path) -> Reference:
    """A finished line as the reference for others."""
    records = {name: _record(folder) for name, folder in disk.recorded(work).items()}
    order = sorted(records, key=lambda name: records[name]["finished"])
    counts = {name: records[name]["metrics"]["steps"] for name in order if "steps" in records[name]["metrics"]}
    return Reference(outcome.facts(work, registry), {name: records[name]["seconds"] for name in order}, counts)


def template() -> Path:
    """An MLflow database with its tables, which takes seconds to make."""
    folder = CACHE / "registry"
    if not (folder / "mlflow.db").exists():
        make = "import sys; from pipelines import registry; registry.ensure_store(sys.argv[1])"
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, "-c", make, str(folder)], cwd=ROOT, env=environment, check=True)
    return folder / "mlflow.db"


def commit(tree: Path = ROOT) -> str:
    """The commit of the code, with -dirty if it was changed since."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
        cwd=tree, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return described.stdout.strip() or "no-commit"


def _record(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "record.json").read_bytes()))


def _code(recipe: str, tree: Path) -> dict[str, str]:
    files = [path for room in ("pipelines", "model", "cluster") for path in (tree / room).rglob("*.py")]
    others = (ROOT / "constraints.txt", Path(__file__).with_name("outcome.py"), Path(recipe.rpartition(":")[0]))
    files += [path for path in others if path.is_file()]
    return {str(path).removeprefix(str(tree)): disk.sha256(path) for path in sorted(files)}


def _machine() -> dict[str, Any]:
    about = Path("/proc/cpuinfo").read_text()
    return {"cores": os.cpu_count(), "cpu": re.findall(r"^(?:model name|flags)\s*: (.*)$", about, re.M)[:2]}
