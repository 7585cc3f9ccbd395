"""A package is a pure function of export and card, states every file, and refuses what could do harm."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pipelines.model_card import Card
from pipelines.package import MANIFEST, PackageDamaged, build_package, read_manifest, verify_package
from tests.pipelines.tiny_exports import write_classifier

CARD = Card(
    name="sentiment",
    task="text-classification",
    summary="Sentences about films: rotten or fresh.",
    data=["train: 8,000 sentences"],
    metrics={"accuracy": 0.75, "macro_f1": 0.74},
    baselines={"majority": {"accuracy": 0.56}, "tf-idf": {"accuracy": 0.79, "macro_f1": 0.785}},
    limits=["English film reviews only"],
    lineage={"export": "ab" * 32, "sources": {"rt": "cd" * 32}},
)


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classifier(tmp_path_factory.mktemp("exports") / "classifier")


@pytest.fixture
def package(export: Path, tmp_path: Path) -> Path:
    build_package(export, tmp_path / "package", CARD)
    return tmp_path / "package"


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_equal_exports_give_equal_packages_byte_for_byte(export: Path, package: Path, tmp_path: Path) -> None:
    shutil.copytree(export, tmp_path / "elsewhere")
    digest = build_package(tmp_path / "elsewhere", tmp_path / "again", CARD)
    assert digest == read_manifest(package / MANIFEST)["digest"]
    assert _contents(package) == _contents(tmp_path / "again")


def test_other_weights_or_another_card_give_another_digest(package: Path, tmp_path: Path) -> None:
    first = read_manifest(package / MANIFEST)["digest"]
    other = build_package(write_classifier(tmp_path / "other", seed=1), tmp_path / "p1", CARD)
    renamed = build_package(tmp_path / "other", tmp_path / "p2", Card("another", "text-classification", "x"))
    assert len({first, other, renamed}) == 3


def test_manifest_lists_every_file_and_the_lineage(package: Path) -> None:
    manifest = verify_package(package)
    assert set(manifest["files"]) == {path.name for path in package.iterdir()} - {MANIFEST}
    assert manifest["lineage"] == {"export": "ab" * 32, "sources": {"rt": "cd" * 32}}


def test_model_card_has_metadata_metrics_baselines_and_limits(package: Path) -> None:
    import yaml

    _, front, body = (package / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(front)["pipeline_tag"] == "text-classification"
    assert "| tf-idf | 0.7900 | 0.7850 |" in body
    assert "| majority | 0.5600 |  |" in body
    assert "English film reviews only" in body


@pytest.mark.parametrize("name", ["model.safetensors", "README.md", "MLmodel", "pyfunc_entry.py"])
def test_a_flipped_byte_in_any_file_is_found(package: Path, name: str) -> None:
    data = bytearray((package / name).read_bytes())
    data[-1] ^= 1
    (package / name).write_bytes(data)
    with pytest.raises(PackageDamaged, match=name):
        verify_package(package)


def test_missing_and_unlisted_files_are_found(package: Path) -> None:
    (package / "extra.txt").write_text("hello")
    with pytest.raises(PackageDamaged, match=r"extra\.txt: not in the manifest"):
        verify_package(package)
    (package / "extra.txt").unlink()
    (package / "config.json").unlink()
    with pytest.raises(PackageDamaged, match=r"config\.json: is missing"):
        verify_package(package)


def test_what_mlflow_and_python_leave_behind_is_no_damage(package: Path) -> None:
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "pyfunc_entry.cpython-311.pyc").write_bytes(b"")
    (package / "registered_model_meta").write_text("model_name: x")
    assert verify_package(package)["digest"]


def test_links_are_refused(package: Path) -> None:
    (package / "config.json").rename(package.parent / "config.json")
    (package / "config.json").symlink_to(package.parent / "config.json")
    with pytest.raises(PackageDamaged, match=r"config\.json is a link"):
        verify_package(package)


@pytest.mark.parametrize("name", ["../evil", "/etc/passwd", "a/../b", "a\\..\\b", "./x", MANIFEST, "weights.pkl"])
def test_a_manifest_with_a_dangerous_path_is_refused(package: Path, name: str) -> None:
    from pipelines.package import _digest

    manifest = json.loads((package / MANIFEST).read_text())
    manifest["files"][name] = {"size": 0, "sha256": "00"}
    (package / MANIFEST).write_text(json.dumps({**manifest, "digest": _digest(manifest)}))
    with pytest.raises(PackageDamaged, match="do not use it"):
        read_manifest(package / MANIFEST)


def test_an_edited_manifest_is_refused(package: Path) -> None:
    text = (package / MANIFEST).read_text().replace("cd" * 32, "ef" * 32)
    (package / MANIFEST).write_text(text)
    with pytest.raises(PackageDamaged, match="it was changed"):
        verify_package(package)


def test_a_pickle_in_the_export_is_refused(export: Path, tmp_path: Path) -> None:
    shutil.copytree(export, tmp_path / "export")
    (tmp_path / "export" / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin.*may hold a pickle"):
        build_package(tmp_path / "export", tmp_path / "package", CARD)
