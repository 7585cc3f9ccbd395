"""EleutherAI's lm-eval on a registered model, offline: another program's figures beside our own.

The one idea: both read the pulled folder and the same file of held-out texts, and follow the same rules (windows,
prompts, greedy decoding), so that a difference in the third digit means that one of them is wrong.

`harness_data.py` finds the held-out texts, `harness_tasks.py` says what is asked; the task files in `lm_eval_tasks/` are
what lm-eval reads.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from model import durable

if TYPE_CHECKING:  # every command imports this module, for its error
    from pipelines.execution import Execution
    from pipelines.harness_data import Made
    from pipelines.harness_tasks import Asked

_OF_A_RANK = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_FILES = Path(__file__).parent / "lm_eval_tasks"
_SAME = 5e-4  # relative: equal to the third digit


class HarnessFailed(RuntimeError):
    """lm-eval is not installed, or ended with an error. The message has its last words."""


@dataclass(frozen=True)
class Compared:
    """One figure, by both."""

    task: str
    metric: str
    ours: float
    theirs: float
    left_out: int = 0  # examples that neither was asked about

    @property
    def agrees(self) -> bool:
        """Whether they are equal to the third digit."""
        return abs(self.ours - self.theirs) <= _SAME * max(abs(self.ours), abs(self.theirs))


def evaluate(execution: Execution, made: Made, export: Path, names: Sequence[str], scratch: Path) -> Iterator[Compared]:
    """Measure the model in the folder `export` on each task, by our own code and by lm-eval.

    ConfigError for an unknown task, or where the line has not made its data yet; HarnessFailed.
    """
    from pipelines import harness_tasks
    from pipelines import run as runs
    from pipelines.execution import cores

    device, threads = runs.settings(execution)["device"], execution.workers or cores()
    for name in names:
        folder = scratch / name
        folder.mkdir(parents=True)
        asked = harness_tasks.asked(name, made, export, folder)
        ours = asked.ours({"export": str(export), "threads": threads, "device": device})
        theirs = _lm_eval(export, asked, folder, device, threads)
        for metric in asked.metrics:
            yield Compared(name, metric, ours[metric], theirs[metric], asked.left_out)


def _lm_eval(export: Path, asked: Asked, folder: Path, device: str, threads: int) -> dict[str, float]:
    """Run lm-eval on one task, in a process of its own; its metrics by name. It litters `folder`."""
    for file in _FILES.iterdir():  # a task file reads what stands beside it
        if file.is_file():
            durable.write_bytes(folder / file.name, file.read_bytes())
    command = [
        sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--model_args", f"pretrained={export},dtype=float32",
        "--include_path", str(folder), "--tasks", asked.name, "--batch_size", "16", "--device", device,
        "--output_path", str(folder / "results.json"), *asked.options,
    ]  # fmt: skip
    offline = {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(folder / "cache"),
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": str(threads),
    }
    # A rank's variables, of a torchrun that this runs under or of one that was in this process, would have it wait for others.
    alone = {name: value for name, value in os.environ.items() if name not in _OF_A_RANK}
    done = subprocess.run(command, cwd=folder, env=alone | offline, capture_output=True, text=True)
    found = sorted(folder.glob("results*.json"))
    if done.returncode or not found:
        missing = "No module named lm_eval" in done.stderr
        advice = "install it: pip install -c constraints.txt -e '.[eval]'" if missing else done.stderr.strip()[-3000:]
        raise HarnessFailed(f"lm-eval ended with {done.returncode} on {asked.name}: {advice}")
    results = durable.read_json(found[-1])["results"][asked.name]
    return {name.partition(",")[0]: value for name, value in results.items() if isinstance(value, float)}
