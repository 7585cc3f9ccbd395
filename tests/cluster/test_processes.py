"""Processes of a service are looked at while some of them end."""

from __future__ import annotations

import subprocess
import sys

import psutil
import pytest

from cluster import processes


def test_a_process_that_ends_while_its_name_is_asked_for_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    short = subprocess.Popen([sys.executable, "-c", "pass"])
    gone, us = psutil.Process(short.pid), psutil.Process()
    short.wait()
    monkeypatch.setattr(processes, "family", lambda process, mark: [gone, us])
    assert processes.has_one_called(processes.known(us.pid), "mark", us.name())
    assert not processes.has_one_called(processes.known(us.pid), "mark", "of no process")
