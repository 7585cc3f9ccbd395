"""register: an export becomes a model version that explains itself, and a champion if its gates pass.

The one idea: the registry is the truth. The package is a pure function of the export, its evaluation and its
lineage; registering it again finds the version that carries its digest.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model import durable
from model.vocabulary import FILES
from pipelines.engine.record import Record
from pipelines.engine.step import Attempt, Stage
from pipelines.stages import cards

STAGE = Stage("register", 2, "pipelines.stages.register:run", check="pipelines.stages.register:check")

CODE_TAG = "gptline.code"  # on a version: which code made each step, JSON. Equal packages may come from other code


def run(attempt: Attempt) -> dict[str, Any]:
    """Package, register, point the aliases; returns where the version is and what became of it."""
    from pipelines import registry
    from pipelines.package import build_package
    from pipelines.patience import patiently

    name = attempt.config["name"]
    evaluation = attempt.inputs.get("evaluation")  # none of a model that others trained
    metrics = durable.read_json(evaluation.path("metrics.json")) if evaluation else {}
    package = attempt.outputs / "package"
    digest = build_package(cards.weights(attempt), package, cards.card(attempt, metrics), _tokenizer(attempt))
    uri = registry.ensure_store(attempt.execution["registry"])
    tags = {"gptline.step": attempt.name, "gptline.fingerprint": attempt.fingerprint, CODE_TAG: _code(attempt)}
    tags |= {registry.SLOT_TAG: str(slot)} if (slot := attempt.execution.get("slot")) else {}
    if base := attempt.inputs.get("base"):
        tags |= {registry.BASE_TAG: f"{base.record.metrics['name']}@{base.record.metrics['version']}"}
    measured = _measured(attempt)
    tags |= {name: str(value) for name, value in measured.items()}  # not in outputs: those of equal runs do not differ
    gates = [_gate(gate, metrics | measured) for gate in attempt.config["gates"]]
    against = _comparison(attempt)
    if against:
        gates.append(registry.GateResult(registry.COMPARISON, against["better"], against["detail"]))
    over = str(against["champion_digest"]) if against else None

    patience, ours = attempt.execution["registry_patience"], attempt.confirm_owned
    version = patiently(uri, patience, f"registering {name}", lambda: registry.register(uri, name, package, tags, ours))
    # Apart: over a network that loses a request now and then, all the files and the aliases at one go would never succeed.
    if verified := all(gate.passed for gate in gates):
        patiently(uri, patience, f"verifying {name}", lambda: registry.verify_stored(uri, version, patience))
    gates = patiently(
        uri, patience, f"promoting {name}", lambda: registry.release(uri, version, gates, over, ours, verified)
    )
    durable.write_json(attempt.outputs / "registered.json", {"name": name, "digest": digest})
    return {
        "name": name,
        "version": version.version,
        "digest": digest,
        "registry": uri,
        "alias": "champion" if all(gate.passed for gate in gates) else "candidate",
        "gates": "; ".join(gate.detail for gate in gates) or "no gates",
        **measured,
        **(
            {"why": registry.reason_of(gates), "failed": [gate.metric for gate in gates if not gate.passed]}
            if against
            else {}
        ),
    }


def _tokenizer(attempt: Attempt) -> list[Path]:
    """The tokenizer's files of what an adapter was merged to: an adapter has none, and its base's has no chat template."""
    if attempt.config["kind"] != "adapter":
        return []
    folder = attempt.inputs["tokenizer"].path("export")
    return [folder / name for name in FILES if (folder / name).exists()]


def _comparison(attempt: Attempt) -> dict[str, Any] | None:
    """How the export compares with the champion, in a retraining slot; None where nothing was compared."""
    found = attempt.inputs.get("comparison")
    return dict(durable.read_json(found.path("comparison.json"))) if found else None


def _measured(attempt: Attempt) -> dict[str, int | float]:
    """What gates look at and evaluation does not measure: the size of the export's files in bytes, its latency in ms."""
    from pipelines.stages.evaluate import compute

    asked, found = {gate["metric"] for gate in attempt.config["gates"]}, dict[str, int | float]()
    if "export_bytes" in asked:
        files = durable.below(attempt.inputs["export"].path("export"))
        found["export_bytes"] = sum(path.stat().st_size for path in files if path.is_file())
    if "latency_ms" in asked:
        found["latency_ms"] = compute(attempt, "model.latency:measure")["latency_ms"]
    return found


def check(record: Record, execution: Mapping[str, Any]) -> str | None:
    """Why the record no longer holds: another registry, the version is lost, its aliases were moved, or nobody answers.

    In the last case the step is to do: doing it is patient, and finds the version that is there.
    """
    try:
        return _check(record, execution)
    except ConnectionError as error:
        return f"it cannot be checked now: {error}"


def _check(record: Record, execution: Mapping[str, Any]) -> str | None:
    from pipelines import registry

    uri, metrics = registry.tracking_uri(execution["registry"]), record.metrics
    name, version = metrics["name"], metrics["version"]
    if uri != metrics["registry"]:
        return f"the registry is now {uri}, was {metrics['registry']}"
    if not registry.version_exists(uri, name, version, metrics["digest"]):
        return f"{uri} has no version {version} of {name} with this digest any more"
    for alias in ("champion", "candidate") if metrics["alias"] == "champion" else ("candidate",):
        points_at = registry.alias_version(uri, name, alias)
        if points_at != version and not _moved_on(uri, name, alias, points_at):
            seen = f"points at version {points_at}" if points_at else "is gone"
            return f"{name}@{alias} {seen}, this recipe's is version {version}"
    return None


def _moved_on(uri: str, name: str, alias: str, points_at: int | None) -> bool:
    """Whether retraining or a person moved the alias on: that is no run's to take back."""
    from pipelines import promotion_log, registry

    if alias == "champion":
        log = promotion_log.read(uri, name)
        return bool(log) and log[-1].by != "run" and log[-1].to == points_at
    return points_at is not None and registry.SLOT_TAG in (registry.version_tags(uri, name, points_at) or {})


def _gate(gate: Mapping[str, Any], metrics: Mapping[str, Any]) -> Any:
    """How one gate came out. A metric that was not measured fails it, by name."""
    from pipelines.registry import GateResult

    name, baseline = gate["metric"], gate["baseline"]
    missing = [wanted for wanted in (name, baseline) if wanted and wanted not in metrics]
    if missing:
        return GateResult(name, False, f"{missing[0]} was not measured; measured are {', '.join(sorted(metrics))}")
    value = metrics[name] - (metrics[baseline] if baseline else 0.0)
    low, high = gate["minimum"], gate["maximum"]
    passed = (low is None or value >= low) and (high is None or value <= high)
    asked = " and ".join(
        text for text in (low is not None and f"at least {low}", high is not None and f"at most {high}") if text
    )
    compared = f" - {baseline} {metrics[baseline]:.4f}" if baseline else ""
    return GateResult(name, passed, f"{name} {_figure(metrics[name])}{compared} {'is' if passed else 'is not'} {asked}")


def _figure(value: Any) -> str:
    """A count as it is, anything else with four digits."""
    return str(value) if isinstance(value, int) else f"{value:.4f}"


def _code(attempt: Attempt) -> str:
    """The code that made each step, by what it is called: steps are named where several made the model."""
    made: dict[str, list[str]] = {}
    for step, record in sorted(attempt.ancestors.items()):
        made.setdefault(" ".join(f"{key} {value}" for key, value in sorted(record.code.items())), []).append(step)
    return json.dumps(made, sort_keys=True)
