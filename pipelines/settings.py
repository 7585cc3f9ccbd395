"""Settings from the command line onto a configuration: dotted fields, parsed by the fields' own types.

The one idea: what somebody typed is refused in their terms: the field's path, what was seen, what to write instead.
"""

from __future__ import annotations

import json
from typing import Any

from pydantic import ValidationError

from model.config import Config
from pipelines.config import ConfigError


def override(config: Config, settings: dict[str, str]) -> Any:
    """`config` with dotted fields replaced, each text parsed by the field's own type. ConfigError names the field.

    "none" and "true"/"false" are spelled as in JSON or Python; what is not JSON, or where a string is asked for, is
    taken as a string.
    """
    tree = _tree(config)
    for path, text in settings.items():
        _put(tree, path, _value(text), f"--set {path}={text}: {type(config).__name__}")
    for path in _strings(type(config), tree) & set(settings):
        _put(tree, path, settings[path], path)
    return validated(type(config), tree, f"--set {' '.join(f'{path}={text}' for path, text in settings.items())}")


def _tree(value: Any) -> Any:
    """A configuration as JSON values with all of its fields: a dump leaves out those that came later and say nothing."""
    if isinstance(value, Config):
        return {name: _tree(getattr(value, name)) for name in type(value).model_fields}
    if isinstance(value, dict):
        return {name: _tree(part) for name, part in value.items()}
    return [_tree(part) for part in value] if isinstance(value, list | tuple) else value


def _put(tree: dict[str, Any], path: str, value: Any, origin: str) -> None:
    """Set the field at a dotted path; ConfigError says at which name the path leaves the tree."""
    *parents, leaf = path.split(".")
    node: Any = tree
    for depth, key in enumerate([*parents, leaf]):
        if not isinstance(node, dict) or key not in node:
            known = ", ".join(sorted(node)) if isinstance(node, dict) else "none"
            raise ConfigError(f"{origin} has no field {'.'.join([*parents, leaf][: depth + 1])!r}; known here: {known}")
        if depth < len(parents):
            node = node[key]
    node[leaf] = value


def _strings(kind: type[Config], tree: Any) -> set[str]:
    """The dotted paths at which `tree` has something else and a string is asked for: 2024 may be a name."""
    try:
        kind.model_validate_json(json.dumps(tree))
    except ValidationError as error:
        wrong = [problem for problem in error.errors() if problem["type"] == "string_type"]
        return {".".join(map(str, problem["loc"])) for problem in wrong if problem["input"] is not None}
    return set()


def _value(text: str) -> Any:
    try:
        return json.loads({"none": "null", "None": "null", "True": "true", "False": "false"}.get(text, text))
    except ValueError:
        return text


def validated(kind: type[Config], tree: Any, origin: str) -> Any:
    """`tree` as a `kind`. ConfigError lists each wrong field: its path, what was seen, what is expected."""
    try:
        return kind.model_validate_json(json.dumps(tree))
    except ValidationError as error:
        raise ConfigError(explain(error, origin)) from None


def explain(error: ValidationError, origin: str) -> str:
    """A validation error in one line a field: path, what was seen, what to write instead."""
    lines = []
    for problem in error.errors():
        path = ".".join(str(part) for part in problem["loc"]) or "(the whole)"
        seen = "" if problem["type"] in ("missing", "value_error") else f" (seen: {problem['input']!r})"
        advice = (
            "unknown field; remove it or fix its spelling" if problem["type"] == "extra_forbidden" else problem["msg"]
        )
        lines.append(f"  {path}: {advice.removeprefix('Value error, ')}{seen}")
    return f"{origin} is not valid:\n" + "\n".join(lines)
