"""What a finished run leaves behind: the export, its probe, the metrics, and the adapter where one was trained.

The one idea: what ships is put together on rank 0 from what was frozen (a function of the job) and what was trained, and
counts only when it computes what the live model computed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model import adapters, durable, export, tuning
from model.checkpoint import Shelf
from model.heads import build
from model.hf import load_pretrained
from model.job import RankJob
from model.monitor import METRICS
from model.world import World
from model.zero import full_state, put_state

# Of the largest logit, between live model and fp32 reference: bf16 has 8 bits of mantissa, and errors add up over blocks.
LIVE_TOLERANCE = {"bf16": 0.05, "fp32": 1e-3}


def write(
    job: RankJob,
    engine: Any,
    initial: Callable[[], nn.Module],
    metrics: bytes,
    shelf: Shelf,
    world: World,
    best: Mapping[str, Tensor] | None,
) -> float:
    """Write everything into the job's outputs. Every rank has to call it; the largest difference from the probe.

    `best`: the trained parameters to leave in place of the engine's last ones (on rank 0; empty on the others), none:
    those. ExportMismatch.
    """
    if best is None:
        trained: Mapping[str, Tensor] = full_state(engine, job.train, world)
    else:
        put_state(engine, trained := best, job.train)
    tokens, mask = export.probe_inputs(job.model)
    engine.eval()
    logits = export.last_logits(engine, tokens, mask, job.model.segments)  # (rows, V or K)

    def on_first() -> float:
        draft = shelf.new_folder("outputs")
        state: Mapping[str, Tensor] = trained
        if job.tuning.tune != "all":
            model = initial()
            tuning.put_back(model, trained)
            if job.tuning.tune == "lora" and job.model.exportable:  # peft asks by Hugging Face's names
                adapters.write(draft / "adapter", job.model, job.tuning.lora, trained)
            state = tuning.merged(model)
        difference = _write_export(job, draft, state, tokens, mask, logits)
        durable.write_bytes(draft / METRICS, metrics)
        shelf.deliver(draft, Path(job.outputs))
        return difference

    return float(world.from_first(on_first))


def _write_export(
    job: RankJob, draft: Path, state: Mapping[str, Tensor], tokens: Tensor, mask: Tensor, logits: Tensor
) -> float:
    """Write the export (or our own weights, where nothing is released) and the probe, and compare them.

    What is written in bf16 is probed as it is rounded, so that a wrong weight shows as it does in fp32.
    """
    if job.export_precision == "bf16":
        state = {name: tensor.to(torch.bfloat16).float() for name, tensor in state.items()}
    if "bf16" in (job.train.precision, job.export_precision) or job.device == "cuda":
        logits = _reference_logits(job, state, tokens, mask, logits)
    name = "export" if job.release else "weights"
    if job.release:
        export.write_export(draft / name, job.model, state, Path(job.tokenizer), precision=job.export_precision)
    else:
        export.write_own(draft / name, job.model, state, Path(job.tokenizer))
    export.write_probe(draft / "probe.safetensors", tokens, mask, logits)
    return export.check_export(draft / name, draft / "probe.safetensors")


def _reference_logits(job: RankJob, state: Mapping[str, Tensor], tokens: Tensor, mask: Tensor, live: Tensor) -> Tensor:
    """Our model's logits in fp32 on the CPU, as the export is checked, after they were compared with the live model's.

    A live model in bf16, or on a GPU with its own order of sums, cannot be compared to 1e-4 itself, and no live model with
    weights that were rounded to bf16.
    """
    model = build(job.model)
    load_pretrained(model, state)
    logits = export.last_logits(model.eval(), tokens, mask, job.model.segments)
    difference = float((logits - live).abs().max())
    coarse = "bf16" if "bf16" in (job.train.precision, job.export_precision) else "fp32"
    if not difference <= LIVE_TOLERANCE[coarse] * float(logits.abs().max()):
        raise export.ExportMismatch(
            f"the {job.export_precision} weights and the live model differ by {difference:.3g} in their logits"
        )
    return logits
