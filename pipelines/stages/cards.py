"""What the model card of a version says: of the model, its training, its data and its figures.

The one idea: all of it is read from the records of the steps that the model stands on, so only what two equal runs have
in common is said, and equal runs give equal cards.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model import durable
from pipelines.chat import template_of
from pipelines.engine.record import Record
from pipelines.engine.step import Attempt
from pipelines.forms import form, long_texts
from pipelines.model_card import Card, Pipeline
from pipelines.tasks import task

_SUMMARY = "A causal language model, pre-trained from scratch on the text below by gptline."
_CONTINUED = "A causal language model that others trained, pre-trained further on the text below by gptline."
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
# What a model of others is for, by the end of its class's name; a text goes on where there is none of these.
_HEADS: dict[str, Pipeline] = {
    "ForSequenceClassification": "text-classification",
    "ForQuestionAnswering": "question-answering",
    "ForMaskedLM": "fill-mask",
    "ForPreTraining": "fill-mask",
}


def card(attempt: Attempt, metrics: Mapping[str, Any]) -> Card:
    """The card of what a step `register` packages, with what its evaluation measured."""
    kind = attempt.config["kind"]
    if kind == "import":
        return _of_import(attempt)
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
        limits=_limits(said, masked, attempt),
        lineage=lineage(attempt.ancestors),
        family=_family(attempt.ancestors, trained),
        base=durable.read_json(attempt.inputs["base"].path("registered.json")) if "base" in attempt.inputs else None,
        language=_language(attempt.ancestors),
        labels=_labels(attempt) if kind == "adapter" else (),
    )


def weights(attempt: Attempt) -> Path:
    """The folder that is packaged: an export, or an adapter."""
    return attempt.inputs["export"].path("adapter" if attempt.config["kind"] == "adapter" else "export")


def _of_import(attempt: Attempt) -> Card:
    """The card of a model as others trained it, which adapters stand on. Nobody measured it here."""
    imported = attempt.ancestors["import"].metrics
    folder = attempt.inputs["export"].path("export")
    kind = durable.read_json(folder / "config.json")["architectures"][0]
    drawn = (
        "It has no head of its own: the one in these files is drawn at random." if imported["weights_from_seed"] else ""
    )
    return Card(
        name=attempt.config["name"],
        task=next((task for end, task in _HEADS.items() if kind.endswith(end)), "text-generation"),
        chat=template_of(folder) is not None,
        summary=f"A model that others trained, {kind}, as gptline imported it: the base that adapters are used on top of.",
        data=_data(attempt.ancestors),
        training={"parameters": imported["parameters"]},
        limits=tuple(filter(None, (drawn, "What it was trained on is not known here."))),
        lineage=lineage(attempt.ancestors),
        family=str(imported["family"]),
        language="",
    )


def _labels(attempt: Attempt) -> tuple[str, ...]:
    """The names of an adapter's classes, by class index; none of another task. Its base knows none, or those of another head."""
    names = attempt.inputs.get("labels")
    return tuple(durable.read_json(names.path("labels.json"))) if names else ()


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


def _limits(said: Any, masked: bool, attempt: Attempt) -> tuple[str, ...]:
    """Where the model must not be trusted, and what its figures are of."""
    if not said:
        return _BIDIRECTIONAL_LIMITS if masked else _LIMITS
    return (*said.LIMITS, *long_texts.limits(attempt.inputs["evaluation"].record.config))


def _language(ancestors: Mapping[str, Record]) -> str:
    """The language of the recipe's task, or the one that its options ask for; English where it does not say, nothing where
    the task cannot know."""
    prepared = ancestors.get("prepare_task")
    if not prepared:
        return "en"
    asked = prepared.config.get("options", {}).get("language")
    return str(asked or getattr(task.of(prepared.config["name"]), "LANGUAGE", "en"))


def _by_baseline(metrics: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Metrics named `<baseline>_<metric>` as rows of their own: the model's row, and a row for each baseline."""
    own: dict[str, float] = {}
    rows: dict[str, dict[str, float]] = {}
    for name, value in metrics.items():
        baseline, _, rest = name.partition("_")
        # A metric is no baseline: `asked_prompts_cut` is a count beside `asked`.
        if rest in metrics and baseline not in metrics:
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
