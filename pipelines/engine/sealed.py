"""JSON that states its own digest, so that a flipped bit in what we write about files is noticed as one in the files.

The one idea: records, unit certificates, leases and the digests cache are believed, so each is checked before it is.
What does not have the digest that it states is `Broken`, whatever the damage: bits, length, or a folder in its place.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model import durable
from pipelines.engine.fingerprint import digest


class Broken(ValueError):
    """A file is not the sealed JSON that was written. The message names it and says what was seen."""


def seal(content: Mapping[str, Any]) -> bytes:
    """`content` as JSON with the digest of itself."""
    return durable.to_json({**content, "digest": digest(content)})


def unseal(path: Path) -> dict[str, Any]:
    """The content that was sealed into `path`. FileNotFoundError if there is nothing, Broken if it is anything else."""
    try:
        content = dict(durable.read_json(path))
        stated, found = content.pop("digest"), digest(content)
    except IsADirectoryError as error:
        raise Broken(f"{path} is damaged (it is a folder)") from error
    except (ValueError, KeyError, TypeError) as error:
        raise Broken(f"{path} is damaged ({error})") from error
    if stated != found:
        raise Broken(f"{path} is damaged: its content does not have the digest that it states")
    return content
