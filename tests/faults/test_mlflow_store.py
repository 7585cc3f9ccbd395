"""The store that cannot be made again: backed up, checked, never taken for empty when damaged, found when moved."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines import registry, store_backup, store_check
from pipelines.config import ConfigError
from pipelines.package import MANIFEST
from pipelines.pull import pull
from pipelines.registry import promote, register
from pipelines.store import StoreDamaged, backups
from pipelines.tracking import Tracker
from tests.faults.mlflow_life import ROOT, write_package
from tests.pipelines.mlflow_views import runs


@pytest.fixture
def kept(store: Path, tmp_path: Path) -> Path:
    """A store with one champion, at home in its folder."""
    folder = tmp_path / "home" / "registry"
    (folder / "artifacts" / "gptline").mkdir(parents=True)
    shutil.copy(store / "mlflow.db", folder / "mlflow.db")
    write_package(tmp_path)
    assert promote(folder, register(folder, "small", tmp_path / "package", {"a": "b"}), [])
    return folder


def gptline(*arguments: str, registry: Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipelines", *arguments, "--set", f"execution.registry={registry}"]
    return subprocess.run(command, cwd=cwd, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def stored(folder: Path) -> Path:
    return Path(registry.resolve(folder, "small@champion").source)


def test_a_backup_put_back_is_the_store(kept: Path, tmp_path: Path) -> None:
    done = gptline("registry-backup", registry=kept)
    assert done.returncode == 0, done.stdout + done.stderr
    (backup,) = backups(kept)
    package = files(stored(kept))
    shutil.rmtree(kept)
    shutil.copytree(backup, kept)
    assert files(stored(kept)) == package
    assert pull(kept, "small@champion", tmp_path / "pulled").digest == json.loads(package[MANIFEST])["digest"]
    assert register(kept, "small", tmp_path / "package", {"a": "b"}).version == 1
    assert gptline("registry-check", registry=kept).returncode == 0


def test_a_backup_shares_files_with_earlier_backups_and_none_with_the_store(kept: Path) -> None:
    database = kept / "mlflow.db"
    made = [store_backup.back_up(database, None, keep=2) for _ in range(3)]
    assert backups(kept) == [made[1].folder, made[2].folder]
    assert made[0].shared == 0 and made[2].shared == made[1].shared == made[2].files - 1
    weights = next(made[2].folder.rglob("model.safetensors"))
    assert weights.stat().st_nlink == 2
    assert (stored(kept) / "model.safetensors").stat().st_nlink == 1
    weights.write_bytes(b"rotten")  # an earlier backup's damage is not inherited
    fresh = store_backup.back_up(database, None, keep=3)
    assert fresh.shared == fresh.files - 2 and not fresh.report.damaged
    assert not list(fresh.folder.parent.glob(".*"))


def test_a_backup_with_damage_pushes_no_good_one_out(kept: Path) -> None:
    good = store_backup.back_up(kept / "mlflow.db", None, keep=1)
    (stored(kept) / "config.json").write_text('{"a": 1}')
    done = gptline("registry-backup", "--keep", "1", registry=kept)
    assert done.returncode == 3
    assert "config.json" in done.stdout and "earlier ones were kept" in done.stdout
    assert good.folder in backups(kept) and len(backups(kept)) == 2


def test_a_backup_killed_at_any_rename_or_link_leaves_none_and_the_next_sweeps(kept: Path) -> None:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    store_backup.back_up(kept / "mlflow.db", None, keep=9)
    place = backups(kept)[0].parent
    for call, number in (("rename", 1), ("rename", 2), ("link", 1), ("link", 5), ("fsync", 3)):
        before = backups(kept)
        inject = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"inject={call}:signal=KILL:when={number}"]
        command = [sys.executable, "-B", "-m", "pipelines", "registry-backup", "--set", f"execution.registry={kept}"]
        done = subprocess.run([*inject, *command], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False)
        assert done.returncode != 0, (call, number)
        assert backups(kept) == before and list(place.glob(".*")), (call, number)
    assert gptline("registry-backup", registry=kept).returncode == 0
    assert not list(place.glob(".*")) and len(backups(kept)) == 2


def test_a_backup_while_others_write_is_whole(kept: Path, tmp_path: Path) -> None:
    tracker = Tracker(kept, tmp_path / "outbox.json")
    tracker.start_execution("busy", {"name": "tiny"}, {})
    for number in range(40):
        tracker.start_step("s", f"f-busy-{number}", {}, {}).finish("FINISHED", {"n": number})
    made = [store_backup.back_up(kept / "mlflow.db", tmp_path / "kept", keep=9) for _ in range(3)]
    assert tracker.finish_execution("FINISHED") is None
    assert [backup.report.damaged for backup in made] == [[], [], []]


def damaged_weights(folder: Path) -> str:
    path = stored(folder) / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    return "small version 1: .*model.safetensors"


def missing_file(folder: Path) -> str:
    (stored(folder) / "config.json").unlink()
    return "small version 1: .*config.json"


def another_package(folder: Path) -> str:
    path = stored(folder) / MANIFEST
    path.write_text(path.read_text().replace("A test", "B test").replace('"small"', '"other"'))
    return "small version 1: .*MANIFEST.json"


def missing_version(folder: Path) -> str:
    registry.connect(folder).delete_model_version("small", "1")
    registry.connect(folder).create_model_version("small", "/nowhere", tags={registry.DIGEST_TAG: "d"})
    registry.connect(folder).set_registered_model_alias("small", "candidate", "2")
    return "small version 2: .*nowhere"


@pytest.mark.parametrize("harm", [damaged_weights, missing_file, another_package, missing_version])
def test_the_check_names_what_is_damaged(kept: Path, harm: Callable[[Path], str]) -> None:
    assert gptline("registry-check", registry=kept).returncode == 0
    pattern = harm(kept)
    done = gptline("registry-check", "--json", registry=kept)
    assert done.returncode == 3, done.stdout + done.stderr
    found = json.loads(done.stdout)["damaged"]
    assert any(re.search(pattern, line) for line in found), found
    assert "next:" in gptline("registry-check", registry=kept).stdout


def test_the_check_reads_without_mlflow_or_torch(kept: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from pipelines import store_check, store_backup\n"
        f"print(list(store_check.check(Path({str(kept / 'mlflow.db')!r})).lines()))\n"
        f"store_backup.back_up(Path({str(kept / 'mlflow.db')!r}), None, 2)\n"
        "assert not {'mlflow', 'torch', 'ray', 'transformers'} & set(sys.modules), set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def emptied(path: Path) -> None:
    os.truncate(path, 0)


def overwritten(path: Path) -> None:
    path.write_bytes(b"\0" * path.stat().st_size)


def flipped_pages(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[4096:] = bytes(len(data) - 4096)
    path.write_bytes(data)


@pytest.mark.parametrize("harm", [truncated, emptied, overwritten, flipped_pages])
def test_a_damaged_database_is_said_with_the_backup_and_never_filled_anew(
    kept: Path, tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    backup = store_backup.back_up(kept / "mlflow.db", None, keep=3).folder
    harm(kept / "mlflow.db")
    damaged = (kept / "mlflow.db").read_bytes()
    for ask in (
        lambda: registry.resolve(kept, "small@champion"),
        lambda: registry.register(kept, "small", tmp_path / "package", {}),
        lambda: registry.version_exists(kept, "small", 1),
        lambda: registry.ensure_store(kept),
    ):
        with pytest.raises(StoreDamaged, match=f"mlflow.db is damaged .*(?s:.)*{backup}"):
            ask()
    here = ["--recipe", "tiny", "--work", str(tmp_path / "work")]
    for command in (
        ["pull", "small@champion", str(tmp_path / "dest")], ["registry-check"], ["run", *here], ["plan", *here],
    ):  # fmt: skip
        done = gptline(*command, registry=kept)
        assert done.returncode == 3, done.stdout + done.stderr
        assert str(backup) in done.stdout + done.stderr and "Traceback" not in done.stderr
    tracker = Tracker(kept, tmp_path / "outbox.json")
    tracker.start_execution("damaged", {"name": "tiny"}, {})
    problem = tracker.finish_execution("FINISHED", patience=2)
    assert problem is not None and "is damaged" in problem and (tmp_path / "outbox.json").exists()
    assert (kept / "mlflow.db").read_bytes() == damaged
    shutil.copy(backup / "mlflow.db", kept / "mlflow.db")
    assert pull(kept, "small@champion", tmp_path / "dest").fetched
    tracker = Tracker(kept, tmp_path / "outbox.json")
    tracker.start_execution("mended", {"name": "tiny"}, {})
    assert tracker.finish_execution("FINISHED") is None
    assert [run.info.status for run in runs(kept, {"gptline.execution": "damaged"})] == ["FINISHED"]


def test_a_damaged_database_without_a_backup_says_that_there_is_none(kept: Path) -> None:
    truncated(kept / "mlflow.db")
    with pytest.raises(StoreDamaged, match="there is no backup beside"):
        registry.ensure_store(kept)


@pytest.mark.parametrize("original_stays", [False, True])
def test_a_moved_store_finds_its_files_and_keeps_new_ones_beside_it(
    kept: Path, tmp_path: Path, original_stays: bool
) -> None:
    moved = tmp_path / "moved" / "registry"
    shutil.copytree(kept.parent, moved.parent)
    before = files(kept)
    if not original_stays:
        shutil.rmtree(kept.parent)
    assert not store_check.check(moved / "mlflow.db").damaged
    assert pull(moved, "small@champion", tmp_path / "pulled").fetched
    assert stored(moved).is_relative_to(moved)
    (tmp_path / "export" / "config.json").write_text('{"second": true}')
    shutil.rmtree(tmp_path / "package")
    from pipelines.model_card import Card
    from pipelines.package import build_package

    build_package(tmp_path / "export", tmp_path / "package", Card("small", "text-classification", "A test."))
    assert register(moved, "small", tmp_path / "package", {"n": "2"}).source.startswith(str(moved))
    if original_stays:
        assert files(kept) == before, "the copy wrote into the original"
        assert pull(kept, "small@1", tmp_path / "again").fetched
    else:
        assert not kept.exists()


def test_a_store_behind_a_link_is_left_as_it_is(kept: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(kept.parent)
    before = (kept / "mlflow.db").read_bytes()
    assert registry.resolve(tmp_path / "link" / "registry", "small@1").source.startswith(str(kept))
    assert (kept / "mlflow.db").read_bytes() == before


@pytest.mark.parametrize("location", ["http://127.0.0.1:9", "nowhere"])
def test_only_a_store_in_a_folder_is_checked_and_backed_up_here(location: str) -> None:
    with pytest.raises(ConfigError, match=r"execution\.registry="):
        store_check.local_database(location)


def test_a_backup_inside_the_store_is_refused(kept: Path) -> None:
    with pytest.raises(ConfigError, match="inside the store"):
        store_backup.back_up(kept / "mlflow.db", kept / "backups", keep=3)


KILLED_WRITER = """
import os, signal, sqlite3, sys
store = sqlite3.connect(sys.argv[1], isolation_level=None)
store.execute("pragma cache_size = 1")  # pages go to the file before the transaction ends
store.execute("begin")
store.execute("create table big as with recursive n(i) as (select 1 union all select i + 1 from n where i < 2000) select i, hex(randomblob(500)) from n")
store.execute("delete from registered_model_aliases")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_store_whose_writer_was_killed_within_a_transaction_is_read_as_it_was_before(kept: Path) -> None:
    """Planning only reads, and comes first: what it cannot read nobody would ever mend."""
    subprocess.run([sys.executable, "-c", KILLED_WRITER, str(kept / "mlflow.db")], check=False)
    assert (kept / "mlflow.db-journal").stat().st_size > 0
    assert registry.alias_version(kept, "small", "champion") == 1
    assert not (kept / "mlflow.db-journal").exists()


def test_a_store_whose_writer_was_killed_is_backed_up_as_it_was_before(kept: Path) -> None:
    subprocess.run([sys.executable, "-c", KILLED_WRITER, str(kept / "mlflow.db")], check=False)
    done = gptline("registry-backup", registry=kept)
    assert done.returncode == 0, done.stdout + done.stderr
    (backup,) = backups(kept)
    assert registry.alias_version(backup, "small", "champion") == 1
