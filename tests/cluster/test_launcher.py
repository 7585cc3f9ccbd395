"""The files of Ray's cluster launcher: valid by Ray's own schema and preparation, and starting our services."""

from __future__ import annotations

import copy
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[2]
FILES = ["ray-cluster.yaml", "ray-cluster-aws.yaml"]


def prepared(name: str) -> dict[str, Any]:
    """A file as `ray up` takes it, before it talks to anybody."""
    config = yaml.safe_load((ROOT / "cluster" / name).read_text())
    return prepare_config(copy.deepcopy(config))


@pytest.mark.parametrize("name", FILES)
def test_ray_takes_the_file(name: str) -> None:
    config = prepared(name)
    validate_config(config)
    assert config["head_node_type"] in config["available_node_types"]


@pytest.mark.parametrize("name", FILES)
def test_ray_refuses_a_typing_error(name: str) -> None:
    config = prepared(name)
    config["hed_start_ray_commands"] = config.pop("head_start_ray_commands")
    with pytest.raises(Exception, match="hed_start_ray_commands"):
        validate_config(config)


@pytest.mark.parametrize("name", FILES)
def test_every_node_is_started_by_our_own_targets_with_a_token_that_only_its_user_reads(name: str) -> None:
    config = prepared(name)
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    given = [*config["setup_commands"], *config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
    called = {target for command in given for target in re.findall(r"\bmake ([a-z]+)", command)}
    assert called == {"setup", "up", "join"} and called <= targets, called - targets
    assert not [command for command in given if re.search(r"\bray (start|stop)\b", command)]
    assert list(config["file_mounts"]) == ["~/gptline-site/token"]
    assert "chmod 700 ~/gptline-site && chmod 600 ~/gptline-site/token" in config["setup_commands"]


@pytest.mark.parametrize("name", FILES)
def test_every_command_is_one_that_a_shell_understands(name: str) -> None:
    config = prepared(name)
    for key in ("initialization_commands", "setup_commands", "head_start_ray_commands", "worker_start_ray_commands"):
        for command in config[key]:
            done = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{command}: {done.stderr}"
