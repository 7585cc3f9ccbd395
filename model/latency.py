"""How long an export takes for one request: what a latency gate looks at.

The one idea: one stated measurement, so that two figures mean the same: the median of 30 forward passes of one sequence
that fills the model's window, after 5 that do not count, in fp32, on `threads` threads of `device`, through `transformers`
as downstream runs it. It is a time: it differs from run to run and never becomes part of an output.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import torch

from model.export import load_export

_WARM_UP, _PASSES = 5, 30


@torch.inference_mode()
def measure(job: dict[str, Any]) -> dict[str, Any]:
    """{"latency_ms": median, "window": tokens} of the export of a job {"export", "threads", "device"}."""
    torch.set_num_threads(job["threads"])
    device = job.get("device", "cpu")
    model = load_export(Path(job["export"]), device)
    window = model.config.max_position_embeddings
    eot = model.config.eos_token_id
    tokens = torch.arange(window, device=device)[None] % model.config.vocab_size  # (1, T)
    tokens = torch.where(
        tokens == eot, (eot + 1) % model.config.vocab_size, tokens
    )  # a classifier takes EOT for padding
    times = []
    for _ in range(_WARM_UP + _PASSES):
        began = time.perf_counter()
        model(tokens, attention_mask=torch.ones_like(tokens))
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return {"latency_ms": round(1000 * statistics.median(times[_WARM_UP:]), 3), "window": window}
