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
from pipelines.engine.record import Record
from pipelines.engine.step import Attempt, Stage
from pipelines.forms import form
from pipelines.tasks import task

STAGE = Stage("register", 2, "pipelines.stages.register:run", check="pipelines.stages.register:check")

CODE_TAG = "gptline.code"  # on a version: which code made each step, JSON. Equal packages may come from other code

_SUMMARY = "A causal language model, pre-trained from scratch on the text below by gptline."
_CONTINUED = "A causal language model that others trained, pre-trained further on the text below by gptline."
_CLASSES = ("score.weight", "classifier.weight")  # of an adapter that classifies, by the families' names of the head
_ADAPTER = " This is the adapter alone: it is used on top of its base model."
_LIMITS = (
    "It is small and has read little: it writes in the manner of its text and knows nothing of the world.",
    "Nothing was done to keep it from repeating its training text or from giving offence.",
)
_BIDIRECTIONAL = (
    "A bidirectional language model, pre-trained from scratch on the text below by gptline: it says what stands behind "
    "[MASK], and its hidden states are what classifiers are fine-tuned from."
)
_BIDIRECTIONAL_LIMITS = (
    "It is small and has read little: it fills in the manner of its text and knows nothing of the world.",
    _LIMITS[1],
)


def run(attempt: Attempt) -> dict[str, Any]:
    """Package, register, point the aliases; returns where the version is and what became of it."""
    from pipelines import registry
    from pipelines.package import build_package
    from pipelines.patience import patiently

    name = attempt.config["name"]
    metrics = durable.read_json(attempt.inputs["evaluation"].path("metrics.json"))
    package = attempt.outputs / "package"
    digest = build_package(_weights(attempt), package, card(attempt, metrics))
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


def _weights(attempt: Attempt) -> Path:
    """The folder that is packaged: an export, or an adapter."""
    return attempt.inputs["export"].path("adapter" if attempt.config["kind"] == "adapter" else "export")


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


def card(attempt: Attempt, metrics: Mapping[str, Any]) -> Any:
    """The model card: only what two equal runs have in common."""
    from pipelines.model_card import Card

    kind = attempt.config["kind"]
    own, baselines = _by_baseline(metrics)
    trained = attempt.ancestors["pretrain" if kind == "base" else "finetune"]
    said = None if kind == "base" else form.of(trained.config.get("form", "classification"))
    masked = kind == "base" and trained.config["train"]["objective"] != "causal_lm"
    return Card(
        name=attempt.config["name"],
        task=said.PIPELINE if said else "fill-mask" if masked else "text-generation",
        chat=said is not None and said.CHAT,
        summary=_summary(said, masked, attempt) + (_ADAPTER if kind == "adapter" else ""),
        data=_data(attempt.ancestors),
        training={f"{part}.{key}": value for part in ("model", "train") for key, value in trained.config[part].items()},
        metrics=own,
        baselines=baselines,
        limits=said.LIMITS if said else _BIDIRECTIONAL_LIMITS if masked else _LIMITS,
        lineage=lineage(attempt.ancestors),
        family=_family(attempt.ancestors, trained),
        base=durable.read_json(attempt.inputs["base"].path("registered.json")) if "base" in attempt.inputs else None,
        language=_language(attempt.ancestors),
        labels=_classes(_weights(attempt)) if kind == "adapter" else 0,
    )


def _classes(adapter: Path) -> int:
    """How many classes an adapter's head has, by the header of its safetensors file; 0 without a head."""
    data = (adapter / "adapter_model.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return next((one["shape"][0] for name, one in header.items() if name.endswith(_CLASSES)), 0)


def _family(ancestors: Mapping[str, Record], trained: Record) -> str:
    """The model's family: the recipe's, or that of the model which it begins with."""
    imported = ancestors.get("import")
    return str(imported.metrics["family"] if imported else trained.config["model"]["family"])


def _summary(said: Any, masked: bool, attempt: Attempt) -> str:
    """What the model is, in a sentence or two: by the form of its task, or by its objective and its beginning."""
    if said:
        return str(said.SUMMARY)
    if masked:
        return _BIDIRECTIONAL
    return _CONTINUED if "import" in attempt.ancestors else _SUMMARY


def _language(ancestors: Mapping[str, Record]) -> str:
    """The language of the recipe's task; English where it does not say, nothing where the task cannot know."""
    prepared = ancestors.get("prepare_task")
    return getattr(task.of(prepared.config["name"]), "LANGUAGE", "en") if prepared else "en"


def _by_baseline(metrics: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Metrics named `<baseline>_<metric>` as rows of their own: the model's row, and a row for each baseline."""
    own: dict[str, float] = {}
    rows: dict[str, dict[str, float]] = {}
    for name, value in metrics.items():
        baseline, _, rest = name.partition("_")
        if rest in metrics:
            rows.setdefault(baseline, {})[rest] = value
        else:
            own[name] = value
    return own, rows


def _data(ancestors: Mapping[str, Record]) -> list[str]:
    return [
        f"{step}, {group}: {file['label']}, {file['size']:,} bytes, SHA-256 `{file['sha256'][:16]}`"
        for step, record in sorted(ancestors.items())
        for group, files in sorted(record.sources.items())
        if record.stage != "champion"
        or group == "package"  # what that stands on is in its own card, and in the lineage
        for file in sorted(files, key=lambda file: file["sha256"])
    ]


def lineage(ancestors: Mapping[str, Record]) -> dict[str, Any]:
    """Each step that the model stands on: fingerprint, configuration, its inputs' digests, the digests of its raw sources."""
    return {
        step: {
            "stage": record.stage,
            "version": record.version,
            "fingerprint": record.fingerprint,
            "config": record.config,
            "inputs": record.inputs,
            "sources": {
                group: sorted(file["sha256"] for file in files) for group, files in sorted(record.sources.items())
            },
        }
        for step, record in sorted(ancestors.items())
    }
