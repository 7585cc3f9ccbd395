"""What has to be the same on all nodes of a cluster: Python, the libraries that talk to each other, and this code.

The one idea: this code's version is a digest of its files, not a number that somebody forgets to raise.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path

from model import durable
from pipelines.engine.fingerprint import digest

_LIBRARIES = ("ray", "torch", "deepspeed")
_ROOMS = ("pipelines", "model", "cluster")


def ours() -> dict[str, str]:
    """The versions on this node as they are now, by name; in milliseconds, without importing any of them."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found | {"gptline": code_digest()}


def code_digest() -> str:
    """The digest of this package's source files, short."""
    root = Path(__file__).parents[1]
    files = sorted(path for room in _ROOMS for path in (root / room).rglob("*.py"))
    return digest([[str(path.relative_to(root)), durable.sha256(path)] for path in files])[:12]


def skew(here: Mapping[str, str], there: Mapping[str, str]) -> Iterator[str]:
    """Each difference, with both versions."""
    for name in sorted({*here, *there}):
        if here.get(name) != there.get(name):
            yield f"{name}: {here.get(name, 'unknown')} here, {there.get(name, 'unknown')} on the head"
