"""What KubeRay's custom resources allow: exactly the fields that our manifests use, strictly.

KubeRay's own schema (a CRD of 900 KB) is in no package that can be installed, so these models were written from its
documented API (KubeRay 1.6, "KubeRay CRD API reference" of Ray's documentation). A field that is not here is refused:
who adds one to a manifest looks it up there and adds it here. Pod templates are Kubernetes' own, and checked as such.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Metadata(_Strict):
    name: str | None = Field(None, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=50)
    generateName: str | None = Field(None, pattern=r"^[a-z0-9]([-a-z0-9]*)$", max_length=45)
    namespace: str
    labels: dict[str, str] = {}


class AuthOptions(_Strict):
    mode: Literal["disabled", "token"]
    secretName: str


class HeadGroup(_Strict):
    serviceType: Literal["ClusterIP", "NodePort", "LoadBalancer"]
    rayStartParams: dict[str, str]  # strings, numbers too: KubeRay refuses others
    template: dict[str, Any]


class WorkerGroup(_Strict):
    groupName: str
    replicas: int = Field(ge=0)
    minReplicas: int = Field(ge=0)
    maxReplicas: int = Field(ge=0)
    rayStartParams: dict[str, str]
    template: dict[str, Any]


class RayClusterSpec(_Strict):
    rayVersion: str
    authOptions: AuthOptions
    headGroupSpec: HeadGroup
    workerGroupSpecs: list[WorkerGroup]


class RayCluster(_Strict):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayCluster"]
    metadata: Metadata
    spec: RayClusterSpec


class RayJobSpec(_Strict):
    """With `clusterSelector` KubeRay allows neither `suspend` nor a cluster of the job's own."""

    clusterSelector: dict[Literal["ray.io/cluster"], str]
    submissionMode: Literal["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]
    entrypoint: str
    runtimeEnvYAML: str


class RayJob(_Strict):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: Metadata
    spec: RayJobSpec


KINDS: dict[str, type[RayCluster] | type[RayJob]] = {"RayCluster": RayCluster, "RayJob": RayJob}
