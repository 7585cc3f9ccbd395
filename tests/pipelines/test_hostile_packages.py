"""What comes out of a registry is taken for hostile: refused by name, size and content, and nothing is left of it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipelines import fetching, package, registry
from pipelines.model_versions import ModelVersion
from pipelines.package import MANIFEST
from pipelines.package_rules import EARLIER, ENTRY, PackageDamaged, PackageRefused, refusal
from pipelines.pull import From, PullRefused, pull_from
from pipelines.upload import upload
from tests.mlflow_server import MlflowServer
from tests.pipelines import big_packages

Plant = Callable[[Path, dict[str, Any]], None]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return big_packages.write_package(tmp_path_factory.mktemp("sound"), 1000)


def planted(store: Path, sound: Path, folder: Path, name: str, plant: Plant) -> str:
    """Register a package, and put another one in its place as somebody could who may write to the registry."""
    package_folder = folder / "package"
    shutil.copytree(sound, package_folder)
    version = registry.register(store, name, package_folder, {"gptline.step": name, "gptline.fingerprint": name})
    source = Path(version.source)
    manifest = json.loads((source / MANIFEST).read_text())
    plant(source, manifest)
    for listed in manifest["files"]:
        if (source / listed).is_file() and len(manifest["files"][listed]) == 2:
            data = (source / listed).read_bytes()
            manifest["files"][listed] |= {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    for stated in manifest["files"].values():
        stated.pop("as it is", None)
    manifest["digest"] = package._digest(manifest)
    (source / MANIFEST).write_text(json.dumps(manifest))
    registry.connect(store).set_model_version_tag(name, "1", registry.DIGEST_TAG, manifest["digest"])
    shutil.rmtree(package_folder)
    return f"{name}@1"


def names(*paths: str) -> Plant:
    """List more files, whatever they hold."""

    def plant(source: Path, manifest: dict[str, Any]) -> None:
        for path in paths:
            manifest["files"][path] = {"size": 4, "sha256": hashlib.sha256(b"evil").hexdigest()}
            if "\0" not in path and not path.startswith("/"):
                with contextlib.suppress(OSError):  # what cannot be there may be listed
                    (source / path).parent.mkdir(parents=True, exist_ok=True)
                    (source / path).write_bytes(b"evil")

    return plant


def holds(path: str, data: bytes) -> Plant:
    """A file with this content, listed truthfully."""

    def plant(source: Path, manifest: dict[str, Any]) -> None:
        (source / path).write_bytes(data)
        manifest["files"][path] = {"size": 0, "sha256": "0" * 64}

    return plant


def instead(ours: str, theirs: str) -> Plant:
    """In place of a file of ours one whose name is the same without regard to case."""

    def plant(source: Path, manifest: dict[str, Any]) -> None:
        del manifest["files"][ours]
        names(theirs)(source, manifest)

    return plant


def says(old: str, new: str) -> Plant:
    """An MLmodel in which something else stands."""

    def plant(source: Path, manifest: dict[str, Any]) -> None:
        text = (source / "MLmodel").read_text()
        assert old in text
        (source / "MLmodel").write_text(text.replace(old, new))

    return plant


def states(size: Any) -> Plant:
    """A size of the weights that is no size."""

    def plant(source: Path, manifest: dict[str, Any]) -> None:
        manifest["files"]["model.safetensors"] |= {"size": size, "as it is": True}

    return plant


PICKLE = b"\x80\x04\x95\x1a\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94."
HOSTILE = {
    "a path out of the folder": (names("../evil.txt"), "no plain path"),
    "a path out of a folder in it": (names("a/../../evil.txt"), "no plain path"),
    "an absolute path": (names("/tmp/gptline-evil.txt"), "no plain path"),
    "a backslash": (names("..\\evil.txt"), "no plain path"),
    "a drive": (names("C:evil.txt"), "no plain path"),
    "a zero byte": (names("evil.txt\0.json"), "no plain path"),
    "a hidden file": (names(".bashrc.txt"), "no plain path"),
    "letters that look like others": (names("cоnfig.json"), "no plain path"),  # a Cyrillic o
    "a name of another normal form": (names("cafe\u0301.json"), "no plain path"),
    "names that differ by case": (names("Config.json"), "differ by case only"),
    "a file that is a folder": (names("Config.json/a.json"), "a file and a folder"),
    "a pickle by its name": (names("pytorch_model.bin"), "may hold a pickle"),
    "a pickle in capitals": (names("weights.PKL"), "may hold a pickle"),
    "a program": (names("modeling.py"), "no kind of file"),
    "a path file": (names("site.pth"), "may hold a pickle"),
    "a pickle under a text's name": (holds("vocab.json", PICKLE), "is no text"),
    "a zip under a text's name": (holds("merges.txt", b"PK\x03\x04\x00\x00"), "is no text|zero bytes"),
    "a pickle under a weights' name": (holds("model.safetensors", PICKLE), "no safetensors"),
    "a header that is longer than its file": (holds("model.safetensors", b"\xff" * 7 + b"\0{}"), "no safetensors"),
    "another loader": (says("mlflow.pyfunc.loaders.code_model", "mlflow.sklearn"), "its loader_module is not"),
    "another entry": (says("model_code_path: pyfunc_entry.py", "model_code_path: /tmp/x.py"), "its model_code_path"),
    "an artifact elsewhere": (says("path: .", "path: /etc"), "its artifacts is not"),
    "another flavor": (says("flavors:", "flavors:\n  sklearn: {pickled_model: model.pkl}"), "says more than gptline"),
    "code beside it": (says("  python_function:", "  python_function:\n    code: code"), "says more than gptline"),
    "an MLmodel that is none": (holds("MLmodel", b"[" * 15_000), "MLmodel"),
    "an MLmodel without end": (holds("MLmodel", b"#" * 70_000), "more than"),
    "another entry's code": (holds(ENTRY, b"import os"), "would be run by MLflow"),
    "other requirements": (holds("requirements.txt", b"evil==1\n"), "would be installed from by MLflow"),
    "other requirements in capitals": (
        instead("requirements.txt", "Requirements.TXT"),
        "would be installed from by MLflow",
    ),
    "an environment in capitals": (instead("conda.yaml", "Conda.yaml"), "would be installed from by MLflow"),
    "a size that is none": (states("1000"), "no size and SHA-256"),
    "a size below nothing": (states(-1), "no size and SHA-256"),
    "more than the disk holds": (states(10**15), "GB are free"),
    "less than it is": (states(100), "more bytes came than the 100"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_package_is_refused_and_nothing_is_left_of_it(
    store: Path, sound: Path, tmp_path: Path, what: str
) -> None:
    plant, why = HOSTILE[what]
    spec = planted(store, sound, tmp_path, f"hostile-{list(HOSTILE).index(what)}", plant)
    for cache in (None, tmp_path / "cache"):
        with pytest.raises((PackageDamaged, PullRefused), match=why):
            pull_from(From(store, cache=cache), spec, tmp_path / "there" / "dest")
        assert not list((tmp_path / "there").glob("**/*"))
    assert {path.name for path in tmp_path.iterdir()} <= {"there", "cache"}
    assert not Path("/tmp/gptline-evil.txt").exists()
    kept = [path.read_bytes() for path in (tmp_path / "cache").glob("*") if path.is_file()]
    assert not {PICKLE, b"evil", b"import os"} & set(kept)


def test_code_that_no_gptline_wrote_is_taken_if_one_asks_for_it(store: Path, sound: Path, tmp_path: Path) -> None:
    spec = planted(store, sound, tmp_path, "trusted", holds(ENTRY, b"import os\n"))
    pull_from(From(store, trust_code=True), spec, tmp_path / "dest")
    assert (tmp_path / "dest" / ENTRY).read_bytes() == b"import os\n"


def test_a_link_in_the_registry_brings_what_is_listed_or_nothing(store: Path, sound: Path, tmp_path: Path) -> None:
    """A symbolic link in the store's folder cannot bring another file of the server, because its digest is not listed."""
    (tmp_path / "secret").write_text('{"secret": 1}')

    def plant(source: Path, manifest: dict[str, Any]) -> None:
        (source / "config.json").unlink()
        (source / "config.json").symlink_to(tmp_path / "secret")
        manifest["files"]["config.json"]["as it is"] = True

    spec = planted(store, sound, tmp_path, "linked", plant)
    with pytest.raises(PackageDamaged, match=r"config\.json"):
        pull_from(From(store), spec, tmp_path / "dest")
    assert not (tmp_path / "dest").exists()


def test_a_server_that_sends_more_than_is_listed_is_not_listened_to(
    mlflow_server: MlflowServer, sound: Path, tmp_path: Path
) -> None:
    uri = mlflow_server.uri
    version = big_packages.register(uri, "endless", sound)
    stored = mlflow_server.folder / "kept" / version.source.partition(":/")[2].lstrip("/") / "model.safetensors"
    with open(stored, "ab") as file:
        file.truncate(10**10)
    with pytest.raises(PackageDamaged, match=r"more bytes came than the 1,\d+ that the manifest lists"):
        pull_from(From(uri, cache=tmp_path / "cache"), "endless@champion", tmp_path / "dest")
    assert not (tmp_path / "dest").exists()
    assert sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*") if path.is_file()) < 100_000
    with open(stored.with_name(MANIFEST), "ab") as file:
        file.truncate(10**10)
    with pytest.raises(PackageDamaged, match="longer than any manifest"):
        pull_from(From(uri), "endless@champion", tmp_path / "dest")


ELSEWHERE = {
    "another server": "mlflow-artifacts://evil.example/1/x",
    "a user's name before the server": "mlflow-artifacts://evil@{named}/1/x",
    "another port": "mlflow-artifacts://{evil}/1/x",
    "plain http": "http://{evil}/x/mlflow-artifacts/artifacts/evil",
    "http in capitals": " HTTP://{evil}/x",
    "https": "https://{evil}/x",
    "a file system of Databricks": "dbfs:/x",
    "one of another workspace": "dbfs://profile@databricks/x",
    "another model's address": "models:/other/1",
    "a run's address": "runs:/0/x",
    "a service of files": "ftp://{evil}/x",
    "an account's own domain": "abfss://files@{evil}/x",
    "an endpoint of its own": "b2://bucket@{evil}/x",
    "a database": "mysql+x://{evil}/x",
}


@pytest.mark.parametrize("what", ELSEWHERE)
def test_credentials_go_to_the_server_that_was_named_and_to_no_other(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody at the other address is even connected to."""
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "reader")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")
    with socket.create_server(("127.0.0.1", 0)) as evil:
        named, other = "127.0.0.1:1", f"127.0.0.1:{evil.getsockname()[1]}"
        source = ELSEWHERE[what].format(named=named, evil=other)
        version = ModelVersion("elsewhere", 1, source, "0" * 64, None)
        with pytest.raises(PackageRefused, match=r"at another server|is no folder, no bucket"):
            with fetching.opened(f"http://{named}", version, MANIFEST, 0):
                pass
        client = SimpleNamespace(
            tracking_uri=f"http://{named}",
            get_run=lambda run: SimpleNamespace(info=SimpleNamespace(artifact_uri=source)),
        )
        with pytest.raises(PackageRefused, match="not asked"):  # a run that somebody else has made is no better
            upload(client, "run", "model", Path("package"), {})
        evil.setblocking(False)
        with pytest.raises(BlockingIOError):
            evil.accept()


@pytest.mark.parametrize("name", ["config.json", "a/b-c_d.1/model-00001-of-00002.safetensors", "MLmodel", ENTRY])
def test_what_exports_hold_is_allowed(name: str) -> None:
    assert refusal(name) is None


def test_what_mlflow_runs_or_installs_has_the_digest_that_pulls_know() -> None:
    """Who changes one of these files adds the digest that it had to EARLIER, or older versions cannot be pulled."""
    known = {
        "pyfunc_entry.py": "62158cfdf84aa0d7303afad777f4d31996fb0b9c912ec90ef33105946ae6f259",
        "requirements.txt": "4753a52b8df87b0807cdb2501f559216bbbd8907dd1daab1a15e623de9c55b44",
        "python_env.yaml": "745a4d6baae47c906612c9f5fc97613caf8c3a744c3a629bf70c7c27a0b33c82",
        "conda.yaml": "32af9846c61c67db5e7d9567e52a25ccfaa0444925a4735454b960a26df88938",
    }
    now = {name: hashlib.sha256(data).hexdigest() for name, data in package._run_or_installed().items()}
    assert {name: digest for name, digest in now.items() if digest != known[name]} == {}
    before = (
        "e8d993f8dc5f2b9f7fae323f0b1484edd8b346b291bb8bf8be9d77700da2013b",
        "a22e1554dd1f338215fdd12d6fde68290ead7b17224b634734b190bd732d8e5c",
        "f157ea86959287d74f9f1a1e04926cfb23615eabd95a740336d9bc2f4c0796cb",
        "98a0936a217e5f69b2e8dc84bcbef1390d297cafaa551c13c946ef80c9539c2e",
    )
    assert {"pyfunc_entry.py": {*before}} == EARLIER
