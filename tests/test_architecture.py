"""The house rules that a reader relies on: import arrows, one place for durable writes, light planning, true README."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import conftest

ROOT = Path(__file__).parents[1]
ROOMS = ("pipelines", "model", "cluster")
HEAVY = ("torch", "ray", "mlflow", "transformers", "datasets")
SOURCES = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
# model's files that `pipelines` may import: they are torch-free
TORCH_FREE = {
    "model.durable",
    "model.config",
    "model.train_config",
    "model.hf_config",
    "model.tuning_config",
    "model.mixture_quotas",
    "model.vocabulary",
    "model.token_shards",
    "model.examples",
    "model.questions",
}
MLFLOW_FILES = {
    f"pipelines/{name}.py" for name in ("store", "mlflow_runs", "mirror", "tracking", "registry", "pyfunc_entry")
}


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


# Who may do what only durable.py does, and why.
DURABLE_ELSEWHERE = {
    "model/durable.py": "it is the one",
    "pipelines/pyfunc_entry.py": "it lives in the package and is run without this project",
}
OS_CALLS = {
    "rename",
    "renames",
    "replace",
    "link",
    "symlink",
    "fsync",
    "fdatasync",
    "truncate",
    "ftruncate",
    "sendfile",
}
OS_CALLS |= {"removedirs", "copy_file_range"}
PATH_CALLS = {"rename", "link_to", "hardlink_to", "symlink_to", "write_text", "write_bytes"}
# A tree that is removed in place is half there for a while, and `copy` writes to the final name.
SHUTIL_CALLS = {"move", "rmtree", "copytree", "copy", "copy2", "copyfile", "copyfileobj"}
# Libraries that write files themselves: to a draft, which durable flushes and names.
WRITERS = {"OSFile", "ParquetWriter", "write_feather", "save_file", "FileWriter", "savez", "to_parquet"}
DRAFTED = {"copyfile", "copyfileobj"} | WRITERS


def own_writes(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """The calls that rename, link, flush or write a file by themselves: line number and what is called."""
    for node in ast.walk(tree):
        yield from _disguised(node)
        if not isinstance(node, ast.Call):
            continue
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        owner = getattr(getattr(node.func, "value", None), "id", "")
        if owner == "durable":
            continue
        positional = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
        named = [
            word.value.value for word in node.keywords if word.arg == "mode" and isinstance(word.value, ast.Constant)
        ]
        modes = [
            value for value in positional + named if isinstance(value, str) and re.fullmatch("[rwxabt+]{1,3}", value)
        ]
        if (
            (owner == "os" and called in OS_CALLS)
            or (isinstance(node.func, ast.Attribute) and owner != "os" and called in PATH_CALLS)
            # Path.replace has one argument, str.replace two, dataclasses.replace named ones.
            or (
                isinstance(node.func, ast.Attribute)
                and called == "replace"
                and len(node.args) == 1
                and not node.keywords
            )
            or (
                (owner == "shutil" or called in WRITERS)
                and called in SHUTIL_CALLS | WRITERS
                and not (called in DRAFTED and "draft" in ast.unparse(node))
            )
            or (called == "open" and any(set(mode) & set("wxa+") for mode in modes))
            or (
                owner == "os"
                and called == "open"
                and re.search("O_(WRONLY|RDWR|CREAT|TRUNC)", ast.unparse(node))
                and not re.search("O_APPEND", ast.unparse(node))  # a log, of which every line is whole
            )
        ):
            yield node.lineno, called


def _disguised(node: ast.AST) -> Iterator[tuple[int, str]]:
    """Names under which the search would not know os and shutil."""
    if isinstance(node, ast.Import):
        found = [alias.name for alias in node.names if alias.name in ("os", "shutil") and alias.asname]
    elif isinstance(node, ast.ImportFrom) and node.module in ("os", "shutil"):
        found = [alias.name for alias in node.names if alias.name in OS_CALLS | SHUTIL_CALLS | {"open", "*"}]
    elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "getattr" and node.args:
        found = [name for name in ("os", "shutil") if getattr(node.args[0], "id", "") == name]
    else:
        return
    yield from ((node.lineno, name) for name in found)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_durable_renames_links_and_writes(path: Path) -> None:
    if str(path.relative_to(ROOT)) not in DURABLE_ELSEWHERE:
        found = [f"{path}:{line} calls {called}" for line, called in own_writes(ast.parse(path.read_text()))]
        assert not found, found


@pytest.mark.parametrize(
    "code",
    ["os.rename(a, b)", "a.rename(b)", "a.replace(b)", "a.symlink_to(b)", "shutil.move(a, b)", "open(a, 'wb')",
     "a.open('a')", "open(a, mode='x')", "a.write_text('x')", "os.fsync(1)", "os.open(a, os.O_WRONLY | os.O_CREAT)",
     "shutil.copyfile(a, b)", "shutil.copytree(a, b)", "shutil.rmtree(a)", "pa.OSFile(a, 'wb')",
     "save_file(tensors, path)", "from os import rename", "from shutil import move", "import os as system",
     "getattr(os, 'rename')(a, b)", "os.truncate(a, 0)"],
)  # fmt: skip
def test_the_search_for_own_writes_finds_them(code: str) -> None:
    assert list(own_writes(ast.parse(code)))


@pytest.mark.parametrize(
    "code",
    [
        "durable.rename(a, b)",
        "a.replace('b', 'c')",
        "dataclasses.replace(a, b=1)",
        "open(a)",
        "open(a, 'rb')",
        "os.open(a, os.O_RDONLY)",
        "shutil.copyfile(a, draft)",
        "pa.OSFile(str(draft), 'wb')",
        "shutil.which('git')",
        "from os import stat",
    ],
)
def test_the_search_for_own_writes_finds_nothing_else(code: str) -> None:
    assert not list(own_writes(ast.parse(code)))


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


def test_the_readmes_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", (ROOT / "README.md").read_text())
    files = [link for link in links if "://" not in link]
    assert files and [link for link in files if not (ROOT / link).exists()] == []


def test_every_promise_of_reliability_names_tests_that_exist() -> None:
    text = (ROOT / "docs/reliability.md").read_text()
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", text)
    assert len(named) > 20
    for file, test in named:
        assert (ROOT / file).is_file(), f"docs/reliability.md names {file}, which is not there"
        assert f"def {test}" in (ROOT / file).read_text(), f"{file} has no {test}"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The Makefile beside a `python` that only says what it was given."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/bash\nprintf '<%s>' \"$@\"\n")
    python.chmod(0o755)
    (tmp_path / ".venv" / ".installed").touch()
    return tmp_path


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", "-s", *arguments], cwd=folder, capture_output=True, text=True, check=False)


def test_make_hands_on_quotes_spaces_and_dollars(checkout: Path) -> None:
    setting = 'shard.sources=[{"path":"/data/my $corpus"}] execution.ranks=1'
    said = make(checkout, "run", f"SET={setting}", "RECIPE=my file.py:f").stdout
    assert said == f"<-m><pipelines><run><--recipe><my file.py:f><--work><work><--set><{setting}>"
    prompt = "\"To be\", 'or' $not `to`"
    assert make(checkout, "generate", f"PROMPT={prompt}").stdout.endswith(f"<--><base@champion><{prompt}>")
    assert "say what to continue" in make(checkout, "generate").stderr
    for empty in ("WORK", "RECIPE"):
        assert f"{empty} is empty; leave it out" in make(checkout, "run", f"{empty}=").stderr
    assert make(checkout, "join", "HEAD=h", "WORKER_PORTS=10002-10099").stdout.endswith(
        "<--worker-ports><10002-10099><--><h>"
    )


def test_make_clean_removes_work_directories_only(checkout: Path) -> None:
    (checkout / "work" / "steps").mkdir(parents=True)
    (checkout / "plain").mkdir()
    (checkout / "steps").mkdir()  # even if the checkout looks like one
    for refused in (".", "..", "plain", "/"):
        assert make(checkout, "clean", f"WORK={refused}").returncode, refused
    assert make(checkout, "clean").returncode == 0
    assert not (checkout / "work").exists() and (checkout / "plain").exists()
    assert make(checkout, "clean").returncode == 0, "nothing there is clean"


def test_git_keeps_no_database_no_weights_and_nothing_large() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip(f"not a git checkout: {listed.stderr.strip()}")
    files = [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]
    assert files
    assert [path for path in files if b"\0" in path.read_bytes() or path.stat().st_size > 200_000] == []


def test_files_that_are_run_together_or_first_are_there() -> None:
    named = {file for files in conftest.TOGETHER.values() for file in files} | set(conftest.LONGEST)
    assert [name for name in named - set(conftest.TOGETHER) if not (ROOT / "tests" / name).is_file()] == []
