"""Where and how a recipe is made: an Execution, frozen, strict, every field with its unit.

The one idea: nothing here enters a fingerprint. Changing an Execution never makes a finished step stale.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from model.config import Config


def cores() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0))


def gpus() -> int:
    """GPUs of this machine: their device files. As good as asking torch, which takes three seconds to import."""
    return len(list(Path("/dev").glob("nvidia[0-9]*")))


def _ranks() -> int:
    return gpus() or 2


def _model_cache() -> str:
    given = os.environ.get("GPTLINE_MODEL_CACHE")
    if given is not None:
        return given
    return str(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gptline" / "models")


class Execution(Config):
    """Where and how a recipe is made. Nothing here enters a fingerprint."""

    work: str = Field("work", validate_default=True, description="work directory: everything in it can be made again")
    registry: str = Field(
        "registry",
        validate_default=True,
        description="MLflow store: a folder (sqlite and artifacts), or a tracking server's http address",
    )
    credentials: str = Field(
        "",
        validate_default=True,
        description="file (mode 0600) with user and password for that server, in the format of ~/.mlflow/credentials",
    )
    site: str = Field(
        "",
        validate_default=True,
        description="folder of a site that is up here: its MLflow server, its Ray and their secrets are used where nothing else is given",
    )
    site_patience: float = Field(
        600.0, ge=0, description="seconds for which `retrain` waits for a site that is not up yet, as after a boot"
    )
    registry_patience: float = Field(
        120.0, ge=0, description="seconds for which registering and pulling are tried again while MLflow is away"
    )
    cache: str = Field(".cache/gptline", validate_default=True, description="folder for fetched sample data")
    model_cache: str = Field(
        default_factory=_model_cache,
        description="folder in which pulled models are kept by their digests, shared by all pulls; empty: none is kept",
    )
    model_cache_days: float = Field(
        30.0, ge=0, description="days after which what no pull has used is removed from the model cache; 0: never"
    )
    ray_address: str = Field("local", description="'local' starts a Ray here; 'auto' or host:port joins one")
    ray_token: str = Field(
        "", validate_default=True, description="file (mode 0600) with the token of the Ray at ray_address"
    )
    workers: int | None = Field(
        None, ge=1, description="Ray tasks in flight at once; as many as this machine, or the cluster joined, has CPUs"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where training and evaluation compute")
    ranks: int = Field(
        default_factory=_ranks, ge=1, description="training processes; as many as this machine has GPUs, or 2"
    )
    placement: Literal["pack", "spread", "strict_spread"] = Field(
        "pack", description="ranks on as few nodes as possible, over as many as possible, or each on one of its own"
    )
    network_interface: str | None = Field(
        None, description="over which ranks talk, e.g. ib0; if none, the one by whose address Ray knows the node"
    )
    threads: int = Field(default_factory=lambda: max(1, cores() // 2), ge=1, description="CPU threads of one rank")
    micro_batch_size: int = Field(32, ge=1, description="sequences in one forward pass of one rank, at most")
    checkpoint_seconds: float = Field(
        300.0, ge=0, description="seconds between two temporary checkpoints, by rank 0's clock; 0: none by time"
    )
    checkpoint_every: int = Field(
        100,
        ge=0,
        description="steps between two temporary checkpoints; 0: none by steps. One at the end, and at SIGTERM, is always made",
    )
    keep_checkpoints: int = Field(2, ge=1, description="newest good temporary checkpoints kept while a step is trained")
    permanent_every: int = Field(
        0, ge=0, description="steps between two checkpoints that stay for good, also after the step is done; 0: none"
    )
    standby: bool = Field(
        True, description="keep a warm process beside each rank: a restart is seconds faster and costs 0.5 GB a rank"
    )
    min_ranks: int = Field(1, ge=1, description="training goes on with fewer ranks, but not with fewer than these")
    wait_for_ranks: float = Field(
        120.0, ge=0, description="seconds to wait for room for all ranks before going on with fewer"
    )
    grace_seconds: float = Field(
        30.0, gt=0, description="seconds that ranks have to save after SIGTERM, before they are killed"
    )
    max_failures: int = Field(
        10,
        ge=0,
        description="ranks or tasks of one step that may die in one run before it gives up (of tasks: in one process that uses Ray)",
    )
    max_preemptions: int = Field(
        100,
        ge=0,
        description="nodes lost and ranks told to go (SIGTERM), within one step of one run, before it gives up",
    )
    lease_seconds: float = Field(
        30.0, gt=0, description="an owner on another host without a sign of life for so long is dead"
    )
    keep_days: float = Field(30.0, ge=0, description="days for which `gc` keeps what was finished")
    keep_records: int = Field(3, ge=1, description="finished records of each step that `gc` keeps however old they are")
    retired_registries: str = Field(
        "",
        description="addresses of MLflow servers that are gone for good, with blanks between them: `gc` asks them no more, whatever old records name",
    )
    alert_command: str = Field(
        "",
        description="called when a slot failed or a model is stale, with JSON on standard input; empty: nobody is told",
    )
    stale_after_days: float = Field(
        14.0, ge=0, description="days without a new version after which retraining is stale; 0: never"
    )
    retrain_attempts: int = Field(
        3, ge=1, description="times that a retraining slot is tried when it fails or is killed, before it is given up"
    )
    retrain_backoff: float = Field(
        60.0, ge=0, description="seconds before a failed slot is tried again; twice as many before each further try"
    )
    peak_flops: float | None = Field(
        None,
        gt=0,
        description="floating-point operations a second that one rank could reach, for MFU; measured if none",
    )
    port: int = Field(5000, ge=1, le=65535, description="of the MLflow UI, on loopback")

    @field_validator("work", "registry", "cache", "model_cache", "credentials", "site", "ray_token")
    @classmethod
    def _absolute(cls, value: str) -> str:
        return value if not value or "://" in value else str(Path(value).expanduser().absolute())
