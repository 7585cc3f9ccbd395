"""tokenize: text shards and a tokenizer in, token shards out, one for each text shard.

The one idea: a token shard is a unit keyed by the bytes of its text shard and of the tokenizer, so a new text
shard costs its own tokens and recipes with the same data and tokenizer share them.
"""

from __future__ import annotations

import logging
from typing import Any

from model import durable
from pipelines.engine.step import Attempt, Damaged, Stage
from pipelines.engine.units import Unit, unit_key
from pipelines.stages.fan_out import fan_out
from pipelines.stages.tokenize_work import DamagedText
from pipelines.tokenizer_files import TokenizerFacts, tokenizer_facts

STAGE = Stage("tokenize", 2, "pipelines.stages.tokenize:run")
SPLITS = ("train", "heldout")
log = logging.getLogger(__name__)


def run(attempt: Attempt) -> dict[str, Any]:
    """Write train.json and heldout.json, the manifests of token shards; return the key counts."""
    facts = tokenizer_facts(attempt.inputs["tokenizer"].path("tokenizer"))
    shards = {split: durable.read_json(attempt.inputs[split].path(f"{split}.json"))["units"] for split in SPLITS}
    keyed = {_key(shard, facts): shard for found in shards.values() for shard in found}
    made, engines = _made(attempt, keyed, facts)
    metrics: dict[str, Any] = {"shards": len(made), "shards_reused": len(made) - len(engines)}
    for split, found in shards.items():
        entries = [_entry(made[_key(shard, facts)]) for shard in found]
        durable.write_json(attempt.outputs / f"{split}.json", _manifest(entries, facts))
        metrics |= {f"{split}_{name}": sum(entry[name] for entry in entries) for name in ("documents", "tokens")}
    attempt.add_outputs([file for unit in made.values() for file in unit.files.values()])
    return metrics | {"bytes_per_token": _ratio(made), "fallback_shards": _fallbacks(made, engines)}


def _key(shard: dict[str, Any], facts: TokenizerFacts) -> str:
    return unit_key("tokenize", STAGE.version, {}, {"tokenizer": facts.digest, "text": shard["sha256"]})


def _made(
    attempt: Attempt, keyed: dict[str, dict[str, Any]], facts: TokenizerFacts
) -> tuple[dict[str, Unit], dict[str, str]]:
    """The token unit of each text shard, by key, and the engine of each that was made now."""
    made = {key: unit for key in keyed if (unit := attempt.units.find("tokens", key))}
    engines: dict[str, str] = {}
    folder = str(attempt.inputs["tokenizer"].path("tokenizer"))
    items: list[dict[str, Any]] = [
        {"root": str(attempt.root), "scratch": str(attempt.scratch), "key": key, "shard": shard, "folder": folder, "facts": vars(facts)}
        for key, shard in keyed.items() if key not in made
    ]  # fmt: skip
    total = sum(shard["bytes"] for shard in keyed.values()) / 1e6
    done = total - sum(item["shard"]["bytes"] for item in items) / 1e6
    try:
        for index, engine in fan_out(attempt, "pipelines.stages.tokenize_work:tokenize_shard", items):
            key = items[index]["key"]
            unit = attempt.units.find("tokens", key, verify=False)  # hashed when it was published, just now
            assert unit is not None
            made[key], engines[key] = unit, engine
            done += items[index]["shard"]["bytes"] / 1e6
            attempt.progress(done, total, "MB", shards=f"{len(made)}/{len(keyed)}")
    except DamagedText as damage:
        raise Damaged(attempt.inputs["train"].record.step, str(damage), "is missing or damaged") from damage
    return {key: made[key] for key in keyed}, engines


def _entry(unit: Unit) -> dict[str, Any]:
    file = unit.files["tokens.arrow"]
    counts = {name: unit.info[name] for name in ("documents", "tokens", "bytes")}
    return {"path": file.path, "sha256": file.sha256, "size": file.size} | counts


def _manifest(entries: list[dict[str, Any]], facts: TokenizerFacts) -> dict[str, Any]:
    head = {
        "schema": 1,
        "kind": "token_shards",
        "tokenizer": facts.digest,
        "vocab_size": facts.vocab_size,
        "eot": facts.eot,
    }
    return head | {"units": entries}


def _ratio(made: dict[str, Unit]) -> float:
    sums = {name: sum(unit.info[name] for unit in made.values()) for name in ("bytes", "tokens")}
    return round(sums["bytes"] / sums["tokens"], 4)


def _fallbacks(made: dict[str, Unit], engines: dict[str, str]) -> int:
    """How many of this run's shards gigatoken did not encode as `tokenizers` does; the log names them with the reason."""
    found = [key for key in made if engines.get(key, "gigatoken") != "gigatoken"]
    for key in found[:20]:
        log.warning("%s was encoded by %s", made[key].files["tokens.arrow"].path, engines[key])
    return len(found)
