"""What pretrain and finetune share: run the ranks of one job, show its progress, stop it when asked.

The one idea: a training step is one JSON job for `model.train:run_rank`. The driver only watches: it tells the
progress, and asks for a stop by creating a file that rank 0 looks for. What is done about lost ranks, nodes and Rays
is in `recovery.py`, in the process that uses Ray; when that is lost itself, another one begins at the last checkpoint.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cluster import apart
from model import durable
from model.train_config import ObjectiveConfig, TrainConfig
from pipelines import capabilities
from pipelines.engine.step import Attempt, Damaged, untold
from pipelines.pretrain_config import OBJECTIVES, objective_misfit
from pipelines.sources import SourceError
from pipelines.stages.budget import Budget
from pipelines.stages.fan_out import connect
from pipelines.stages.stop import STOP, Interrupted, Stop, signals_ask
from pipelines.tokenizer_files import bert_misfit, special_ids, tokenizer_facts

log = logging.getLogger(__name__)


def vocabulary(tokenizer: Path) -> dict[str, int]:
    """{"vocab_size", "eot_token_id"} of a tokenizer directory, as a ModelConfig wants them, and [PAD]'s, [CLS]'s, [SEP]'s
    and [MASK]'s id where it has them."""
    facts = tokenizer_facts(tokenizer)
    return {"vocab_size": facts.vocab_size, "eot_token_id": facts.eot} | special_ids(tokenizer)


def shape(attempt: Attempt, tokenizer: Path) -> dict[str, Any]:
    """What the model is, before its task is known: the recipe's shape with the tokenizer's vocabulary, or an imported model's.

    An imported model may have more ids than its tokenizer. SourceError if it cannot learn what it is to: of some models a
    recipe does not know the family.
    """
    if "shape" in attempt.inputs:
        found: dict[str, Any] = durable.read_json(attempt.inputs["shape"].path("model.json"))
        _refuse_what_it_cannot(found, attempt.config)
    else:
        found = attempt.config["model"] | vocabulary(tokenizer)
        if found.get("family") == "bert" and (misfit := bert_misfit(tokenizer)):
            raise SourceError(misfit)  # of a pinned one that was not here when the recipe was read
    length = attempt.config["train"]["sequence_length"]
    if length > found["n_positions"]:
        raise ValueError(f"sequence_length={length} is longer than the {found['n_positions']} positions of the model")
    return found


def _refuse_what_it_cannot(found: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """SourceError unless an imported model of this shape can learn the step's objective or form, and be measured."""
    family, form = found.get("family", "gpt2"), config.get("form", "")
    model = capabilities.Known(family, f"the imported model (of family {family})")
    misfits = [*capabilities.family_misfits(model, form, config.get("release", True))]
    objective = config["train"].get("objective", OBJECTIVES[family][0])
    misfits += capabilities.segment_misfits(found.get("type_vocab_size"), "the imported model", objective, form)
    if objective not in OBJECTIVES[family]:
        misfits.append(objective_misfit(objective, family, model.said))
    if misfits:
        raise SourceError(misfits[0])


def train_config(settings: dict[str, Any]) -> dict[str, Any]:
    """Of a stage's training settings those that the loop knows; the stage sees to the others."""
    return {name: value for name, value in settings.items() if name in TrainConfig.model_fields}


def objective_options(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Of a stage's training settings those that say what the objective makes of text."""
    return {name: settings[name] for name in ObjectiveConfig.model_fields if name in settings}


def training_pool(settings: dict[str, Any]) -> dict[str, int]:
    """How a job's data say among how many batches examples are sorted by length; nothing where the recipe does not."""
    return {"pool": settings["length_pool"]} if "length_pool" in settings else {}


def train(attempt: Attempt, job: dict[str, Any]) -> dict[str, Any]:
    """Run `job` (objective, data, model, train, init, tokenizer) on the execution's ranks; returns its metrics.

    Interrupted after a stop was asked for; GaveUp when ranks were lost too often, or the job's own error.
    """
    execution = attempt.execution
    connect(attempt)
    job = job | {
        "release": attempt.config.get("release", True),
        "export_precision": attempt.config.get("export_precision", "fp32"),
        "attempt": str(attempt.scratch),
        "outputs": str(attempt.outputs),
        "checkpoints": str(attempt.checkpoints),
        "micro_batch_size": execution["micro_batch_size"],
        "threads": execution["threads"],
        "device": execution["device"],
        "permanent": str(attempt.folder / "permanent"),
        "permanent_every": execution["permanent_every"],
        "checkpoint_seconds": execution["checkpoint_seconds"],
        "checkpoint_every": execution["checkpoint_every"],
        "keep_checkpoints": execution["keep_checkpoints"],
        "peak_flops": execution["peak_flops"],
        "verify": True,
    }
    durable.write_json(attempt.scratch / "job.json", job)  # to run it again by hand: torchrun -m model.train job.json
    stop = Stop(attempt.scratch / STOP, execution["grace_seconds"])
    with signals_ask(stop):
        result = _result(attempt, job, stop)
    # Also of ranks that were done before they saw it: the run has to end here, and the next one goes on from the last step.
    if result["stopped"] or stop.asked:
        raise Interrupted(
            f"{attempt.name} stopped after step {result['steps']} of {job['train']['max_steps']}; run again to go on"
        )
    attempt.numerics.update(result.pop("numerics"))
    return {name: value for name, value in result.items() if value is not None}


def _result(attempt: Attempt, job: dict[str, Any], stop: Stop) -> dict[str, Any]:
    """Rank 0's result, while progress is told; from the last checkpoint where the process that used Ray was lost.

    Interrupted, GaveUp, the job's own error; Damaged if a token shard is not what its manifest says.
    """
    from model.token_shards import DamagedShard

    budget = Budget(attempt.name, attempt.scratch, attempt.checkpoints, attempt.execution)
    while True:
        try:
            for what, told in apart.each("pipelines.stages.recovery:supervised", replace(attempt, report=untold), job):
                if what == "result":
                    result = told
                else:
                    attempt.progress(**told)
            return result
        except apart.Lost as loss:
            if stop.asked:
                raise Interrupted(
                    f"{attempt.name} lost its ranks while it stopped ({loss}); run again to go on"
                ) from loss
            log.warning("%s; starting Ray and the ranks again (%s)", loss, budget.preempted(loss))
        except DamagedShard as damage:
            raise Damaged(attempt.inputs["tokens"].record.step, str(damage), "is missing or damaged") from damage
