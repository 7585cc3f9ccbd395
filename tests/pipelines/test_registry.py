"""Registering is repeatable, aliases tell the truth, and what is pulled is what was registered."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from pipelines import file_lock, registry, staging
from pipelines.engine.lease import Overtaken
from pipelines.model_card import Card
from pipelines.package import MANIFEST, PackageDamaged, build_package
from pipelines.pull import PullRefused, pull
from pipelines.registry import GateResult, UnknownModel, promote, register, resolve, version_exists
from pipelines.store import lock, tracking_uri
from tests.pipelines.tiny_exports import TEXTS, write_base, write_classifier

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two classifiers of the same shape and name, with different weights."""
    folder = tmp_path_factory.mktemp("packages")
    for seed in (0, 1):
        export = write_classifier(folder / f"export{seed}", seed)
        build_package(export, folder / f"package{seed}", Card("sentiment", "text-classification", "A test."))
    return [folder / "package0", folder / "package1"]


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _versions(store: Path, name: str) -> int:
    return len(registry.connect(store).search_model_versions(f"name = '{name}'"))


def test_the_store_is_made_once_by_processes_that_race(store: Path) -> None:
    names = [experiment.name for experiment in registry.connect(store).search_experiments()]
    assert sorted(names) == ["Default", "gptline"]


def test_registering_twice_gives_one_version(store: Path, packages: list[Path]) -> None:
    first = register(store, "twice", packages[0], {"a": "b"})
    again = register(store, "twice", packages[0], {"a": "c"})
    other = register(store, "twice", packages[1], {})
    assert first == again
    assert (first.version, other.version) == (1, 2)
    assert _versions(store, "twice") == 2


def test_registering_at_the_same_time_gives_one_version(store: Path, packages: list[Path]) -> None:
    found = []
    racers = [
        threading.Thread(target=lambda: found.append(register(store, "race", packages[0], {"n": "1"})))
        for _ in range(4)
    ]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    assert len(found) == 4
    assert len(set(found)) == 1
    assert _versions(store, "race") == 1


def test_of_versions_with_equal_digests_the_lowest_is_the_one(store: Path, packages: list[Path]) -> None:
    first = register(store, "lowest", packages[0], {})
    client = registry.connect(store)
    client.create_model_version("lowest", first.source, first.run_id, tags={registry.DIGEST_TAG: first.digest})
    assert register(store, "lowest", packages[0], {}) == first


def test_registration_killed_after_half_an_upload_is_completed(store: Path, packages: list[Path]) -> None:
    identity = {"gptline.step": "register-half", "gptline.fingerprint": "f" * 64}
    client = registry.connect(store)
    run = registry.find_or_create_run(client, identity, "register-half")
    digest = json.loads((packages[0] / MANIFEST).read_text())["digest"]
    client.log_artifact(run.info.run_id, str(packages[0] / "config.json"), f"half-{digest[:12]}")
    version = register(store, "half", packages[0], identity)
    assert version.run_id == run.info.run_id
    assert _files(Path(version.source)) == _files(packages[0])


def test_a_stored_copy_that_was_damaged_is_repaired_by_registering_again(store: Path, packages: list[Path]) -> None:
    version = register(store, "repair", packages[0], {})
    (Path(version.source) / "config.json").write_text("{}")
    assert register(store, "repair", packages[0], {}) == version
    assert _files(Path(version.source)) == _files(packages[0])


def test_a_damaged_package_is_not_registered(store: Path, packages: list[Path], tmp_path: Path) -> None:
    shutil.copytree(packages[0], tmp_path / "package")
    (tmp_path / "package" / "config.json").write_text("{}")
    with pytest.raises(PackageDamaged, match=r"config\.json"):
        register(store, "damaged", tmp_path / "package", {})


def test_champion_moves_only_when_all_gates_pass(store: Path, packages: list[Path]) -> None:
    good, bad = (register(store, "gated", package, {}) for package in packages)
    assert promote(store, good, [GateResult("accuracy", True, "accuracy 0.8 is at least 0.7")])
    gates = [GateResult("accuracy", False, "accuracy 0.6 is not at least 0.7"), GateResult("macro_f1", True, "fine")]
    assert not promote(store, bad, gates)
    assert resolve(store, "gated@champion") == good
    assert resolve(store, "gated@candidate") == bad
    tags = registry.connect(store).get_model_version("gated", "2").tags
    assert tags["gptline.promotion"] == "not promoted: accuracy 0.6 is not at least 0.7"
    assert json.loads(tags["gptline.gates"])[0]["passed"] is False


def test_an_owner_that_was_overtaken_meanwhile_moves_and_creates_nothing(store: Path, packages: list[Path]) -> None:
    ours = register(store, "overtaken", packages[0], {})
    theirs = register(store, "overtaken", packages[1], {})
    assert promote(store, theirs, [])
    before = registry.connect(store).get_registered_model("overtaken")

    def confirm() -> None:
        raise Overtaken("given to another owner")

    with pytest.raises(Overtaken):
        registry.release(store, ours, [], confirm=confirm)
    with pytest.raises(Overtaken):
        register(store, "overtaken-new", packages[0], {}, confirm)
    after = registry.connect(store).get_registered_model("overtaken")
    assert (after.aliases, after.tags) == (before.aliases, before.tags)
    assert not _versions(store, "overtaken-new")


def test_a_champion_that_fails_tightened_gates_is_one_no_longer(store: Path, packages: list[Path]) -> None:
    version = register(store, "tightened", packages[0], {})
    assert promote(store, version, [GateResult("accuracy", True, "accuracy 0.8 is at least 0.7")])
    assert not promote(store, version, [GateResult("accuracy", False, "accuracy 0.8 is not at least 0.9")])
    assert resolve(store, "tightened@candidate") == version
    with pytest.raises(UnknownModel, match="no tightened@champion"):
        resolve(store, "tightened@champion")


def test_unknown_models_aliases_and_versions_are_answered_with_what_there_is(store: Path, packages: list[Path]) -> None:
    version = register(store, "known", packages[0], {})
    promote(store, version, [])
    for spec in ("known@champion", "known@candidate", "known@1", "known/1"):
        assert resolve(store, spec) == version
    with pytest.raises(UnknownModel, match=r"no known@staging in .*@champion \(version 1\), @1"):
        resolve(store, "known@staging")
    with pytest.raises(UnknownModel, match=r"no known@7 in .*@1"):
        resolve(store, "known@7")
    with pytest.raises(UnknownModel, match=r"no model 'unheard' in .*there is: .*known"):
        resolve(store, "unheard@champion")
    with pytest.raises(UnknownModel, match="sentiment@champion"):
        resolve(store, "known")


def test_asking_for_a_version_imports_no_mlflow(store: Path, packages: list[Path]) -> None:
    version = register(store, "asked", packages[0], {})
    assert version_exists(store, "asked", 1)
    assert version_exists(store, "asked", 1, version.digest)
    assert not version_exists(store, "asked", 1, "0" * 64)
    assert not version_exists(store, "asked", 2)
    assert not version_exists(store / "nowhere", "asked", 1)
    code = (
        "import sys; from pipelines import registry, pull, package, tracking\n"
        f"assert registry.version_exists({str(store)!r}, 'asked', 1)\n"
        "assert not {'mlflow', 'torch', 'yaml', 'matplotlib', 'filelock'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)


def test_pull_brings_the_package_byte_for_byte_and_says_when_it_is_there(
    store: Path, packages: list[Path], tmp_path: Path
) -> None:
    version = register(store, "pulled", packages[0], {})
    dest = tmp_path / "new" / "dest"
    first = pull(store, "pulled@1", dest)
    assert (first.version, first.digest, first.fetched) == (1, version.digest, True)
    assert _files(dest) == _files(packages[0])
    assert not pull(store, "pulled@1", dest).fetched
    assert [path.name for path in dest.parent.iterdir()] == ["dest"]


def test_pull_replaces_an_earlier_pull_and_nothing_else(store: Path, packages: list[Path], tmp_path: Path) -> None:
    for package in packages:
        register(store, "moving", package, {})
    dest = tmp_path / "dest"
    pull(store, "moving@1", dest)
    (dest / "__pycache__").mkdir()  # what loading with mlflow leaves behind
    assert pull(store, "moving@2", dest).fetched
    assert _files(dest) == _files(packages[1])
    (dest / "config.json").write_text("{}")
    with pytest.raises(PullRefused, match=r"was pulled, and changed since: .*config\.json"):
        pull(store, "moving@1", dest)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(PullRefused, match="was not made by a pull"):
        pull(store, "moving@1", tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("file", ["model.safetensors", MANIFEST])
def test_pull_refuses_files_that_were_changed_in_the_registry(
    store: Path, packages: list[Path], tmp_path: Path, file: str
) -> None:
    version = register(store, f"tampered-{file}", packages[0], {})
    source = Path(version.source)
    if file == MANIFEST:  # a whole other package put in its place: consistent in itself
        shutil.rmtree(source)
        shutil.copytree(packages[1], source)
    else:
        (source / file).write_bytes(b"x" + (source / file).read_bytes()[1:])
    with pytest.raises(PackageDamaged, match=r"the manifest says|the registry says"):
        pull(store, f"tampered-{file}@1", tmp_path / "dest")
    assert list(tmp_path.iterdir()) == []


def test_what_lies_unlisted_in_the_registry_is_not_pulled(store: Path, packages: list[Path], tmp_path: Path) -> None:
    version = register(store, "litter", packages[0], {})
    (Path(version.source) / "evil.py").write_text("raise SystemExit")
    pull(store, "litter@1", tmp_path / "dest")
    assert not (tmp_path / "dest" / "evil.py").exists()


def test_a_pull_killed_half_way_leaves_no_folder_and_the_next_one_cleans_up(
    store: Path, packages: list[Path], tmp_path: Path
) -> None:
    register(store, "killed", packages[0], {})
    dest = tmp_path / "dest"
    code = f"""
import os, signal
from pathlib import Path
from pipelines import fetching, pull
fetch, fetched = fetching.opened, []
def third_is_the_last(*args):
    if len(fetched) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    fetched.append(1)
    return fetch(*args)
fetching.opened = third_is_the_last
pull.pull({str(store)!r}, "killed@1", Path({str(dest)!r}))
"""
    killed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert killed.returncode == -9
    assert not dest.exists()
    assert list(tmp_path.iterdir())
    pull(store, "killed@1", dest)
    assert list(tmp_path.iterdir()) == [dest]


_STRANGER = """
import json, sys

class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("pipelines", "model", "cluster", "tests"):
            raise ModuleNotFoundError(f"{name} is not installed here")

sys.meta_path.insert(0, NotInstalled())
uri, classifier, base, texts = json.loads(sys.argv[1])
import mlflow, pandas, transformers
mlflow.set_tracking_uri(uri)
model = mlflow.pyfunc.load_model("models:/stranger@champion")
told = model.predict(texts)
for same in (pandas.Series(texts), pandas.DataFrame({"text": texts})):
    assert model.predict(same).equals(told)
transformers.AutoModelForSequenceClassification.from_pretrained(classifier)
classify = transformers.pipeline("text-classification", classifier, truncation=True)
prompt = "it never"
tokenizer = transformers.GPT2Tokenizer.from_pretrained(base)
generator = transformers.GPT2LMHeadModel.from_pretrained(base)
inputs = tokenizer.encode(prompt, return_tensors="pt")
outputs = generator.generate(inputs, max_length=50, num_return_sequences=1)
pyfunc = mlflow.pyfunc.load_model("models:/stranger-base@champion")
print(json.dumps({
    "mlflow": told.to_dict("records"),
    "transformers": classify([text for text in texts if text]),
    "generate": tokenizer.decode(outputs[0], skip_special_tokens=True),
    "generate mlflow": pyfunc.predict([prompt], params={"max_new_tokens": 50 - inputs.shape[1]}),
    "text": tokenizer.decode(tokenizer(texts[2])["input_ids"]),
}))
"""


def test_registered_models_load_and_agree_where_this_project_is_not_installed(
    store: Path, packages: list[Path], tmp_path: Path
) -> None:
    build_package(
        write_base(tmp_path / "export"), tmp_path / "base", Card("stranger-base", "text-generation", "A test.")
    )
    for name, package in (("stranger", packages[0]), ("stranger-base", tmp_path / "base")):
        promote(store, register(store, name, package, {}), [])
        pull(store, f"{name}@champion", tmp_path / f"pulled-{name}")
    told = json.dumps(
        [
            registry.tracking_uri(store),
            str(tmp_path / "pulled-stranger"),
            str(tmp_path / "pulled-stranger-base"),
            TEXTS,
        ]
    )
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    answer = subprocess.run(
        [sys.executable, "-I", "-c", _STRANGER, told], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert answer.returncode == 0, answer.stderr
    said = json.loads(answer.stdout.splitlines()[-1])
    with_text = [row for row, text in zip(said["mlflow"], TEXTS, strict=True) if text]
    for one, other in zip(with_text, said["transformers"], strict=True):
        assert one["label"] == other["label"]
        assert one["score"] == pytest.approx(other["score"], abs=1e-6)
    assert said["generate mlflow"] == [said["generate"]]
    assert said["text"] == TEXTS[2]


def test_a_writer_that_is_stopped_is_named_and_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("pipelines.store._LONGEST_WRITER", 0.05)
    uri = tracking_uri(tmp_path)
    with lock(uri):
        with pytest.raises(ConnectionError, match=r"writes to the MLflow store (.|\n)* It holds .*\.lock \(lslocks"):
            with lock(uri):
                raise AssertionError("two at once")
    with lock(uri):
        pass  # it was given back
    holder, moves = FileLock(tmp_path / "held"), iter(range(6))
    holder.acquire()

    def grows() -> int:
        """Something comes for a while, so the holder is at work; then it is done."""
        if (size := next(moves)) == 5:
            holder.release()
        return size

    with file_lock.locked(tmp_path / "held", 0.02, lambda: "somebody is at work", grows, silent=0):
        pass
    assert [record.getMessage().partition(";")[0] for record in caplog.records] == ["waiting: somebody is at work"]


def test_folders_that_others_sweep_or_publish_in_this_moment_stop_no_pull(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".model.0.tmp").symlink_to("nowhere")  # listed, and not there when it is opened
    staging.sweep(tmp_path, "model")
    swept: list[Path] = []

    def sweep_first(folder: Path, how: int, **where: Any) -> int:
        if not where and folder.name.startswith(".model.") and len(swept) < 2:
            swept.append(folder)
            folder.rmdir()
        return opened(folder, how, **where)

    def sweep_then(descriptor: int, how: int) -> None:
        locked(descriptor, how)
        if len(swept) == 2:
            swept.append(next(tmp_path.glob(".model.??*.tmp")))
            swept[-1].rmdir()

    opened, locked = os.open, fcntl.flock
    monkeypatch.setattr(os, "open", sweep_first)
    monkeypatch.setattr(fcntl, "flock", sweep_then)
    with staging.staging(tmp_path / "model") as folder:
        assert folder.is_dir() and len(swept) == 3
