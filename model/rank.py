"""One rank of a training job, from the job's description to the export.

The one idea: everything around the loop that is not arithmetic is here, and looks in between two steps: what is
written down, when a checkpoint is due, when to stop. A run that was stopped at any step and continued ends with the same
files as one that was not.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from model import durable, outputs, restore, tuning
from model.batches import RankBatch, example_batch, padding
from model.checkpoint import BEST, Checkpoint, open_shelf
from model.config import ModelConfig
from model.examples import Examples
from model.heads import build
from model.hf import begin_from
from model.job import ExampleData, RankJob
from model.monitor import METRICS, DivergenceGuard, Journal, flops_per_token, remembered_peak, sigterm_noticed
from model.pretraining import Order, streams
from model.saving import Saver
from model.token_shards import DamagedShard, TokenShards
from model.train import train
from model.train_config import accumulation_steps
from model.validation import PREFIX, Best, BestWeights, Validation
from model.world import World, join
from model.zero import build_engine, full_state

log = logging.getLogger(__name__)


def _verify_shards(shards: TokenShards, world: World) -> None:
    """Hash all shards, each rank its share. DamagedShard on all ranks if one of them is not what its manifest says."""
    problem = None
    try:
        for index in range(world.rank, len(shards.units), world.size):
            shards.verify(index)
    except DamagedShard as error:
        problem = str(error)
    problems = [found for found in world.gather(problem) if found]
    if problems:
        raise DamagedShard("; ".join(problems))


def _same_vocabulary(data: TokenShards | Examples, model: ModelConfig) -> None:
    """ValueError unless the data's tokens are those that the model knows. It may know more than its tokenizer has."""
    if data.vocab_size > model.vocab_size or data.eot != model.eot_token_id:
        raise ValueError(
            f"the data has {data.vocab_size} token ids with EOT {data.eot}, the model {model.vocab_size} with EOT "
            f"{model.eot_token_id}; tokenize the data with the model's tokenizer"
        )


def loader(job: RankJob, world: World) -> Callable[[int], RankBatch]:
    """The function from a step's number to this rank's share of its global batch."""
    order = {
        "seed": job.train.seed,
        "global_batch_size": job.train.global_batch_size,
        "length": job.train.sequence_length,
        "rank": world.rank,
        "world_size": world.size,
    }
    if isinstance(job.data, ExampleData):
        examples = Examples(Path(job.data.examples), job.model.padding)
        _same_vocabulary(examples, job.model)
        pool = job.data.pool
        return lambda step: example_batch(examples, step, objective=job.objective, pool=pool, **order)
    pretraining = streams(job.data, job.objective, job.objective_options, Path(job.tokenizer), Order(**order))
    for shards in pretraining.corpora.values():
        _same_vocabulary(shards, job.model)
        if job.verify:
            _verify_shards(shards, world)
    return pretraining


def padded(job: RankJob) -> float | None:
    """The share of padding among a run's tokens; None where sequences are cut from a stream and need none."""
    if not isinstance(job.data, ExampleData):
        return None
    train = job.train
    share = padding(
        Examples(Path(job.data.examples)),
        train.max_steps,
        seed=train.seed,
        global_batch_size=train.global_batch_size,
        length=train.sequence_length,
        pool=job.data.pool,
    )
    return round(share, 6)


def initial_model(job: RankJob) -> nn.Module:
    """The model before the first step: the same on every rank, from the seed and from `init`'s weights if there are any."""
    model = build(job.model, seed=job.train.seed, activation_checkpointing=job.train.activation_checkpointing)
    if job.init is not None:
        fresh = begin_from(Path(job.init), model, job.model)
        log.info("initial weights from %s; from the seed: %s", job.init, fresh or "none")
    tuning.prepare(model, job.tuning, job.train.seed)
    return model


class Run:
    """A training run on this rank, from its resumption to its end: the engine and what is known about it."""

    def __init__(self, job: RankJob, world: World) -> None:
        self.job, self.world = job, world
        self.attempt = Path(job.attempt)
        self._stop_file = self.attempt / "stop"  # how a driver asks ranks on other machines to save and stop
        permanent = Path(job.permanent) if job.permanent else None
        self.shelf = open_shelf(Path(job.checkpoints), permanent, self.attempt, job.keep_checkpoints, world)
        self.resumed: Checkpoint | None = self.shelf.newest
        self.step = self.resumed.step if self.resumed else 0
        self.load = loader(job, world)
        model = initial_model(job)
        self.parameters = tuning.counts(model)
        log.info("%d of %d parameters are trained", *self.parameters)
        predicted = job.objective_options.predicted(job.objective)
        flops = flops_per_token(model, job.model, job.train.sequence_length, predicted)
        self.journal = Journal(self.attempt, _peak(job, world), flops)
        universal = restore.is_universal(self.resumed, world)
        self.engine = build_engine(model, job.train, world, job.micro_batch_size, universal=universal)
        self.guard = DivergenceGuard()
        early = job.tuning.early_stopping
        self.best = Best(early, job.train.max_steps) if early else None
        self.best_weights = BestWeights()
        if job.validation and early:
            length = job.train.sequence_length
            self.validation = Validation(Path(job.validation), job.objective, length, job.model.padding, world)
        self.history = _history(self.resumed, numerics(job, world))
        self.saver = Saver(self.engine, world, self.shelf, job.train.zero_stage)
        self._copied_at = time.monotonic()  # when the last checkpoint was begun, or else training
        if self.resumed:
            self._resume(self.resumed)
        if world.is_first:  # in place of what a killed start of this attempt wrote after its last checkpoint
            self.journal.begin()

    def _resume(self, source: Checkpoint) -> None:
        """Go on from a checkpoint: its weights and its metrics."""
        log.info("resuming from %s", source.folder)
        restore.load(self.engine, source, self.world, self.shelf)
        self.journal.metrics += source.metrics
        for line in self.journal.lines():
            self.guard.check(line["step"], line["loss"], line["grad_norm"], source.folder)
            if self.best:
                self.best.see(line["step"], line)
        self.best_weights.data = source.best

    def begin_save(self) -> None:
        """Begin a checkpoint of the current step, unless it has one. Every rank has to call it."""
        if self.saver.step != self.step:
            every = self.job.permanent_every
            permanent = every > 0 and self.step % every == 0
            files = {METRICS: bytes(self.journal.metrics)}
            if self.best_weights.data:
                files[BEST] = self.best_weights.data
            self.saver.begin(self.step, files, self.history, permanent=permanent)
        self._copied_at = time.monotonic()

    def save(self) -> None:
        """Publish a checkpoint of the current step, unless it has one, and wait for it. Every rank has to call it."""
        self.begin_save()
        self.saver.finish()

    def close(self) -> None:
        """Let go of the folder of what is unfinished."""
        if self.world.is_first:
            durable.remove_tree(self.shelf.start)

    def steps(self, stop: Callable[[], bool]) -> bool:
        """Train to the last step, or until the validation examples say that it is enough.

        Whether it was stopped before: `stop()` is true on any rank, or attempt/stop exists.
        """
        if self._enough():  # and the ranks were started again before all was written
            return False
        for report in train(self.engine, self.load, self.job.objective, self.job.train, self.world, self.step):
            if not self.guard.is_fine(report.loss, report.grad_norm):
                self.saver.finish()  # it is from before, and the error is going to name it
            newest = self.shelf.newest
            self.guard.check(report.step, report.loss, report.grad_norm, newest.folder if newest else None)
            self.step = report.step
            measured = self._measured()
            if self.world.is_first:
                self.shelf.require_attempt()
                self.journal.record(report, measured)
            stopped, late, busy = self.world.vote(
                stop() or self._stop_file.exists(), self.world.is_first and self._is_late(), self.saver.busy
            )
            if not busy:
                self.saver.advance()
            if self._enough():
                return False
            if stopped:
                return self.step < self.job.train.max_steps
            if late or any(
                every and self.step % every == 0 for every in (self.job.checkpoint_every, self.job.permanent_every)
            ):
                self.begin_save()
        return False

    def _measured(self) -> dict[str, float]:
        """What the validation examples say of the model now; nothing where it is not their turn."""
        if self.best is None or not self.best.due(self.step):
            return {}
        measured = self.validation.measure(self.engine)
        if self.best.see(self.step, measured):
            trained = full_state(self.engine, self.job.train, self.world)
            if self.world.is_first:
                self.best_weights.keep(self.step, trained)
        return measured

    def _enough(self) -> bool:
        """Whether the validation examples have been no better for long enough."""
        return self.best is not None and self.best.over

    def _is_late(self) -> bool:
        """Whether the last checkpoint is `checkpoint_seconds` old, by this rank's clock."""
        seconds = self.job.checkpoint_seconds
        return seconds > 0 and time.monotonic() - self._copied_at >= seconds

    def facts(self) -> dict[str, Any]:
        """What there is to say where not all weights are tuned to the last step."""
        found: dict[str, Any] = {}
        if self.parameters[0] < self.parameters[1]:
            found |= dict(zip(("trained_parameters", "parameters"), self.parameters, strict=True))
        if self.best:
            found |= {"best_step": self.best.step, f"best_{PREFIX}{self.best.config.metric}": self.best.value}
        return found

    def export(self) -> float:
        """Write export, probe and metrics into the outputs and check the export. The largest difference from the probe."""
        best = self.best_weights.tensors() if self.best and self.world.is_first else {}
        return outputs.write(
            self.job, self.engine, lambda: initial_model(self.job), bytes(self.journal.metrics), self.shelf, self.world,
            best=best if self.best else None,
        )  # fmt: skip


def _peak(job: RankJob, world: World) -> float | None:
    """FLOP/s that all ranks together could reach; known to rank 0 only."""
    if not world.is_first:
        return None
    return world.size * (job.peak_flops or remembered_peak(Path(job.attempt), world.device, job.train.precision))


def numerics(job: RankJob, world: World) -> dict[str, Any]:
    """What decides the last bits of the result beside the recipe (DESIGN rule 3)."""
    import deepspeed

    return {
        "ranks": world.size,
        "threads": job.threads,
        "micro_batch_size": job.micro_batch_size,
        "accumulation_steps": accumulation_steps(job.train.global_batch_size, world.size, job.micro_batch_size),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "device": torch.cuda.get_device_name(world.device) if job.device == "cuda" else "cpu",
        "torch": str(torch.__version__),
        "deepspeed": deepspeed.__version__,
    }


def _history(resumed: Checkpoint | None, now: dict[str, Any]) -> list[dict[str, Any]]:
    """Under which numerics the steps were and will be made: one entry where nothing changed, however often it was resumed."""
    history = resumed.history if resumed else []
    if history and history[-1]["numerics"] == now:
        return history
    return [*history, {"from_step": resumed.step if resumed else 0, "numerics": now}]


def run(job: RankJob) -> dict[str, Any]:
    """Train, or continue to train, and export. Every rank has to call it; the result is complete on rank 0.

    It is {"steps", "final_loss", "tokens", "tokens_per_second", "resumed_from", "stopped": None | "sigterm",
    "export_difference", "padding", "numerics"}, where not all is tuned "trained_parameters" and "parameters", and with early stopping
    "best_step" and "best_validation_loss" or "best_validation_accuracy". Raises TrainingDiverged, CheckpointError, DamagedShard, ExportMismatch;
    FileNotFoundError when the attempt was taken over.
    """
    torch.set_num_threads(job.threads)  # Ray sets OMP_NUM_THREADS, and the number decides the last bits
    world = join(job.device)
    with sigterm_noticed() as stop:
        this = Run(job, world)
        stopped = this.steps(stop)
        this.save()
        this.saver.close()
        difference = None if stopped else this.export()
        this.close()
        lines = this.journal.lines()
        return {
            "steps": this.step,
            "final_loss": lines[-1]["loss"] if lines else None,
            "tokens": sum(line["tokens"] for line in lines),
            "tokens_per_second": this.journal.tokens / this.journal.seconds if this.journal.seconds else None,
            "resumed_from": this.resumed.step if this.resumed else None,
            "stopped": "sigterm" if stopped else None,
            "export_difference": difference,
            "padding": padded(this.job) if world.is_first and not stopped else None,
            "numerics": this.history[-1]["numerics"] | ({"earlier": this.history[:-1]} if this.history[1:] else {}),
            **this.facts(),
        }
