"""The manifests for Kubernetes: valid by Kubernetes' own schemas, unprivileged, and with no secret in them."""

from __future__ import annotations

import copy
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from pydantic import ValidationError
from typer.main import get_command

from pipelines import options
from pipelines.__main__ import app
from pipelines.submission import TO_LEAVE
from tests.cluster.kuberay import KINDS

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "cluster" / "kuberay"
OLDEST, NEWEST = "1.31", "1.37"  # of Kubernetes


def documents() -> dict[str, dict[str, Any]]:
    """Each object of the manifests by "file kind"."""
    found = {}
    for path in sorted(FOLDER.glob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text()):
            found[f"{path.name} {document['kind']}"] = document
    return found


DOCUMENTS = documents()
PODS = ["head", "worker", "submitter", "cleaner"]
CRON_JOBS = ["schedule.yaml CronJob", "cleaning.yaml CronJob"]


def pod(name: str) -> dict[str, Any]:
    """The template of a pod."""
    cluster, schedule = DOCUMENTS["cluster.yaml RayCluster"]["spec"], DOCUMENTS["schedule.yaml CronJob"]["spec"]
    return {
        "head": cluster["headGroupSpec"]["template"],
        "worker": cluster["workerGroupSpecs"][0]["template"],
        "submitter": schedule["jobTemplate"]["spec"]["template"],
        "cleaner": DOCUMENTS["cleaning.yaml CronJob"]["spec"]["jobTemplate"]["spec"]["template"],
    }[name]


def check(document: dict[str, Any]) -> None:
    """Raise where an object is none of its kind."""
    kind = document["kind"]
    if kind in KINDS:
        KINDS[kind].model_validate(document)
    elif kind != "Kustomization":
        for version in (OLDEST, NEWEST):
            kubernetes_validate.validate(document, version, strict=True)


def check_template(template: dict[str, Any]) -> None:
    check({"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": template})


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_manifest_is_valid(name: str) -> None:
    check(DOCUMENTS[name])


@pytest.mark.parametrize("name", PODS)
def test_every_pod_is_valid(name: str) -> None:
    check_template(pod(name))


def spoiled() -> Iterator[tuple[str, dict[str, Any]]]:
    """Manifests with a typing error each."""
    for name, path, value in [
        ("schedule.yaml CronJob", "spec.concurrencyPolcy", "Forbid"),
        ("schedule.yaml CronJob", "spec.concurrencyPolicy", 1),
        ("storage.yaml PersistentVolumeClaim", "spec.accessModes", "ReadWriteMany"),
        ("cluster.yaml RayCluster", "spec.headGroupSpec.rayStartParams.num-cpus", 0),
        ("cluster.yaml RayCluster", "spec.authOption", {"mode": "token"}),
        ("job.yaml RayJob", "spec.entryPoint", "true"),
    ]:
        document = copy.deepcopy(DOCUMENTS[name])
        *parents, leaf = path.split(".")
        node = document
        for parent in parents:
            node = node[parent]
        node[leaf] = value
        yield f"{path}={value}", document


@pytest.mark.parametrize("document", [pytest.param(found, id=name) for name, found in spoiled()])
def test_a_typing_error_is_found(document: dict[str, Any]) -> None:
    with pytest.raises((kubernetes_validate.ValidationError, ValidationError)):
        check(document)


@pytest.mark.parametrize("name", PODS)
def test_every_pod_is_unprivileged_has_bounds_and_no_right_on_the_cluster(name: str) -> None:
    spec = pod(name)["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True and spec["securityContext"]["runAsUser"] > 0
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in spec["containers"]:
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert container["resources"]["limits"]["memory"] and container["resources"]["requests"]["cpu"]
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in spec["volumes"]}


def test_no_secret_is_in_a_manifest() -> None:
    assert not [name for name in DOCUMENTS if name.endswith(" Secret")]
    for name in PODS:
        for variable in pod(name)["spec"]["containers"][0].get("env", []):
            secret = re.search("PASSWORD|TOKEN|USERNAME|KEY", variable["name"])
            assert ("valueFrom" in variable) == bool(secret), variable


@pytest.mark.parametrize("name", CRON_JOBS)
def test_what_is_scheduled_does_not_overlap_and_keeps_a_bounded_history(name: str) -> None:
    spec = DOCUMENTS[name]["spec"]
    assert spec["concurrencyPolicy"] == "Forbid" and spec["startingDeadlineSeconds"] > 10
    assert spec["successfulJobsHistoryLimit"] and spec["failedJobsHistoryLimit"]
    rules = spec["jobTemplate"]["spec"]["podFailurePolicy"]["rules"]
    assert rules[0]["action"] == "FailJob" and rules[0]["onExitCodes"]["values"] == [2, 3]
    container = spec["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]
    assert rules[0]["onExitCodes"]["containerName"] == container["name"]


def test_who_is_no_pod_of_the_cluster_reaches_the_dashboard_at_most() -> None:
    policy = DOCUMENTS["network.yaml NetworkPolicy"]["spec"]
    inside, others = policy["ingress"]
    assert inside["from"] == [{"podSelector": policy["podSelector"]}]
    assert [port["port"] for port in others["ports"]] == [8265]
    assert all("podSelector" in peer for peer in others["from"])
    label = policy["ingress"][1]["from"][0]["podSelector"]["matchLabels"].items()
    assert label <= pod("submitter")["metadata"]["labels"].items()
    assert DOCUMENTS["cluster.yaml RayCluster"]["spec"]["headGroupSpec"]["serviceType"] == "ClusterIP"


def test_ray_is_the_version_that_is_installed_with_the_project() -> None:
    pinned = re.search(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M)
    assert pinned and DOCUMENTS["cluster.yaml RayCluster"]["spec"]["rayVersion"] == pinned[1]


def test_the_commands_in_the_manifests_are_ours_and_say_the_same() -> None:
    entrypoint = DOCUMENTS["job.yaml RayJob"]["spec"]["entrypoint"]
    words = shlex.split(entrypoint.partition("&& exec ")[2])
    assert words[:5] == ["python", "-m", "pipelines", "run", "--submitted"]
    run = {f"{option}={value}" for option, value in zip(words[5::2], words[6::2], strict=True)}
    container = pod("submitter")["spec"]["containers"][0]
    assert container["command"] == ["python", "-m", "pipelines", "submit"]
    assert run == {
        word
        for word in container["args"]
        if not word.startswith(("--dashboard", "--token-file", "--retrain", "--set=execution.alert_command="))
    }
    recipe, execution = options.configured("default", "work", [word[6:] for word in run if word.startswith("--set")])
    assert recipe.name == "default" and execution.cache == "/data/cache"
    environment = yaml.safe_load(DOCUMENTS["job.yaml RayJob"]["spec"]["runtimeEnvYAML"])["env_vars"]
    promised = int(execution.grace_seconds) + 1 + TO_LEAVE
    assert environment == {"RAY_JOB_STOP_WAIT_TIME_S": str(promised)}
    assert all(pod(name)["spec"]["terminationGracePeriodSeconds"] >= promised for name in ("head", "worker"))


def test_the_volume_is_cleaned_where_the_runs_work_and_by_what_their_registry_says() -> None:
    container, words = pod("cleaner")["spec"]["containers"][0], pod("submitter")["spec"]["containers"][0]["args"]
    *start, command = container["command"]
    assert start == ["python", "-m", "pipelines"]
    given = get_command(app).get_command(None, command).make_context(command, list(container["args"])).params  # type: ignore[attr-defined]
    assert given["yes"] and given["if_idle"] and not given["registry"]
    assert f"--work={given['work']}" in words and all(f"--set={pair}" in words for pair in given["settings"])
    assert given["settings"][0].startswith("execution.registry=")
    head = pod("head")["spec"]
    assert (
        container["image"] == head["containers"][0]["image"] and head["volumes"][0] in pod("cleaner")["spec"]["volumes"]
    )


def test_every_file_is_in_the_kustomization_but_the_one_that_runs_once() -> None:
    listed = set(DOCUMENTS["kustomization.yaml Kustomization"]["resources"])
    assert listed == {path.name for path in FOLDER.glob("*.yaml")} - {"kustomization.yaml", "job.yaml"}


def test_the_image_copies_what_the_project_is_made_of_and_runs_unprivileged() -> None:
    lines = (FOLDER / "Dockerfile").read_text().replace("\\\n", "").splitlines()
    instructions = [line for line in lines if line and not line.startswith("#")]
    copied = [word for line in instructions if line.startswith("COPY") for word in line.split()[1:-1]]
    assert copied and all((ROOT / name).exists() for name in copied)
    allowed = (FOLDER / "Dockerfile.dockerignore").read_text()
    assert all(f"\n!{name}\n" in allowed for name in copied)
    packages = re.search(r"packages = (\[.*\])", (ROOT / "pyproject.toml").read_text())
    made = next(line for line in instructions if "mkdir" in line).partition("&&")[0].split()
    assert packages and {name.replace(".", "/") for name in eval(packages[1])} <= set(made)
    users = [line.split()[1] for line in instructions if line.startswith("USER")]
    assert users[-1:] == ["1000:1000"]


def test_kubectl_reads_the_kustomization() -> None:
    try:
        done = subprocess.run(["kubectl", "kustomize", FOLDER], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("no kubectl here")
    assert done.returncode == 0, done.stderr
    assert [document["kind"] for document in yaml.safe_load_all(done.stdout)].count("CronJob") == 2
