"""SIGTERM to the command line, as a batch system sends it before it takes a machine away."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.thorough  # test_recovery.py does it to a driver of one step, test_jobs_commands.py to a job
def test_sigterm_to_the_command_saves_within_the_grace_period_and_exits_with_75(tmp_path: Path) -> None:
    work, grace = tmp_path / "work", 30
    settings = [f"execution.registry={tmp_path / 'registry'}", f"execution.grace_seconds={grace}",
                "execution.checkpoint_every=0", "pretrain.max_steps=1000000"]  # fmt: skip
    options = [part for setting in settings for part in ("--set", setting)]
    command = [sys.executable, "-m", "pipelines", "run", "--recipe", "tiny", "--work", str(work), "--until", "pretrain"]
    driver = psutil.Popen([*command, *options], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while not list(work.glob("steps/pretrain-*/attempts/*/progress.jsonl")):
        assert driver.poll() is None, driver.communicate()[0]
        time.sleep(0.05)
    below = driver.children(recursive=True)
    told = time.monotonic()
    os.kill(driver.pid, signal.SIGTERM)
    said, _ = driver.communicate(timeout=grace + 60)
    assert driver.returncode == 75, said
    assert time.monotonic() - told < grace + 10, "saving, and the end of Ray and of MLflow's thread"
    assert "pretrain stopped after step" in said and "Traceback" not in said
    assert list(work.glob("steps/pretrain-*/checkpoints/step-*"))
    _, left = psutil.wait_procs(below, timeout=60)
    assert not left, left
