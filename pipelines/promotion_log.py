"""The promotion log: who moved `champion`, when, from which version to which, and why. Kept in the registry itself.

The one idea: MLflow keeps no history of aliases and cannot be fenced, so the log is the truth and the alias follows it.
An entry is a tag of the registered model, written once and never changed; its number is one more than the last one's, so
no clock orders them. Whoever moves the alias writes the entry first, points the alias at what the *last* entry says, and
looks again until log and alias agree: of two at once both are in the log, and the alias is that of the last entry.

    gptline.promotion.000007.9f2c41d0 = {"at": ..., "who": user@host, "by": ..., "from": 6, "to": 7, "why": ...}

`by` is "run" (gates alone), "retrain" (a comparison won), "promote" or "rollback" (a person).
"""

from __future__ import annotations

import getpass
import json
import secrets
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines import store
from pipelines.engine.record import now

PREFIX = "gptline.promotion."
CHAMPION = "champion"
_LONGEST_WHY = 2000  # characters; MLflow takes 5000 in a tag


@dataclass(frozen=True)
class Entry:
    """One move of `champion`. `before` and `to` are versions, None for no champion."""

    number: int
    token: str
    at: str
    who: str
    by: str
    before: int | None
    to: int | None
    why: str

    def as_json(self) -> dict[str, Any]:
        """What the tag holds."""
        return {"at": self.at, "who": self.who, "by": self.by, "from": self.before, "to": self.to, "why": self.why}


def entries(tags: Mapping[str, str]) -> list[Entry]:
    """The log in the tags of a registered model, oldest first."""
    found = []
    for key, value in tags.items():
        number, _, token = key.removeprefix(PREFIX).partition(".")
        if key.startswith(PREFIX) and number.isdigit():
            said = json.loads(value)
            found.append(
                Entry(int(number), token, said["at"], said["who"], said["by"], said["from"], said["to"], said["why"])
            )
    return sorted(found, key=lambda entry: (entry.number, entry.token))


@store.names_damage
def read(location: str | Path, name: str) -> list[Entry]:
    """The log of a registered model, oldest first; none if there is no such model. Does not import mlflow.

    ConnectionError if a server cannot be asked.
    """
    uri = store.tracking_uri(location)
    if uri.startswith("http"):
        found = store.ask(uri, "registered-models/get", answer="registered_model", name=name)
        return entries({tag["key"]: tag["value"] for tag in (found or {}).get("tags", [])})
    where = "where name = ? and key like ?"
    return entries(dict(store.select(uri, f"select key, value from registered_model_tags {where}", name, f"{PREFIX}%")))


def move(client: Any, name: str, to: int | None, by: str, why: str) -> None:
    """Point `champion` at version `to`, or take it away, and say so in the log. Nothing where both say so already."""
    at_present, logged = _state(client, name)
    last = logged[-1] if logged else None
    settled = at_present == to and (last is None or last.to == to)
    # A process that was killed between entry and alias left this entry; it is told once.
    half_done = last is not None and (last.to, last.before, last.by) == (to, at_present, by)
    if not settled and not half_done:
        before = last.to if last and at_present == to else at_present
        entry = Entry(
            last.number + 1 if last else 1, secrets.token_hex(4), now(), _who(), by, before, to, why[:_LONGEST_WHY]
        )
        key = f"{PREFIX}{entry.number:06d}.{entry.token}"
        client.set_registered_model_tag(name, key, json.dumps(entry.as_json(), sort_keys=True))
    if not settled:
        _settle(client, name)


def previous(log: list[Entry]) -> int | None:
    """The version that was champion before the present one: a rollback takes back the promotion before it."""
    stack: list[int | None] = [log[0].before] if log else []
    for entry in log:
        if entry.by == "rollback" and entry.to in stack:
            while stack[-1] != entry.to:
                stack.pop()
        elif not stack or stack[-1] != entry.to:
            stack.append(entry.to)
    earlier = [version for version in stack[:-1] if version is not None]
    return earlier[-1] if earlier else None


def _settle(client: Any, name: str) -> None:
    """Make the alias what the last entry says, until nobody has written another one meanwhile."""
    while True:
        at_present, logged = _state(client, name)
        last = logged[-1]
        if at_present == last.to:
            return
        if last.to is None:
            client.delete_registered_model_alias(name, CHAMPION)
        else:
            client.set_registered_model_alias(name, CHAMPION, str(last.to))


def _state(client: Any, name: str) -> tuple[int | None, list[Entry]]:
    model = client.get_registered_model(name)
    alias = dict(model.aliases).get(CHAMPION)
    return (int(alias) if alias else None), entries(dict(model.tags))


def _who() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in containers
        user = "unknown"
    return f"{user}@{socket.gethostname()}"
