"""EleutherAI's lm-eval on a registered model, offline: another program's figures beside our own.

The one idea: both read the pulled folder and the same file of held-out texts, and follow the same rules (windows,
prompts, greedy decoding), so that a difference in the third digit means that one of them is wrong.

The task files are in `lm_eval_tasks/`; each reads a JSONL file that stands beside it. `TASKS` says which of the line's
outputs the file is made of.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model import durable
from pipelines import run as runs
from pipelines.config import ConfigError
from pipelines.engine.step import Planned, resolve
from pipelines.execution import cores
from pipelines.run import Workspace

_OURS = Path(__file__).parent / "lm_eval_tasks"
_SAME = 5e-4  # relative: equal to the third digit


class HarnessFailed(RuntimeError):
    """lm-eval is not installed, or ended with an error. The message has its last words."""


@dataclass(frozen=True)
class HarnessTask:
    """A task of the harness: the step that has its data, that data as JSON lines, and our own function for its figures."""

    step: str
    rows: Callable[[Planned, dict[str, Planned], Path], Iterator[dict[str, Any]]]
    ours: str
    metrics: tuple[str, ...]


@dataclass(frozen=True)
class Compared:
    """One figure, by both."""

    task: str
    metric: str
    ours: float
    theirs: float

    @property
    def agrees(self) -> bool:
        """Whether they are equal to the third digit."""
        return abs(self.ours - self.theirs) <= _SAME * max(abs(self.ours), abs(self.theirs))


def _documents(planned: Planned, plan: dict[str, Planned], root: Path) -> Iterator[dict[str, Any]]:
    """The held-out documents that the base model is measured on."""
    from pipelines.tasks import language_modelling

    shards = plan[planned.step.inputs["text_heldout"].step]
    assert shards.folder is not None
    for text in language_modelling.texts(root, shards.folder / "outputs" / "heldout.json"):
        yield {"text": text.decode()}


TASKS = {
    "perplexity": HarnessTask(
        "evaluate-base", _documents, "model.rolling:evaluate_texts", ("bits_per_byte", "byte_perplexity")
    ),
}


def evaluate(workspace: Workspace, export: Path, names: list[str], scratch: Path) -> Iterator[Compared]:
    """Measure the model in the folder `export` on each task, by our own code and by lm-eval.

    ConfigError for an unknown task, or where the line has not made its data yet; HarnessFailed.
    """
    plan = runs.plan(workspace)
    for name in names:
        if name not in TASKS:
            raise ConfigError(f"TASKS={name}: no such task; there are {', '.join(TASKS)}")
        task = TASKS[name]
        planned = plan.get(task.step)
        if planned is None or planned.fingerprint is None:
            raise ConfigError(
                f"TASKS={name} needs the data of {task.step}, which is not made in {workspace.root}; next: make run"
            )
        folder = scratch / name
        folder.mkdir(parents=True)
        data = _task_files(folder, f"gptline_{name}", task.rows(planned, plan, workspace.root))
        device = runs.settings(workspace.execution)["device"]
        threads = workspace.execution.workers or cores()
        ours = resolve(task.ours)({"export": str(export), "texts": str(data), "threads": threads, "device": device})
        theirs = _lm_eval(export, f"gptline_{name}", folder, device, threads)
        for metric in task.metrics:
            yield Compared(name, metric, ours[metric], theirs[metric])


def _task_files(folder: Path, task: str, rows: Iterator[dict[str, Any]]) -> Path:
    """Put a task's YAML file and its data into `folder`; returns the data's path."""
    durable.write_bytes(folder / f"{task}.yaml", (_OURS / f"{task}.yaml").read_bytes())
    data = folder / "data.jsonl"
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    durable.write_bytes(data, "".join(lines).encode())
    return data


def _lm_eval(export: Path, task: str, folder: Path, device: str, threads: int) -> dict[str, float]:
    """Run lm-eval on one task, in a process of its own; its metrics by name."""
    command = [
        sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--model_args", f"pretrained={export},dtype=float32",
        "--include_path", str(folder), "--tasks", task, "--batch_size", "16", "--device", device,
        "--output_path", str(folder / "results.json"),
    ]  # fmt: skip
    offline = {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(folder / "cache"),
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": str(threads),
    }
    done = subprocess.run(command, cwd=folder, env=os.environ | offline, capture_output=True, text=True)
    found = sorted(folder.glob("results*.json"))
    if done.returncode or not found:
        missing = "No module named lm_eval" in done.stderr
        advice = "install it: pip install -c constraints.txt -e '.[eval]'" if missing else done.stderr.strip()[-3000:]
        raise HarnessFailed(f"lm-eval ended with {done.returncode} on {task}: {advice}")
    results = durable.read_json(found[-1])["results"][task]
    return {name.partition(",")[0]: value for name, value in results.items() if isinstance(value, float)}
