"""What a retraining slot works on, frozen when it opens: recipe, champions by digest, source files by digest.

The one idea: `look` finds all that decides the slot's result and nothing else, and everything later is asked of what it
found. The *run key* is the SHA-256 of it: the steps (stage, version, configuration, digests of their sources) and the
champions' digests. The same without the champions is the *sources key*: what was tried once with one recipe is not tried
again because a champion changed, so that a rollback stays.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from model import durable
from pipelines import challenge, champions, flow, slots
from pipelines.champions import Champion
from pipelines.config import ConfigError, Recipe, Source
from pipelines.engine import sealed
from pipelines.engine.digests import Digests
from pipelines.engine.fingerprint import canonical, digest
from pipelines.engine.record import Record
from pipelines.engine.step import Step, source_digests
from pipelines.execution import Execution
from pipelines.pretrained import Pretrained
from pipelines.registry import STILL_CHAMPION
from pipelines.slots import Outcome, Slot

FILE = "frozen.json"
_READ = (
    "corpus",
    "labelled",
    "labelled_validation",
    "labelled_test",
    "labelled_benchmark",
)  # the groups of sources that can be new; the tokenizer is pinned


@dataclass(frozen=True)
class Frozen:
    """What slot `number` works on. `asked` is the recipe's digest as it was given, `recipe` as the challenger has it.

    `champions` are those of "base" and "task" that there are, `kind` which of both the slot is about; `files` are the
    resolved files of each source, by the source's canonical JSON.
    """

    number: int
    asked: str
    kind: str
    recipe: Recipe
    champions: dict[str, Champion]
    files: dict[str, list[dict[str, Any]]]

    @property
    def champion(self) -> Champion | None:
        """The champion that is challenged; none: the slot makes the first one."""
        return self.champions.get(self.kind)


def names(recipe: Recipe) -> dict[str, str]:
    """The registered name of each kind of model that the recipe makes."""
    return {"base": recipe.register_as.base} | ({"task": recipe.register_as.task} if recipe.task else {})


def look(recipe: Recipe, execution: Execution, number: int) -> Frozen:
    """What there is now. ConfigError where a champion is missing that training starts from; SourceError, ConnectionError."""
    from pipelines import sources

    if recipe.pretrained or not recipe.release:
        field = "pretrained" if recipe.pretrained else "release=false"
        raise ConfigError(
            f"recipe {recipe.name} has {field}, and only a recipe that makes and registers its own base model is retrained; "
            "next: make run, which does what changed"
        )
    kind = "task" if recipe.task else "base"
    root = Path(execution.work)
    pulled = slots.folder(root, names(recipe)[kind]) / "champions"
    found = {
        each: champion
        for each, name in names(recipe).items()
        if (champion := champions.current(execution.registry, name, pulled, execution.registry_patience))
    }
    if kind not in found:
        found = {}  # nothing to challenge: the recipe is made as `run` makes it
    needed = challenge.needs(recipe)
    if found and needed and needed not in found:
        raise ConfigError(
            f"retrain.start={recipe.retrain.start} starts from {names(recipe)[needed]}@champion, and there is none in "
            f"{execution.registry}; make one by `run`, or set retrain.start=scratch"
        )
    champions.sweep(pulled, {champion.folder for champion in found.values()})
    digests = Digests(root / "digests.json")
    files = {
        _key(source): sources.described(source, Path(execution.cache), digests.of, fetch=True)
        for source in _sources(recipe, tokenizer=not found)
    }
    digests.save()
    return Frozen(number, digest(recipe.model_dump(mode="json")), kind, recipe, found, files)


def pin(seen: Frozen) -> Frozen:
    """With the challenger's recipe; its champions are pulled now."""
    return replace(seen, recipe=challenge.challenging(seen.recipe, seen.champions)) if seen.champion else seen


def steps(kept: Frozen) -> list[Step]:
    """The slot's steps."""

    def files(source: Source | Pretrained) -> list[dict[str, Any]]:
        return kept.files[_key(source)]

    return challenge.retraining(kept.recipe, kept.champions, files) if kept.champion else flow.build(kept.recipe, files)


def described(kept: Frozen) -> dict[str, Any]:
    """The fields of a Slot that say what it works on."""
    planned = steps(kept)
    current = {
        group: {file["sha256"]: file["path"] for step in planned for file in step.sources.get(group, ()) if step.stage.name != "champion"}
        for group in _READ
    }  # fmt: skip
    known = kept.champion.sources if kept.champion else {}
    read = [group for group, files in current.items() if files]
    new = tuple(
        {"file": path, "sha256": sha256, "group": group}
        for group in read
        for sha256, path in current[group].items()
        if sha256 not in known.get(group, ())
    )
    gone = tuple(sha256 for group in read for sha256 in known.get(group, ()) if sha256 not in current[group])
    asked = [_identity(step) for step in planned if step.stage.name not in ("champion", "train_tokenizer")]
    digests = {each: champion.digest for each, champion in kept.champions.items()}
    frozen = {
        each: {"name": one.name, "version": one.version, "digest": one.digest} for each, one in kept.champions.items()
    }
    return {
        "why": _why(kept, new, gone),
        "new": new if kept.champion else (),
        "gone": gone,
        "champion": frozen.get(kept.kind),
        "base": frozen.get("base") if kept.kind == "task" else None,
        "sources": digest(asked),
        "key": digest({"champions": digests, "steps": asked}),
    }


def outdated(kept: Frozen, recipe: Recipe, digests: Digests) -> str | None:
    """Why an open slot cannot be gone on with, None if it can: another recipe now, or files that are not there any more."""
    if digest(recipe.model_dump(mode="json")) != kept.asked:
        return "the recipe is another one now"
    for file in [file for found in kept.files.values() for file in found]:
        if file["format"] == "dataset":
            continue  # checked by whoever reads it
        try:
            seen = digests.of(Path(file["path"]))
        except FileNotFoundError:
            return f"{file['path']} is gone"
        if seen != file["sha256"]:
            return f"{file['path']} is not the file that it was"
    return None


def outcome(slot: Slot, kept: Frozen, records: Mapping[str, Record]) -> Slot:
    """The slot as its finished steps say it ended."""
    registered = records[f"register-{kept.kind}"].metrics
    promoted, failed = registered["alias"] == "champion", registered.get("failed", [])
    moved = STILL_CHAMPION in failed
    said: Outcome = "champion moved" if moved else "promoted" if promoted else "kept"
    base = records["register-base"].metrics if kept.kind == "task" and "register-base" in records else None
    also = (
        {
            "name": base["name"],
            "version": base["version"],
            "promoted": base["alias"] == "champion",
            "reason": base.get("why", base["gates"]),
        }
        if base
        else {}
    )
    compared = records.get(f"compare-{kept.kind}")
    figures = (
        {name: compared.metrics[name] for name in ("metric", "challenger", "champion", "gain", "low", "high")}
        if compared
        else {}
    )
    figures |= {name: registered[name] for name in ("export_bytes", "latency_ms") if name in registered}
    return replace(
        slot,
        outcome=said,
        reason=registered.get("why", registered["gates"]),
        version=registered["version"],
        also=also,
        figures=figures,
    )


def write(folder: Path, kept: Frozen, attempt: Path) -> None:
    """Write what the open slot works on, for the owner of `attempt`. FileNotFoundError if that was taken over."""
    content = {
        "number": kept.number,
        "asked": kept.asked,
        "kind": kept.kind,
        "recipe": kept.recipe.model_dump(mode="json"),
        "champions": {each: asdict(one) | {"folder": str(one.folder)} for each, one in kept.champions.items()},
        "files": kept.files,
    }
    durable.write_bytes(attempt / FILE, sealed.seal(json.loads(durable.to_json(content))))
    durable.rename(attempt / FILE, folder / FILE)


def read(folder: Path) -> Frozen | None:
    """What the open slot works on; None if there is nothing, it is damaged, or of other code: then another slot opens."""
    try:
        content = sealed.unseal(folder / FILE)
        recipe = Recipe.model_validate_json(json.dumps(content["recipe"]))
    except (FileNotFoundError, sealed.Broken, ValidationError):
        return None
    found = {each: Champion(**one | {"folder": Path(one["folder"])}) for each, one in content["champions"].items()}
    return Frozen(content["number"], content["asked"], content["kind"], recipe, found, content["files"])


def _why(kept: Frozen, new: tuple[Any, ...], gone: tuple[Any, ...]) -> str:
    if kept.champion is None:
        return f"{names(kept.recipe)[kept.kind]} has no champion yet"
    counts = [
        f"{len(found)} {what} file{'s' if len(found) > 1 else ''}"
        for what, found in (("new", new), ("removed", gone))
        if found
    ]
    return " and ".join(counts) or "nothing new"


def _identity(step: Step) -> list[Any]:
    return [step.name, step.stage.name, step.stage.version, dict(step.config), source_digests(step)]


def _key(source: Source | Pretrained) -> str:
    return canonical(source.model_dump(mode="json")).decode()


def _sources(recipe: Recipe, tokenizer: bool) -> Iterator[Source]:
    if recipe.shard:
        yield from recipe.shard.sources
    if recipe.task:
        yield from recipe.task.sources.values()
    if tokenizer and recipe.tokenizer:
        yield from recipe.tokenizer.sources
