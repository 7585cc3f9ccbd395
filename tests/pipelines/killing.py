"""A run that is killed, with all its processes, once it has something to lose."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]


def kill_while_it_learns(command: list[str], work: Path, seconds: float) -> None:
    """Start `command`, and kill it when fine-tuning in `work` has a checkpoint. AssertionError if there is none in time."""
    running = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + seconds
    while not list(work.glob("steps/finetune-*/checkpoints/*")) and running.poll() is None:
        assert time.monotonic() < deadline, "it never came to fine-tuning"
        time.sleep(0.05)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
