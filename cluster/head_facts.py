"""What a head tells the nodes that want to join it: its versions, and the stamp of its work directory.

    python -m cluster.head_facts publish|read|nodes HOST:PORT     (JSON on standard input / output; RAY_AUTH_* in the environment)

The one idea: it is asked by a process of its own, before anything is started: Ray's client waits for a head that is
not there for most of a minute, and cannot be interrupted.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

_KEY, _SPACE = b"head", b"gptline"
_ALIVE = 0  # of Ray's GcsNodeInfo.state
_REFUSED, _NOTHING = 10, 11  # exit codes of the process


class HeadAway(ConnectionError):
    """No head answers there, or it has not yet said what it is."""


class TokenRefused(ConnectionError):
    """The head answers, and does not take our token."""


def publish(address: str, facts: Mapping[str, Any], environment: Mapping[str, str]) -> None:
    """Tell the head's control store. HeadAway, TokenRefused."""
    _ask("publish", address, environment, json.dumps(facts))


def read(address: str, environment: Mapping[str, str], seconds: float = 20.0) -> dict[str, Any]:
    """What the head said of itself. HeadAway, TokenRefused."""
    return dict(json.loads(_ask("read", address, environment, "", seconds)))


def nodes(address: str, environment: Mapping[str, str]) -> list[str]:
    """The addresses of the nodes that live, as the head sees it. HeadAway, TokenRefused."""
    return list(json.loads(_ask("nodes", address, environment, "")))


def _ask(what: str, address: str, environment: Mapping[str, str], given: str, seconds: float = 20.0) -> str:
    command = [sys.executable, "-m", "cluster.head_facts", what, address]
    try:
        done = subprocess.run(
            command, input=given, env={**os.environ, **environment}, capture_output=True, text=True, timeout=seconds,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise HeadAway(f"no Ray head answers at {address} within {seconds:.0f} s") from error
    if done.returncode == _REFUSED:
        raise TokenRefused(f"the Ray head at {address} does not take the token in {environment['RAY_AUTH_TOKEN_PATH']}")
    if done.returncode == _NOTHING:
        raise HeadAway(
            f"the Ray head at {address} does not say what it is: it was not started by `make up`, or just now"
        )
    if done.returncode:
        raise HeadAway(f"the Ray head at {address} cannot be asked: {done.stderr.strip()[-300:]}")
    return done.stdout


def _main(what: str, address: str) -> int:
    from ray import _raylet
    from ray.exceptions import AuthenticationError

    try:
        store: Any = getattr(_raylet, "GcsClient")(address=address)  # noqa: B009 (compiled: mypy does not see it)
        if what == "publish":
            store.internal_kv_put(_KEY, sys.stdin.buffer.read(), True, _SPACE)
            return 0
        if what == "nodes":
            known = store.get_all_node_info(timeout=10).values()
            sys.stdout.write(json.dumps([node.node_manager_address for node in known if node.state == _ALIVE]))
            return 0
        found = store.internal_kv_get(_KEY, _SPACE)
    except AuthenticationError:
        return _REFUSED
    if found is None:
        return _NOTHING
    sys.stdout.write(found.decode())
    return 0


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:3]))
