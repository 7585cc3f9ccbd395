"""A head, a worker that joins it, and whoever must not: brought up by the real commands."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cluster import head_facts, processes, ray_node
from cluster import site as sites
from pipelines import site_health, versions
from tests.site import running
from tests.site.running import done, gptline


def joining(head: Path, tmp_path: Path, token: str | None = None) -> list[str]:
    """Options of `join` for a worker in `tmp_path`."""
    file = tmp_path / "token"
    file.touch(mode=0o600)
    file.write_text(token or (head / "token").read_text())
    ray = sites.read(head).ray
    assert ray is not None
    return [
        ray.address, "--site", str(tmp_path / "site"), "--host", running.WORKER, "--token", str(file), "--cpus", "1",
    ]  # fmt: skip


def test_up_again_starts_nothing_and_says_where_everything_is(head: Path) -> None:
    before = (head / "services.json").read_bytes()
    said = done("up", "--site", str(head))
    assert said.count(" was up; log ") == 2 and "next: make run SITE=" in said
    assert (head / "services.json").read_bytes() == before


def test_up_refuses_other_settings_while_it_is_up(head: Path) -> None:
    refused = gptline("up", "--site", str(head), "--host", "127.0.0.9")
    assert refused.returncode == 2 and "is up with another host; next: make down" in refused.stderr


def test_up_refuses_a_port_that_somebody_else_has(head: Path, tmp_path: Path) -> None:
    ray = sites.read(head).ray
    assert ray is not None
    taken = ray.address.partition(":")[2]
    options = [*running.head_options(tmp_path, running.HEAD), "--ray-port", taken]
    refused = gptline("up", *options)
    assert refused.returncode == 2 and f"somebody else listens at {ray.address}" in refused.stderr


DRIVER = """
import json, sys
from cluster import ray_map, services
address, token, items = sys.argv[1:]
services.connect(address, 1, token)
items = json.loads(items)
found = [result for _, result in ray_map.map_units("tests.site.jobs:where", items, in_flight=2, max_calls=1)]
services.disconnect()
print(json.dumps(sorted(found)))
"""


def work_on(ray: sites.RayService, folder: Path, together: int) -> list[str]:
    """The addresses of the nodes on which so many tasks ran at one time, by a driver that was given the token's file."""
    items = json.dumps([{"folder": str(folder), "together": together}] * together)
    command = [sys.executable, "-c", DRIVER, ray.address, ray.token_file, items]
    ran = subprocess.run(command, cwd=running.ROOT, capture_output=True, text=True, check=False, timeout=240)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return list(json.loads(ran.stdout.splitlines()[-1]))


def test_a_worker_joins_works_and_leaves_nothing_behind(head: Path, tmp_path: Path) -> None:
    ray = sites.read(head).ray
    assert ray is not None
    try:
        assert "joined" in done("join", *joining(head, tmp_path))
        known = head_facts.nodes(ray.address, ray_node.environment(ray.token_file, ray.node))
        assert sorted(known) == [running.HEAD, running.WORKER]
        assert work_on(ray, tmp_path, 2) == [running.HEAD, running.WORKER], "each of two tasks fills a node"
        left, worker = running.members(tmp_path / "site"), sites.read(tmp_path / "site").ray
        assert worker is not None and processes.has_one_called(worker.process, worker.mark, "raylet")
    finally:
        said = running.down(tmp_path / "site")
    assert "processes ended" in said
    assert running.still_alive(left) == []
    assert sites.read(tmp_path / "site").ray is None
    assert site_health.head_answers(ray), "the head was not meant"


def test_join_refuses_a_wrong_or_missing_token(head: Path, tmp_path: Path) -> None:
    refused = gptline("join", *joining(head, tmp_path, "0" * 64))
    assert refused.returncode == 2 and "does not take the token" in refused.stderr
    options = joining(head, tmp_path / "..", None)
    missing = gptline("join", options[0], "--site", str(tmp_path / "other"), "--host", running.WORKER)
    assert missing.returncode == 2 and "copy the file site/token from the head" in missing.stderr
    assert not sites.read(tmp_path / "site").ray, "nothing was started"


def test_join_refuses_other_code_and_names_both_versions(head: Path, tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    for room in ("pipelines", "model", "cluster"):
        shutil.copytree(running.ROOT / room, checkout / room, ignore=shutil.ignore_patterns("__pycache__"))
    with open(checkout / "model" / "adamw.py", "a") as changed:
        changed.write("# a day older\n")
    refused = gptline("join", *joining(head, tmp_path), code=checkout)
    assert refused.returncode == 2
    assert re.search(rf"gptline: [0-9a-f]{{12}} here, {versions.code_digest()} on the head", refused.stderr)


@pytest.mark.parametrize("name", ["python", "ray", "torch", "deepspeed"])
def test_skew_names_both_versions(name: str) -> None:
    [line] = versions.skew(versions.ours(), versions.ours() | {name: "9.9.9"})
    assert line == f"{name}: {versions.ours()[name]} here, 9.9.9 on the head"


def test_join_refuses_a_node_that_sees_an_older_state_of_the_work_directory(head: Path, tmp_path: Path) -> None:
    work = head.parent / "work"
    aside = (work / "stamps").rename(tmp_path / "aside")
    try:
        refused = gptline("join", *joining(head, tmp_path))
    finally:
        aside.rename(work / "stamps")
    assert refused.returncode == 1 and "an older state of this one" in refused.stderr and str(work) in refused.stderr


def test_a_site_belongs_to_one_host_and_a_head_on_loopback_cannot_be_joined(head: Path, tmp_path: Path) -> None:
    theirs = json.loads((head / "settings.json").read_text()) | {"node": "another-host"}
    (tmp_path / "settings.json").write_text(json.dumps(theirs))
    for command in (["up"], ["down"], ["serve", "head"]):
        refused = gptline(*command, "--site", str(tmp_path))
        assert refused.returncode == 2 and "is that of host another-host" in refused.stderr
    refused = gptline("join", "127.0.0.1", "--site", str(tmp_path / "site"))
    assert refused.returncode == 2 and "make up HOST=address on the head" in refused.stderr


def test_status_shows_the_site(head: Path) -> None:
    state = json.loads(done("status", "--json", "--recipe", "tiny", "--set", f"execution.site={head}"))["site"]
    assert {one["service"]: one["state"] for one in state["services"]} == {"ray": "answers", "mlflow": "answers"}
    assert 1.0 in [node["cpus"] for node in state["nodes"] if node["head"]]
    said = done("status", "--recipe", "tiny", "--set", f"execution.site={head}")
    assert re.search(r"node +\S+ 127.0.0.2 ALIVE \(head\): 1 CPUs", said) and "disk" in said


def test_systemd_takes_the_units(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not here")
    for unit in sorted((running.ROOT / "cluster" / "systemd").glob("*.service")):
        command = tmp_path / ".venv" / "bin" / "gptline"
        command.parent.mkdir(parents=True, exist_ok=True)
        command.touch(mode=0o755)
        here = tmp_path / unit.name
        here.write_text(unit.read_text().replace("/opt/gptline", str(tmp_path)))
        checked = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", str(here)], capture_output=True, text=True, check=False
        )
        assert checked.returncode == 0 and not checked.stderr, checked.stderr
        assert f"gptline serve {unit.stem.removeprefix('gptline-')} --site" in unit.read_text()
