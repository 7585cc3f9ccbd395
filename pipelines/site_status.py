"""How a site stands: its services, the cluster's nodes and jobs, who is at work on which step, room on the disks.

The one idea: a look, and a quick one: files, process ids and a few requests over http that wait for seconds at most.
What cannot be asked is said to be unknown; nothing is guessed.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cluster import site as sites
from cluster.site import MlflowService, RayService
from pipelines import site_files, site_health
from pipelines.engine import lease as leases

_SECONDS = 3.0  # for the dashboard to answer in


def describe(folder: Path, work: Path) -> dict[str, Any]:
    """The site in this folder as plain data; `work` is the work directory whose leases are listed."""
    found = sites.read(folder)
    asked = site_files.settings(found.folder)
    state: dict[str, Any] = {"site": str(found.folder), "role": asked.role, "services": list(_services(found))}
    ray = found.ray if found.ray and found.ray.process.alive() else None
    state["nodes"], state["jobs"] = _cluster(ray) if ray and ray.dashboard else ([], [])
    state["leases"] = [{"step": name, "owner": str(owner)} for name, owner in _leases(work).items()]
    places = {"site": found.folder, "work": work, "registry": Path(asked.registry)}
    state["disk"] = [_disk(name, path) for name, path in places.items() if path.exists()]
    return state


def _services(found: sites.Site) -> Iterator[dict[str, Any]]:
    for name, service in (("ray", found.ray), ("mlflow", found.mlflow)):
        if service is None:
            continue
        yield {"service": name, "address": service.address, "state": _state(service), "log": service.log}


def _state(service: RayService | MlflowService) -> str:
    if not service.process.alive():
        return f"its process {service.process.pid} is gone"
    try:
        if isinstance(service, MlflowService):
            answers = site_health.mlflow_answers(service)
        elif service.role == "worker":
            return "runs"
        else:
            answers = site_health.head_answers(service)
    except site_health.Open as error:
        return f"IS OPEN, end it (make down): {error}"
    return "answers" if answers else "does not answer"


def _cluster(ray: RayService) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The nodes and the jobs that the head knows of; nothing if it does not answer."""
    try:
        summary = site_health.dashboard(ray, "/nodes?view=summary", seconds=_SECONDS)["data"]
        jobs = site_health.dashboard(ray, "/api/jobs/", seconds=_SECONDS)
    except (OSError, ValueError, KeyError):
        return [], []
    used = summary.get("nodeLogicalResources", {})
    return [_node(node, used) for node in summary["summary"]], [_job(job) for job in jobs]


def _node(node: Mapping[str, Any], used: Mapping[str, str]) -> dict[str, Any]:
    raylet = node["raylet"]
    total = raylet.get("resourcesTotal", {})
    return {
        "node": node.get("hostname"),
        "address": node.get("ip") or raylet.get("nodeManagerAddress"),
        "state": raylet.get("state"),
        "head": bool(raylet.get("isHeadNode")),
        "cpus": total.get("CPU", 0.0),
        "gpus": total.get("GPU", 0.0),
        "memory": total.get("memory", 0.0),
        "used": used.get(raylet.get("nodeId", ""), "").strip(),
    }


def _job(job: Mapping[str, Any]) -> dict[str, Any]:
    names = ("submission_id", "job_id", "type", "status", "message", "start_time")
    return {name: job.get(name) for name in names}


def _leases(work: Path) -> dict[str, leases.Owner]:
    """Who holds the lease of which step, of all recipes in this work directory."""
    owners = {path.name: leases.current_owner(path) for path in sorted((work / "steps").glob("*"))}
    return {name: owner for name, owner in owners.items() if owner is not None}


def _disk(name: str, path: Path) -> dict[str, Any]:
    usage = shutil.disk_usage(path)
    return {"what": name, "path": str(path), "free": usage.free, "total": usage.total}


def lines(state: Mapping[str, Any]) -> Iterator[str]:
    """The same for people."""
    yield f"site {state['site']} ({state['role']})"
    for one in state["services"] or []:
        yield f"  {one['service']:<7} {one['address']} {one['state']}; log {one['log']}"
    if not state["services"]:
        yield "  nothing runs here"
    for node in state["nodes"]:
        room = f"{node['cpus']:.0f} CPUs, {node['gpus']:.0f} GPUs, {node['memory'] / 1e9:.1f} GB"
        used = f"; in use: {' '.join(node['used'].split())}" if node["used"] else ""
        yield f"  node    {node['node']} {node['address']} {node['state']}{' (head)' if node['head'] else ''}: {room}{used}"
    for job in state["jobs"]:
        if job["type"] == "SUBMISSION" or job["status"] == "RUNNING":
            yield f"  job     {job['submission_id'] or job['job_id']} {job['status']}"
    for held in state["leases"]:
        yield f"  lease   {held['step']}: {held['owner']}"
    for disk in state["disk"]:
        yield f"  disk    {disk['what']} {disk['path']}: {disk['free'] / 1e9:.0f} of {disk['total'] / 1e9:.0f} GB free"
