"""`gptline lineage`: from a model to its raw sources, and from a file to the models that learned from it.

The one idea: the same word asks both ways; `name@alias` is a model, anything else a file, a folder or a digest.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines.config import ConfigError
from pipelines.options import AsJson, Settings, execution_of, out
from pipelines.pull_commands import Registry, registry_of
from pipelines.stages.register import CODE_TAG

_DIGEST = re.compile(r"[0-9a-f]{8,64}")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def lineage(
    what: Annotated[
        str,
        typer.Argument(
            help="name@alias or name@version; or a file, a folder, a SHA-256 (8 digits or more), a hub commit"
        ),
    ],
    text: Annotated[
        str | None, typer.Option("--text", help="of the files at or below WHAT, only those that hold this text")
    ] = None,
    registry: Registry = None,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Say what a registered model was made from, or which registered models were made from a file."""
    from pipelines import lineage as lineages
    from pipelines.pull import From

    execution = execution_of("work", registry_of(registry, settings))
    cache = Path(execution.model_cache) if execution.model_cache else None
    origin = From(execution.registry, execution.registry_patience, cache)
    if "@" in what and not Path(what).exists() and text is None:
        said = _of_model(lineages, origin, what)
        lines = _model_lines(said)
    else:
        found = _found(what, text) if text else []
        digests = _digests(lineages, what) if text is None else _digests_of_found(lineages, what, found)
        said = _of_files(lineages, origin, digests) | {"found": [f"{path}:{line}" for path, line in found]}
        lines = _file_lines(said, what)
    if as_json:
        sys.stdout.write(json.dumps(said, indent=1) + "\n")
        return
    for line in lines:
        out.print(line, markup=False)


def _digests(lineages: Any, what: str) -> dict[str, str]:
    """The digests, or beginnings of digests, that `what` may be known by."""
    path = Path(what).expanduser()
    if path.exists():
        return dict(lineages.digests_of(path))
    if _DIGEST.fullmatch(what):
        return {what: what} | ({lineages.digest_of_revision(what): f"commit {what}"} if _COMMIT.fullmatch(what) else {})
    raise ConfigError(f"{what} is no file or folder here, no name@alias, and no SHA-256 of 8 digits or more")


def _found(what: str, text: str) -> list[tuple[Path, int]]:
    from pipelines.lineage_text import holding

    path = Path(what).expanduser()
    if not path.exists():
        raise ConfigError(f"--text looks into files, and {what} is no file or folder here")
    found = list(holding(path, text))
    if not found:
        raise ConfigError(
            f"no file at or below {what} that a source could be holds {text!r}; was it written otherwise, or in another folder?"
        )
    return found


def _digests_of_found(lineages: Any, what: str, found: list[tuple[Path, int]]) -> dict[str, str]:
    """Those of the files that hold the text, and of the folder as a dataset."""
    files = {str(path) for path, _ in found}
    return {
        sha256: name
        for sha256, name in _digests(lineages, what).items()
        if name in files or name.endswith("as a dataset")
    }


def _of_model(lineages: Any, origin: Any, spec: str) -> dict[str, Any]:
    from pipelines import model_versions

    wanted = model_versions.resolve(origin.location, spec)
    everybody = lineages.read_all(origin)
    known = next(one for one in everybody if one.listed.version == wanted)
    if known.manifest is None:
        raise model_versions.UnknownModel(f"{spec}: its manifest cannot be read: {known.trouble}")
    tags, run = known.listed.tags, wanted.run_id or ""
    run_tags = model_versions.run_tags(origin.location, run) if run else {}
    parent = (
        model_versions.run_tags(origin.location, run_tags["mlflow.parentRunId"])
        if "mlflow.parentRunId" in run_tags
        else {}
    )
    return {
        "model": wanted.name, "version": wanted.version, "aliases": list(known.listed.aliases), "digest": wanted.digest,
        "run": run, "execution_run": run_tags.get("mlflow.parentRunId", ""), "recipe": parent.get("gptline.recipe", ""),
        "code": json.loads(tags.get(CODE_TAG, "{}")) or _code(parent),
        "steps": known.manifest.get("lineage", {}),
        "sources": [_use(use, lineages.in_words(use, known)) for use in lineages.sources(known, everybody)],
    }  # fmt: skip


def _code(tags: dict[str, str]) -> dict[str, list[str]]:
    """Of a version that does not say which code made it: that of the execution."""
    named = [f"{key} {tags[f'gptline.{key}']}" for key in ("commit", "package") if f"gptline.{key}" in tags]
    return {" ".join(named): ["the execution"]} if named else {}


def _use(use: Any, words: str) -> dict[str, str]:
    return {"sha256": use.sha256, "step": use.step, "group": use.group, "means": words}


def _model_lines(said: dict[str, Any]) -> Iterator[str]:
    aliases = f" ({', '.join(said['aliases'])})" if said["aliases"] else ""
    yield f"{said['model']} version {said['version']}{aliases}, package digest {said['digest']}"
    yield f"  run {said['run'] or 'unknown'}" + (
        f", of execution {said['execution_run']}" if said["execution_run"] else ""
    )
    yield f"  recipe {said['recipe'] or 'unknown'}; the configuration of each step is in MANIFEST.json, and in --json"
    for code, steps in (said["code"] or {"unknown": ["not recorded"]}).items():
        yield f"  code {code}: {', '.join(steps)}"
    for name, step in said["steps"].items():
        yield f"  step {name}: {step.get('stage', '?')} {step.get('version', '?')}, fingerprint {step.get('fingerprint', '?')}"
    yield f"  raw sources: {len(said['sources'])}"
    for use in said["sources"]:
        yield f"    {use['sha256']}  {use['step']}: {use['means']}"


def _of_files(lineages: Any, origin: Any, digests: dict[str, str]) -> dict[str, Any]:
    everybody = lineages.read_all(origin)
    found = lineages.learned_from(digests, everybody)
    return {
        "digests": digests,
        "models": [
            {
                "model": one.known.listed.version.name, "version": one.known.listed.version.version,
                "aliases": list(one.known.listed.aliases), "digest": one.known.listed.version.digest,
                "uses": [_use(use, lineages.in_words(use, one.known)) for use in one.uses],
            }
            for one in found
        ],
        "searched": len(everybody),
        "unread": {one.title: one.trouble for one in everybody if one.manifest is None},
    }  # fmt: skip


def _file_lines(said: dict[str, Any], what: str) -> Iterator[str]:
    names = list(said["digests"].items())
    yield from (f"the text is in {place}" for place in said["found"])
    for sha256, name in names[:5]:
        yield f"{name}: SHA-256 {sha256}" if name != sha256 else f"files whose SHA-256 begins with {sha256}"
    if len(names) > 5:
        yield f"... and {len(names) - 5} more files"
    for model in said["models"]:
        aliases = f" ({', '.join(model['aliases'])})" if model["aliases"] else ""
        yield f"  {model['model']} version {model['version']}{aliases}"
        for words in sorted({use["means"] for use in model["uses"]}):
            count = sum(use["means"] == words for use in model["uses"])
            yield f"    {words}" + (f" ({count} files)" if len(names) > 1 else "")
    yield f"{len(said['models'])} of {said['searched']} versions stand on {what}"
    for title, trouble in said["unread"].items():
        yield f"NOT KNOWN of {title}: {trouble}"
    if said["models"]:
        yield (
            "next: to be rid of it, take it out of the sources, make a new version (make run, or make retrain with "
            "retrain.start=scratch), and delete the versions above in MLflow"
        )
