"""Which tasks there are: a task is a module in this folder that says its form and prepares its examples.

The one idea: the module is the declaration. `FORM` is one of pipelines/forms, and the keyword parameters of

    prepare(files, validation, test, **options) -> Prepared

are the settings that a recipe may give it, so that a setting that a task does not know is refused when the recipe is read.
`LANGUAGE`, where a module has it, is what the model card says (an option `language` comes first); `METRICS` are those of the table of tasks and the baselines
beside each, where they are not its form's. `VERSION`, 1 without it, is raised when `prepare` makes other examples of the
same data: steps are known by it, not by the code, so the examples are made anew then, and those of no other task.
"""

from __future__ import annotations

import importlib
import inspect
from functools import cache
from pathlib import Path
from types import ModuleType

_KINDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
_GIVEN = ("files", "validation", "test")  # to every task; the others are its options


@cache
def names() -> tuple[str, ...]:
    """The tasks there are: every module of this folder that has a FORM. No module is imported for it."""
    modules = sorted(Path(__file__).parent.glob("*.py"))
    return tuple(path.stem for path in modules if "\nFORM = " in path.read_text())


def of(name: str) -> ModuleType:
    """The module of a task. ValueError lists the tasks there are."""
    if name not in names():
        raise ValueError(f"no task is called {name!r}; there are {', '.join(names())}")
    return importlib.import_module(f"pipelines.tasks.{name}")


def form_of(name: str) -> str:
    """The form of a task: "classification", "response", "dialogue" or "span"."""
    return str(of(name).FORM)


def options_of(name: str) -> list[str]:
    """What a recipe may set of a task beside its data and its splits."""
    return [option for option in inspect.signature(of(name).prepare).parameters if option not in _GIVEN]


def option_misfit(name: str, option: str, value: str | int | float | bool) -> str | None:
    """Why an option cannot have this value, by what it is if nothing is given; None if it can.

    A count is 1 at least, or 0 where that is what it is if nothing is given.
    """
    usual = inspect.signature(of(name).prepare).parameters[option].default
    kind = type(usual)
    if kind is float and type(value) is int:
        return None
    if type(value) is not kind:
        return f"is {value!r}, and it has to be {_KINDS[kind]}, as {usual!r}"
    if kind is int and value < min(1, usual):
        return f"is {value}, and it has to be {min(1, usual)} at least"
    return None
