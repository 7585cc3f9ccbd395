"""The house rules that a reader relies on: import arrows, one place for durable writes, light planning, true README."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("pipelines", "model", "cluster")
HEAVY = ("torch", "ray", "mlflow", "transformers", "datasets")
SOURCES = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
# model's files that `pipelines` may import: they are torch-free
TORCH_FREE = {"model.durable", "model.config", "model.token_shards", "model.examples"}
MLFLOW_FILES = {"pipelines/tracking.py", "pipelines/registry.py", "pipelines/pyfunc_entry.py"}


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports anywhere, `from model import durable` as `model.durable`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path: Path) -> None:
    name, room = str(path.relative_to(ROOT)), path.relative_to(ROOT).parts[0]
    for module in imports(path):
        top = module.split(".")[0]
        if room in ("model", "cluster"):
            assert top not in set(ROOMS) - {room}, f"{name} imports {module}"
        if room == "pipelines" and module.startswith("model."):
            assert any(module == allowed or module.startswith(allowed + ".") for allowed in TORCH_FREE), (
                f"{name} imports {module}"
            )
        if top == "ray":
            assert room == "cluster", f"{name} imports ray"
        if top == "mlflow":
            assert name in MLFLOW_FILES, f"{name} imports mlflow"
        if top in ("torch", "deepspeed"):
            assert room == "model" or name == "pipelines/pyfunc_entry.py", f"{name} imports {module}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_durable_renames_links_and_fsyncs(path: Path) -> None:
    if path.name in ("durable.py", "pyfunc_entry.py"):
        return
    forbidden = {"rename", "replace", "link", "symlink", "fsync", "hardlink_to", "symlink_to"}
    for node in ast.walk(ast.parse(path.read_text())):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and isinstance(node.func.value, ast.Name)
        ):
            assert not (node.func.value.id == "os" and node.func.attr in forbidden), f"{path}:{node.lineno}"
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in ("write_text", "write_bytes")
        ):
            assert isinstance(node.func.value, ast.Name) and node.func.value.id == "durable", (
                f"{path}:{node.lineno} writes a file itself"
            )


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_says_what_it_is(path: Path) -> None:
    text = path.read_text()
    assert not text.strip() or ast.get_docstring(ast.parse(text)), f"{path} has no module docstring"
    assert text.count("\n") <= 350, f"{path} has {text.count(chr(10))} lines: find the second concept in it"


PROBE = """
import sys
sys.argv = ["gptline", *{arguments!r}]
from pipelines.__main__ import main
try:
    main()
except SystemExit:
    pass
print("LOADED", sorted(set({heavy!r}) & set(sys.modules)), file=sys.stderr)
"""


@pytest.mark.parametrize(
    "arguments", [["--help"], ["plan", "--recipe", "tiny"], ["status", "--recipe", "tiny", "--json"]], ids=" ".join
)
def test_looking_imports_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    extra = [] if arguments == ["--help"] else ["--work", str(tmp_path / "work")]
    probe = PROBE.format(arguments=[*arguments, *extra], heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "LOADED []" in done.stderr, done.stderr


def test_every_make_target_is_phony_and_has_help() -> None:
    text = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z][a-z-]*):", text, re.M))
    phony = set(" ".join(re.findall(r"^\.PHONY: (.*)$", text, re.M)).split())
    helped = set(re.findall(r"^([a-z][a-z-]*):.*## ", text, re.M))
    assert targets == phony == helped


def test_the_readme_names_only_targets_and_files_that_exist() -> None:
    readme = (ROOT / "README.md").read_text()
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.M))
    named = set(re.findall(r"^\s*make ([a-z]+)", readme, re.M)) | set(re.findall(r"`make ([a-z]+)", readme))
    assert named and named <= targets, named - targets
    tree = readme.split("<!-- tree -->")[1]
    listed = re.findall(r"^ *([\w./-]+\.(?:py|toml|txt|md)|[\w.-]+/)", tree, re.M)
    folders: list[str] = []
    for line in tree.splitlines():
        match = re.match(r"^( *)([\w.-]+/?)(?:,| |$)", line)
        if not match or match[2] not in listed:
            continue
        depth = len(match[1]) // 4
        folders = folders[: depth - 1] if depth else []
        path = "".join([*folders, match[2]])
        assert (ROOT / path).exists() or path in ("work/", "registry/", ".venv/"), (
            f"README names {path}, which is not there"
        )
        if match[2].endswith("/"):
            folders.append(match[2])
