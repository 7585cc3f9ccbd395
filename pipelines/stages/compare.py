"""compare: challenger and champion on the very same held-out data; is the challenger better by more than noise?

The one idea: both are asked about the same examples by the same code, so the difference is *paired*: what is hard is
hard for both. It counts as better if the lower end of the bootstrap's 95 % interval of the gain is above what the recipe
asks for (0 unless it says otherwise). The bootstrap draws what succeeds and fails together: films, or documents.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from model import durable
from pipelines.engine.step import Attempt, Stage
from pipelines.forms import form
from pipelines.stages.evaluate import compute
from pipelines.stages.fan_out import connect

STAGE = Stage("compare", 1, "pipelines.stages.compare:run")


def run(attempt: Attempt) -> dict[str, Any]:
    """Write comparison.json and what both models said; return the figures."""
    connect(attempt)
    kind = attempt.config["kind"]  # "language_model", or the form of a task
    found = language_model(attempt) if kind == "language_model" else form.of(kind).compare(attempt, _champion(attempt))
    found["groups"] = _groups(attempt, found)
    found |= decided(found, attempt.config["minimum_gain"])
    (package,) = attempt.inputs["champion"].record.sources["package"]
    durable.write_json(attempt.outputs / "comparison.json", found | {"champion_digest": package["sha256"]})
    return found


def language_model(attempt: Attempt) -> dict[str, Any]:
    """Bits per byte of both over the held-out documents; fewer are a gain."""
    from pipelines.tasks import language_modelling
    from pipelines.tasks.metrics import ratio_difference

    for name in ("text_heldout", "tokens_heldout"):
        attempt.inputs[name].check_units(attempt.root, "heldout.json")
    text, tokens = (attempt.inputs[name].path("heldout.json") for name in ("text_heldout", "tokens_heldout"))
    sizes = [len(document) for document in language_modelling.texts(attempt.root, text)]
    bits = []
    for name, export, how in (
        ("challenger", attempt.inputs["export"].path("export"), "attention"),
        ("champion", _champion(attempt), "champion_attention"),
    ):
        output = attempt.outputs / f"{name}_bits.json"
        compute(
            attempt, "model.evaluate:document_bits", export,
            manifest=str(tokens), root=str(attempt.root), output=str(output),
            attention=attempt.config.get(how, "across_documents"),
        )  # fmt: skip
        bits.append(durable.read_json(output))
    if not len(bits[0]) == len(bits[1]) == len(sizes):
        raise ValueError(
            f"{text} holds {len(sizes)} documents, {tokens} {len(bits[0])}: tokens of another text; retrain"
        )
    found = ratio_difference(bits[1], bits[0], sizes)  # the champion's minus ours: fewer bits are a gain
    challenger, champion = (round(sum(one) / sum(sizes), 6) for one in bits)
    return {"metric": "bits_per_byte", "challenger": challenger, "champion": champion, "documents": len(sizes)} | found


def _groups(attempt: Attempt, found: dict[str, Any]) -> int:
    """How many groups the bootstrap draws from: those of the test examples, or documents."""
    if "documents" in found:
        return int(found["documents"])
    lines = attempt.inputs["test"].path("test.jsonl").read_bytes().splitlines()
    return len({json.loads(line)["group"] for line in lines})


def decided(found: dict[str, Any], minimum: float) -> dict[str, Any]:
    """Whether the challenger is better by more than noise, and in words why. Of one group nobody can say."""
    compared = f"{found['metric']} {found['challenger']:.4f} against the champion's {found['champion']:.4f}"
    if found["groups"] < 2:
        detail = (
            f"{compared}, on one group of held-out examples: no interval can be drawn of it; give more groups "
            "(task.test_fraction, task.group_column)"
        )
        return {"minimum_gain": minimum, "better": False, "detail": detail}
    better = found["low"] > minimum
    detail = (
        f"{compared}: gain {found['gain']:+.4f}, 95 % interval {found['low']:+.4f} to {found['high']:+.4f}, whose lower end "
        f"{'is' if better else 'is not'} above {minimum:g}"
    )
    return {"minimum_gain": minimum, "better": better, "detail": detail}


def _champion(attempt: Attempt) -> Path:
    return attempt.inputs["champion"].path("export")
