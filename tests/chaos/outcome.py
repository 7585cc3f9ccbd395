"""What a finished line is, and in what two of them differ.

The one idea: a line is flattened to names and values (digests of files by their path, facts of records, what MLflow
holds), so that comparing is comparing two dictionaries, and a difference has a name.

The samples seen, in order, are not stored anywhere: the metrics of each step (loss and gradient norm as exact floats) pin
them, because another sample or another order gives another loss.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tests.chaos import disk

Facts = dict[str, Any]
# Metrics of a record that tell how it was made, not what: they may differ.
_HOW = re.compile(r"(_per_second|_reused|seconds|registry|resumed_from|(^|_)(re)?starts?|deaths)$")
_COMES_AND_GOES = ("lease", "attempts", "checkpoints")
_OWN = re.compile(r"digests\.json|\.(digests|outbox-[0-9a-f]+)\.json\.[0-9a-f]+\.tmp")
# A draft of one of the two files in no owner's folder may be a living writer's: the product sweeps it when it is old.


def facts(work: Path, registry: Path) -> Facts:
    """All that has to be the same, as plain JSON: names that begin with "file" are digests, all others are facts."""
    found = _files(work) | _records(work) | _packages(registry) | _mlflow(registry)
    return dict(json.loads(json.dumps(found)))


def compared_files(found: Facts) -> int:
    """How many of the facts are files' digests."""
    return sum(name.startswith("file ") for name in found)


def differences(expected: Facts, seen: Facts) -> list[str]:
    """One line for each name that is in one of the two only, or differs."""
    lines = []
    for name in sorted(expected.keys() | seen.keys()):
        if name not in seen:
            lines.append(f"{name}: is missing")
        elif name not in expected:
            lines.append(f"{name}: is there and should not be ({str(seen[name])[:80]})")
        elif expected[name] != seen[name]:
            lines.append(f"{name}: {str(seen[name])[:120]} instead of {str(expected[name])[:120]}")
    return lines


def leftovers(work: Path) -> list[str]:
    """What the dead have left and nobody will remove: attempts with files, checkpoints of finished steps, drafts."""
    found = []
    for folder in disk.recorded(work).values():
        for attempt in (folder / "attempts").glob("*"):
            found += [attempt] if attempt.is_dir() else []  # a file is a tombstone, and stays
        found += list((folder / "checkpoints").glob("*")) + list(folder.glob(".*"))
    found += [path for path in work.rglob("*.tmp") if not any(parent in path.parents for parent in found)]
    found = [path for path in found if not _OWN.fullmatch(str(path.relative_to(work)))]
    return [f"left over: {path.relative_to(work)}" for path in sorted(set(found))]


def unverified(said: str) -> list[str]:
    """The lines of `verify` that name something as damaged, missing or unowned."""
    named = [line for line in said.splitlines() if re.match("(damaged|missing|unowned): ", line)]
    wrong = [f"verify: {line}" for line in named if not _OWN.fullmatch(line.removeprefix("unowned: "))]
    return wrong if re.search(r"\d+ damaged, \d+ missing, \d+ unowned", said) else [f"verify: {said[-2000:]}"]


def _files(work: Path) -> Facts:
    found = {}
    for path in sorted(work.rglob("*")):
        name = path.relative_to(work)
        passing = name.parts[0] == "stamps" or (
            name.parts[0] == "steps" and len(name.parts) > 2 and name.parts[2] in _COMES_AND_GOES
        )
        if path.is_file() and not passing and path.name != "record.json" and not _OWN.fullmatch(str(name)):
            found[f"file {name}"] = disk.sha256(path)
    return found


def _records(work: Path) -> Facts:
    found: Facts = {}
    for step, folder in disk.recorded(work).items():
        record = json.loads((folder / "record.json").read_bytes())
        for key in ("stage", "version", "fingerprint", "config", "inputs", "outputs", "numerics"):
            found[f"record {step} {key}"] = record[key]
        for key, value in record["metrics"].items():
            if not _HOW.search(key):
                found[f"record {step} metric {key}"] = value
    return found


def _packages(registry: Path) -> Facts:
    """The files that each registered artifact's manifest lists, and the manifest itself, wherever the store keeps them."""
    found: Facts = {}
    for manifest in sorted(registry.rglob("MANIFEST.json")):
        content = json.loads(manifest.read_bytes())
        place = f"file registered {content['digest'][:12]}"
        while f"{place} MANIFEST.json" in found:
            place += " (again)"
        found[f"{place} MANIFEST.json"] = disk.sha256(manifest)
        for name in content["files"]:
            path = manifest.parent / name
            found[f"{place} {name}"] = disk.sha256(path) if path.is_file() else "missing"
    return found


def _mlflow(registry: Path) -> Facts:
    """Runs with their status and curves, versions and aliases, asked of the database itself."""
    from mlflow import MlflowClient

    uri = f"sqlite:///{registry}/mlflow.db"
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    found: Facts = {}
    experiment = client.get_experiment_by_name("gptline")
    for run in client.search_runs([experiment.experiment_id]) if experiment else ():
        tags = run.data.tags
        name = f"run {tags.get('gptline.step', 'of the pipeline' if 'gptline.execution' in tags else run.info.run_id)}"
        while name in found:
            name += " (again)"
        found[name] = run.info.status
        found[f"{name} is below"] = "the pipeline" if "mlflow.parentRunId" in tags else "nothing"
        for key in ("loss", "grad_norm", "learning_rate"):
            points = [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, key)]
            if points:
                found[f"{name} curve {key}"] = [list(point) for point in points]
    for model in client.search_registered_models():
        versions = client.search_model_versions(f"name = '{model.name}'")
        found[f"model {model.name} versions"] = sorted(
            [int(version.version), version.tags.get("gptline.digest")] for version in versions
        )
        for alias, version in model.aliases.items():
            found[f"model {model.name} alias {alias}"] = str(version)
    return found


def curve_matches_metrics(work: Path, found: Facts) -> list[str]:
    """That MLflow's loss curve is the metrics file: one point a step with the same value."""
    wrong = []
    for step, folder in disk.recorded(work).items():
        file = folder / "outputs" / "metrics.jsonl"
        if file.exists():
            lines = [json.loads(line) for line in file.read_text().splitlines()]
            if found.get(f"run {step} curve loss") != [[line["step"], line["loss"]] for line in lines]:
                wrong.append(f"run {step} curve loss: is not what its metrics.jsonl says")
    return wrong
