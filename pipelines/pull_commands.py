"""`gptline pull`: a registered model into a folder, now, from the cache, or when there is a newer one.

The one idea: what is printed last is what there is now: a sentence for people, one JSON object for programs.
"""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from pipelines.config import ConfigError
from pipelines.options import AsJson, Settings, execution_of, out, pairs
from pipelines.results import after_pull

Registry = Annotated[
    str | None,
    typer.Option(
        "--registry",
        envvar=["GPTLINE_REGISTRY", "MLFLOW_TRACKING_URI"],
        help="MLflow server's address, or folder of the store; as execution.registry",
    ),
]


def registry_of(registry: str | None, settings: list[str] | None) -> list[str]:
    """The settings with `--registry` among them; `--set execution.registry` counts more."""
    given = [f"execution.registry={registry}"] if registry else []
    return given + list(pairs(settings))


def pull(
    model: Annotated[str, typer.Argument(help="name@alias or name@version")],
    dest: Annotated[str, typer.Argument(help="folder to create")],
    registry: Registry = None,
    offline: Annotated[bool, typer.Option("--offline", help="from the cache alone: asks nobody")] = False,
    newer_than: Annotated[
        int | None, typer.Option("--wait-newer-than", help="wait until the alias means a version above this one")
    ] = None,
    other_than: Annotated[
        int | None,
        typer.Option("--wait-other-than", help="wait until the alias means another version, be it an older one"),
    ] = None,
    every: Annotated[float, typer.Option(min=0.1, help="seconds between two questions while waiting")] = 30.0,
    timeout: Annotated[
        float | None, typer.Option(min=0, help="seconds to wait at most (then exit code 75); for ever if not given")
    ] = None,
    trust_code: Annotated[
        bool, typer.Option("--trust-code", help="also take code that MLflow would run and that no gptline has written")
    ] = False,
    base: Annotated[
        str | None, typer.Option("--base", help="of an adapter: folder to pull the base model to that it is used on")
    ] = None,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Download a registered model, verified against its manifest, into a folder of its own."""
    from pipelines import adapter_base, follow
    from pipelines import pull as pulling
    from pipelines.model_cache_cleaning import clean

    waits = [number for number in (newer_than, other_than) if number is not None]
    if len(waits) > 1 or (waits and offline):
        raise ConfigError("give one of --wait-newer-than, --wait-other-than and --offline")
    execution = execution_of("work", registry_of(registry, settings))
    cache = Path(execution.model_cache) if execution.model_cache else None
    origin = pulling.From(execution.registry, execution.registry_patience, cache, offline, trust_code)
    if waits:
        bound = waits[0]
        welcome = (lambda version: version > bound) if newer_than is not None else (lambda version: version != bound)
        found = follow.wait_for(origin, model, welcome, every, timeout)
        pulled = pulling.pull_version(origin, found, Path(dest), model)
    else:
        pulled = pulling.pull_from(origin, model, Path(dest))
    wanted = adapter_base.of(origin, pulled.dest)
    under = adapter_base.pull(origin, model, wanted, Path(base)) if base else None
    if cache is not None:
        clean(cache, execution.model_cache_days, keep={pulled.digest, *([under.digest] if under else [])})
    if as_json:
        sys.stdout.write(
            json.dumps(asdict(pulled) | {"dest": str(pulled.dest)} | ({"base": asdict(wanted)} if wanted else {}))
            + "\n"
        )
        return
    remembered = f"; the cache says so since {pulled.asked}, nobody was asked" if pulled.asked else ""
    out.print(
        f"{pulled.name} version {pulled.version} is in {dest}, verified (package digest {pulled.digest[:12]}{remembered})",
        markup=False,
    )
    if wanted:
        out.print(f"it is an adapter of {wanted.told}" + (f", which is in {base}" if base else ""), markup=False)
        spec, address = (
            shlex.quote(wanted.spec or wanted.name),
            f" --registry {shlex.quote(registry)}" if registry else "",
        )
        load = f"PeftModel.from_pretrained(AutoModel....from_pretrained({base!r}), {str(dest)!r})"
        out.print(f"next: {load}" if base else f"next: gptline pull {spec} BASE{address}", markup=False)
        return
    out.print(f"next: {after_pull(pulled.dest)}", markup=False)
