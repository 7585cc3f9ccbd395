"""A registry folder that was filled without a server, and is a server's from `make up` on."""

from __future__ import annotations

from pathlib import Path

from cluster import site as sites
from tests.site import running
from tests.site.test_registry_access import server  # noqa: F401  a fixture


def test_what_was_registered_before_is_pulled_through_the_server(head: Path, team: Path, tmp_path: Path) -> None:
    mlflow = sites.read(head).mlflow
    assert mlflow is not None
    theirs = ["--set", f"execution.registry={mlflow.address}", "--set", f"execution.credentials={team}"]
    assert "verified" in running.done("pull", "before@champion", str(tmp_path / "model"), *theirs)
    for path in (head.parent / "package").iterdir():
        assert (tmp_path / "model" / path.name).read_bytes() == path.read_bytes()
    moved = running.done("promotions", "before", "--json", *theirs)
    assert '"to": 1' in moved


def test_a_command_that_goes_past_the_server_is_refused_with_what_to_give_instead(head: Path, tmp_path: Path) -> None:
    past = ["--set", f"execution.registry={head.parent / 'registry'}"]
    refused = running.gptline("pull", "before@champion", str(tmp_path / "model"), *past)
    assert refused.returncode == 2 and "belongs to an MLflow server since `make up`" in refused.stderr
    assert "SITE=site" in refused.stderr and not (tmp_path / "model").exists()


def test_integrity_checks_the_store_of_a_site_that_is_up(head: Path) -> None:
    said = running.done("registry-check", "--set", f"execution.site={head}")
    assert "0 damaged" in said, said
