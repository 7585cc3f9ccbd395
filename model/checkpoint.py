"""A checkpoint is a folder that was published whole, by one rename (DESIGN rule 6).

The one idea: DeepSpeed says what is in the files, we decide when they count. Every rank writes and hashes its
files in a staging folder under the attempt (`saving.py`), and when all are there, rank 0 writes the manifest of
all of them and renames the folder into place. DeepSpeed's own `latest`, which can name a checkpoint that lacks a shard, is not used.

    checkpoints/step-000100/    and permanent/step-000100/ for those that stay
      MANIFEST.json     schema, step, world size, ZeRO stage, size and SHA-256 of every file, and its own SHA-256
      metrics.jsonl     the metrics of steps 1 to 100
      best.safetensors  the weights that were best on the validation examples so far, where training stops by those
      state/            what DeepSpeed saves
    attempts/<token>/start-<hex>/    everything unfinished of one start of the ranks

The rename also fences: staging lies under the attempt, so when the attempt was taken over, it is gone and publishing
fails with FileNotFoundError; and ranks that start again in the same attempt take the folder of the start before away.
Nothing here makes a parent folder.
"""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from model import durable
from model.world import World

log = logging.getLogger(__name__)
SCHEMA = 2
MANIFEST, METRICS, STATE, BEST = "MANIFEST.json", "metrics.jsonl", "state", "best.safetensors"
Entries = list[dict[str, str | int]]  # of a manifest: {"path", "size", "sha256"}


class CheckpointError(RuntimeError):
    """Checkpoints were published and none of them is good, a good one did not load, or a new one cannot be written."""


class DamagedCheckpoint(Exception):
    """One checkpoint's files are not those of its manifest."""


@dataclass(frozen=True)
class Checkpoint:
    """A published checkpoint whose files were found to be those of its manifest."""

    folder: Path
    step: int  # optimizer steps done
    world_size: int
    zero_stage: int
    history: list[dict[str, Any]]  # under which numerics the steps so far were made: {"from_step", "numerics"}

    @property
    def metrics(self) -> bytes:
        """The metrics file up to this step."""
        return (self.folder / METRICS).read_bytes()

    @property
    def best(self) -> bytes:
        """The weights that were best on the validation examples up to this step; empty where none were measured."""
        path = self.folder / BEST
        return path.read_bytes() if path.exists() else b""


def folder_name(step: int) -> str:
    """The name of a step's checkpoint; names sort as steps do."""
    return f"step-{step:06d}"


def step_of(folder: Path) -> int:
    """The step that a checkpoint's folder is named by."""
    return int(folder.name.removeprefix("step-"))


def published(*folders: Path) -> list[Path]:
    """The checkpoints in `folders`, newest first. Says nothing about whether they are good."""
    # No glob: it takes a folder that cannot be read for an empty one, and training would start from scratch.
    there = [path for folder in folders if folder.is_dir() for path in folder.iterdir()]
    found = [path for path in there if re.fullmatch(r"step-\d+", path.name)]
    return sorted(found, key=step_of, reverse=True)


def _read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint. DamagedCheckpoint if it is not what was written."""
    try:
        manifest: dict[str, Any] = durable.read_json(folder / MANIFEST)
        if manifest["schema"] != SCHEMA:
            raise DamagedCheckpoint(f"{folder} has schema {manifest['schema']}, this version reads {SCHEMA}")
        if manifest["sha256"] != durable.own_digest(manifest) or manifest["step"] != step_of(folder):
            raise DamagedCheckpoint(f"{folder / MANIFEST} is not what was written")
    except OSError as error:
        raise DamagedCheckpoint(f"{error.filename} cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedCheckpoint(f"{folder / MANIFEST} cannot be read ({error!r})") from error
    return manifest


def _check_files(folder: Path, entries: Entries) -> None:
    """Hash files of a checkpoint. DamagedCheckpoint names the first that is not as it should be."""
    for entry in entries:
        path = folder / str(entry["path"])
        try:
            size, sha256 = path.stat().st_size, durable.sha256(path)
        except FileNotFoundError as error:
            raise DamagedCheckpoint(f"{path} is missing") from error
        except OSError as error:  # a disk that fails
            raise DamagedCheckpoint(f"{path} cannot be read ({error.strerror})") from error
        if size != entry["size"]:
            raise DamagedCheckpoint(f"{path} has {size} bytes, its manifest says {entry['size']}")
        if sha256 != entry["sha256"]:
            raise DamagedCheckpoint(f"{path} does not have the SHA-256 of its manifest")


def _checkpoint(folder: Path, manifest: dict[str, Any]) -> Checkpoint:
    return Checkpoint(folder, manifest["step"], manifest["world_size"], manifest["zero_stage"], manifest["history"])


def verified(folder: Path) -> Checkpoint:
    """The checkpoint in `folder`, every file hashed. DamagedCheckpoint names the first file that is not as it should be."""
    manifest = _read_manifest(folder)
    _check_files(folder, manifest["files"])
    return _checkpoint(folder, manifest)


def verified_together(folder: Path, world: World) -> Checkpoint:
    """`verified`, where each rank hashes its share of the files. Every rank has to call it; all raise alike."""
    manifest: dict[str, Any] = {}
    problem = None
    try:
        manifest = _read_manifest(folder)
        by_size = sorted(manifest["files"], key=lambda entry: (-entry["size"], entry["path"]))
        _check_files(folder, by_size[world.rank :: world.size])
    except DamagedCheckpoint as error:
        problem = str(error)
    problems = [found for found in world.gather(problem) if found]
    if problems:
        raise DamagedCheckpoint("; ".join(dict.fromkeys(problems)))
    return _checkpoint(folder, manifest)


def newest_good(candidates: list[Path], verify: Callable[[Path], Checkpoint] = verified) -> Checkpoint | None:
    """The newest good one of some checkpoints, newest first; None if there are none. Damaged ones are passed over, and the log says so.

    CheckpointError if there are some and none is good: starting from scratch must be somebody's decision.
    """
    damage = []
    for folder in candidates:
        try:
            return verify(folder)
        except DamagedCheckpoint as error:
            log.warning("checkpoint %s is damaged and passed over: %s", folder, error)
            damage.append(f"{folder.name}: {error}")
    if damage:
        raise CheckpointError(
            f"no good checkpoint in {candidates[0].parent}: {'; '.join(damage)}. Remove the folder to train again from "
            "the first step"
        )
    return None


def _new_folder(parent: Path, kind: str) -> Path:
    """A fresh folder. FileNotFoundError when its parent was taken away."""
    folder = parent / f"{kind}-{secrets.token_hex(6)}"
    folder.mkdir()
    return folder


@dataclass
class Shelf:
    """Where one start of the ranks puts its checkpoints, and which of those there are good. Used by rank 0; others read `newest`."""

    checkpoints: Path  # temporary ones: the newest `keep` good ones stay, until the step is done
    permanent: Path | None  # those that stay for good
    attempt: Path
    start: Path  # in the attempt: all that is unfinished
    keep: int
    newest: Checkpoint | None = None  # the newest good one
    good: set[str] = field(default_factory=set)  # names of temporary ones that were verified, or published from here

    def require_attempt(self) -> None:
        """FileNotFoundError when the attempt was taken over."""
        if not self.start.is_dir():
            raise FileNotFoundError(
                f"{self.start} is gone: the attempt was taken over, or its ranks were started again"
            )

    def new_folder(self, kind: str) -> Path:
        """A fresh folder for what is not finished. FileNotFoundError when the attempt was taken over."""
        return _new_folder(self.start, kind)

    def stage(self, step: int) -> Path:
        """A staging folder for the checkpoint of `step`, with the folder that DeepSpeed's files go to."""
        staging = self.new_folder(f"staging-{folder_name(step)}")
        (staging / STATE).mkdir()
        return staging

    def deliver(self, draft: Path, outputs: Path) -> None:
        """Give what was finished in this start its name, in place of what an earlier start got done.

        Both renames begin or end in the start's folder, so neither succeeds for ranks that were started again meanwhile.
        """
        self.require_attempt()
        if outputs.exists():
            durable.rename(outputs, self.start / f"old-outputs-{secrets.token_hex(6)}")
        durable.publish_folder(draft, outputs)

    def set_aside(self, folder: Path) -> None:
        """Take `folder` out of the checkpoints, into the attempt: it is fenced, and goes when the attempt goes."""
        durable.rename(folder, self.attempt / f"aside-{folder.name}-{secrets.token_hex(6)}")

    def publish(self, staging: Path, facts: dict[str, Any], *, permanent: bool) -> Checkpoint:
        """Write the manifest of a finished staging folder, give the folder its name, and let go of what is too old."""
        manifest = {"schema": SCHEMA} | facts
        durable.write_json(staging / MANIFEST, manifest | {"sha256": durable.own_digest(manifest)})
        shelf = self.checkpoints
        if permanent and self.permanent:
            shelf = self.permanent
            shelf.mkdir(exist_ok=True)
        target = shelf / folder_name(facts["step"])
        if target.exists():
            log.warning("checkpoint %s exists and was not good when training resumed: replaced", target)
            self.set_aside(target)
        durable.publish_folder(staging, target)
        if shelf == self.checkpoints:
            self.good.add(target.name)
            try:
                self._retain()
            except OSError as error:
                raise CheckpointError(
                    f"{target} is published, but older checkpoints cannot be removed ({error}). Put that right and run again"
                ) from error
        return _checkpoint(target, manifest)

    def _retain(self) -> None:
        """Remove the temporary checkpoints that are older than the newest `keep` good ones.

        One of which nobody knows whether it is good counts for nothing, so it pushes no good one out.
        """
        kept = 0
        for folder in published(self.checkpoints):
            if kept >= self.keep:
                self.good.discard(folder.name)
                doomed = self.start / f"old-{folder.name}-{secrets.token_hex(6)}"
                durable.rename(folder, doomed)
                durable.remove_tree(doomed)
            elif folder.name in self.good:
                kept += 1


def _sweep(attempt: Path) -> Path:
    """The folder of a new start, after those of earlier starts were taken away: whoever is left of them can publish no more."""
    for dead in [*attempt.glob("start-*"), *attempt.glob(".start-*.tmp")]:
        if dead.is_dir() and any(dead.iterdir()):
            log.warning("removing what an earlier start of the ranks left unfinished: %s", dead)
        durable.remove_tree(dead)
    return _new_folder(attempt, "start")


def open_shelf(checkpoints: Path, permanent: Path | None, attempt: Path, keep: int, world: World) -> Shelf:
    """The shelf of a new start, with the checkpoint to resume from as its `newest`. Every rank has to call it. Errors as `newest_good`.

    Damaged checkpoints newer than that are moved out of the way, since their steps are going to be published again. A file
    attempt/damaged-*.json tells of each.
    """

    def prepare() -> tuple[Path, list[Path]]:
        return _sweep(attempt), published(checkpoints, *([permanent] if permanent else []))

    def verify(folder: Path) -> Checkpoint:
        try:
            return verified_together(folder, world)
        except DamagedCheckpoint as error:
            if world.is_first:  # for whoever watches: the log of a rank goes with the attempt
                told = {"checkpoint": str(folder), "damage": str(error)}
                durable.write_json(attempt / f"damaged-{folder.parent.name}-{folder.name}.json", told)
            raise

    start, candidates = world.from_first(prepare)
    shelf = Shelf(checkpoints, permanent, attempt, start, keep)
    shelf.newest = newest_good(candidates, verify)
    if shelf.newest is None:
        return shelf
    if world.is_first:
        for folder in candidates:
            if step_of(folder) > shelf.newest.step:
                shelf.set_aside(folder)
    if shelf.newest.folder.parent == checkpoints:
        shelf.good.add(shelf.newest.folder.name)
    return shelf
