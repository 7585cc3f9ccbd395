"""A Python in which this project is not installed, as downstream has it: plain `transformers` and `mlflow`, no network.

The one idea: `python -I -S` knows no installed package at all. The folder of the installed ones is added by hand, without
its .pth files, so the editable install of this project is not found; that it is not is asserted in every process.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

_ALONE = f"""
import importlib.util, sys
sys.path.append({sysconfig.get_path("purelib")!r})
assert not [name for name in ("pipelines", "model", "cluster", "tests") if importlib.util.find_spec(name)], sys.path
"""
_ASK = """
import json
from transformers import pipeline
answers = []
for one in json.loads(sys.stdin.read()):
    made = pipeline(one["task"], one["folder"], **one["options"])
    answers.append([made(given, **one["how"]) for given in one["inputs"]])
print(json.dumps(answers))
"""
_CODE = re.compile(r"```python\n(.*?)```", re.DOTALL)


@dataclass(frozen=True)
class Question:
    """What one `pipeline(task, folder, **options)` is called with, once for each input."""

    task: str
    folder: str
    inputs: list[Any]
    how: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)


def run(code: str, cwd: Path, given: str = "", **environment: str) -> str:
    """What `code` prints, run where this project is not installed. AssertionError with its last words if it fails."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "GPTLINE"))}
    kept |= {"HF_HUB_OFFLINE": "1", **environment}
    command = [sys.executable, "-I", "-S", "-c", _ALONE + code]
    done = subprocess.run(command, cwd=cwd, env=kept, input=given, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    return done.stdout


def ask(questions: list[Question], cwd: Path) -> list[list[Any]]:
    """The answers to each question's inputs, by plain `transformers.pipeline`, all in one process."""
    said = run(_ASK, cwd, json.dumps([asdict(one) for one in questions]))
    return list(json.loads(said.splitlines()[-1]))


def card_code(folder: Path) -> list[str]:
    """The Python snippets of a package's model card, in order: for `transformers` or `peft`, and for `mlflow`."""
    found = [match.group(1) for match in _CODE.finditer((folder / "README.md").read_text())]
    assert found, f"{folder}/README.md shows no code"
    return found
