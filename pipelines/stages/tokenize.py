"""tokenize: text shards and a tokenizer in, token shards out, one for each text shard.

The one idea: a token shard is a unit keyed by the bytes of its text shard and of the tokenizer (and by the token that ends
documents, where the tokenizer's bytes do not tell it), so a new text shard costs its own tokens and recipes with the same data
and tokenizer share them.

Two options that an objective may need, absent from the configuration where it does not: `sentences` marks where they
begin, `corpora` keeps the training documents of each corpus in shards of their own, so that they can be mixed by weight.
"""

from __future__ import annotations

import logging
from typing import Any

from model import durable
from pipelines import sentences
from pipelines.engine.step import Attempt, Damaged, Stage
from pipelines.engine.units import Unit, unit_key
from pipelines.stages.fan_out import fan_out
from pipelines.stages.tokenize_work import TOKENS, DamagedText
from pipelines.tokenizer_files import TokenizerFacts, tokenizer_facts

STAGE = Stage("tokenize", 2, "pipelines.stages.tokenize:run")
SPLITS = ("train", "heldout")
log = logging.getLogger(__name__)


def run(attempt: Attempt) -> dict[str, Any]:
    """Write train.json and heldout.json, the manifests of token shards; return the key counts."""
    facts = tokenizer_facts(attempt.inputs["tokenizer"].path("tokenizer"))
    shards = {split: durable.read_json(attempt.inputs[split].path(f"{split}.json"))["units"] for split in SPLITS}
    keys = {split: [_key(shard, facts, _options(attempt, split)) for shard in found] for split, found in shards.items()}
    keyed = {
        key: shard | {"options": _options(attempt, split)}
        for split in SPLITS for key, shard in zip(keys[split], shards[split], strict=True)
    }  # fmt: skip
    made, engines = _made(attempt, keyed, facts)
    metrics: dict[str, Any] = {"shards": len(made), "shards_reused": len(made) - len(engines)}
    entries = {split: [entry for key in keys[split] for entry in _entries(made[key])] for split in SPLITS}
    for split, found in entries.items():
        durable.write_json(attempt.outputs / f"{split}.json", _manifest(found, facts))
        for name in ("documents", "tokens", *(["sentences"] if "sentences" in found[0] else [])):
            metrics[f"{split}_{name}"] = sum(entry[name] for entry in found)
    attempt.add_outputs([file for unit in made.values() for file in unit.files.values()])
    return metrics | {"bytes_per_token": _ratio(entries), "fallback_shards": _fallbacks(made, engines)}


def _options(attempt: Attempt, split: str) -> dict[str, Any]:
    """What is made of a split's shards beside their tokens; only training documents are mixed."""
    found: dict[str, Any] = {"sentences": sentences.RULES} if attempt.config.get("sentences") else {}
    return found | ({"corpora": True} if attempt.config.get("corpora") and split == "train" else {})


def _key(shard: dict[str, Any], facts: TokenizerFacts, options: dict[str, Any]) -> str:
    """Of a token shard. The digest tells the EOT too, unless only a file beside tokenizer.json names it."""
    options = options | ({"eot": facts.eot} if facts.told_beside else {})
    return unit_key("tokenize", STAGE.version, options, {"tokenizer": facts.digest, "text": shard["sha256"]})


def _made(
    attempt: Attempt, keyed: dict[str, dict[str, Any]], facts: TokenizerFacts
) -> tuple[dict[str, Unit], dict[str, str]]:
    """The token unit of each text shard, by key, and the engine of each that was made now."""
    made = {key: unit for key in keyed if (unit := attempt.units.find("tokens", key))}
    engines: dict[str, str] = {}
    folder = str(attempt.inputs["tokenizer"].path("tokenizer"))
    items: list[dict[str, Any]] = [
        {"root": str(attempt.root), "scratch": str(attempt.scratch), "key": key, "shard": shard, "options": shard["options"], "folder": folder, "facts": vars(facts)}
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


def _entries(unit: Unit) -> list[dict[str, Any]]:
    """What the manifest says of a unit's files: one, or one for each corpus in it."""
    known = unit.info.get("files", {TOKENS: unit.info})
    wanted = ("documents", "tokens", "bytes", "sentences", "corpus")
    return [
        {"path": unit.files[name].path, "sha256": unit.files[name].sha256, "size": unit.files[name].size}
        | {key: info[key] for key in wanted if key in info}
        for name, info in known.items()
    ]


def _manifest(entries: list[dict[str, Any]], facts: TokenizerFacts) -> dict[str, Any]:
    head = {
        "schema": 1,
        "kind": "token_shards",
        "tokenizer": facts.digest,
        "vocab_size": facts.vocab_size,
        "eot": facts.eot,
    }
    return head | {"units": entries}


def _ratio(entries: dict[str, list[dict[str, Any]]]) -> float:
    """Bytes of text in a token, over all shards, each once."""
    units = {entry["path"]: entry for found in entries.values() for entry in found}.values()
    sums = {name: sum(unit[name] for unit in units) for name in ("bytes", "tokens")}
    return round(sums["bytes"] / sums["tokens"], 4)


def _fallbacks(made: dict[str, Unit], engines: dict[str, str]) -> int:
    """How many of this run's shards gigatoken did not encode as `tokenizers` does; the log names them with the reason."""
    found = [key for key in made if engines.get(key, "gigatoken") != "gigatoken"]
    for key in found[:20]:
        log.warning("%s was encoded by %s", next(iter(made[key].files.values())).path, engines[key])
    return len(found)
