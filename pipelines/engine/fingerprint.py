"""Identity: the same meaning always gives the same SHA-256, on any machine and in any Python.

The one idea: identity says *what*, never *where*. A value is encoded as canonical JSON (sorted keys, no
spaces, UTF-8) and hashed. What has no stable encoding is refused with the place where it stands; nothing
falls back to `str()` or `repr()`, which would smuggle addresses, paths and dictionary order into identities.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any


class NotCanonical(TypeError):
    """A value that has no stable encoding. The message names the place in the value and the type seen."""


def canonical(value: Any) -> bytes:
    """`value` as canonical JSON. Only None, bool, int, finite float, str, list, tuple and str-keyed mappings."""
    return json.dumps(_checked(value, "$"), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def digest(value: Any) -> str:
    """The SHA-256, in hex, of `value` as canonical JSON."""
    return hashlib.sha256(canonical(value)).hexdigest()


def _checked(value: Any, where: str) -> Any:
    """`value` with tuples as lists and -0.0 as 0.0; NotCanonical names what cannot be encoded."""
    # Exact types: a subclass (an IntEnum, a numpy scalar, a str with state) may print differently tomorrow.
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        if not math.isfinite(value):
            raise NotCanonical(f"{where}: {value} has no place in an identity; use a finite number or None")
        # 1.0 and 1 are one number; JSON would give them two spellings.
        return int(value) if value.is_integer() and abs(value) < 2**53 else value
    if type(value) in (list, tuple):
        return [_checked(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, Mapping):
        for key in value:
            if type(key) is not str:
                raise NotCanonical(f"{where}: key {key!r} is a {type(key).__name__}; only str keys have one spelling")
        return {key: _checked(item, f"{where}.{key}") for key, item in value.items()}
    raise NotCanonical(f"{where}: a {type(value).__name__} has no stable encoding; pass str, int, float, list or dict")
