"""Known secrets are planted, a whole line is made over a site and made again, and everything that was written is searched.

Minutes: `make thorough`. What is searched: the work directory, the registry with MLflow's database bytes, artifacts, runs,
parameters and tags, the site's folder and logs, Ray's session with its logs, what every command has printed, the listing
of the jobs, and the command line and environment of every process on the machine meanwhile.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import stat
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cluster import site as sites
from model import durable
from pipelines import credentials
from pipelines.credentials import Credentials
from tests.pipelines.retraining.scene import shakespeare
from tests.site import running
from tests.site.test_thorough import database  # noqa: F401  a fixture
from tests.site.watching import Watch, files_below, forms, holding, watching

pytestmark = pytest.mark.thorough

# Planted before anything starts. What a site makes by itself is as long, and is searched for as well.
PLANTED = {
    "token": "70cafe" + b"planted-token".hex() + "0" * 32,
    "flask_key": "planted-flask-key-5d1c0a8be2",
    "admin": "planted admin/password%7f+21",
}
# What a person has in the environment of a command: for the alert command, for a bucket, for data on a hub.
CARRIED = {
    "PAGER_KEY": "planted-pager-key-c41e77b2",
    "AWS_SECRET_ACCESS_KEY": "planted/bucket+key/93b0d1f4",
    "HF_TOKEN": "hf_plantedHubToken2291ab",
}
RECIPE = """
from pipelines import recipes
from pipelines.config import RetrainConfig, ShardConfig, Source

def growing():
    source = Source(path={corpus!r}, label="files")
    shard = ShardConfig(sources=(source,), document_bytes=512, shard_bytes=65536, heldout_fraction=0.05)
    return recipes.tiny().model_copy(update={{"name": "growing", "shard": shard}})
"""
PAGER = """
import hashlib, json, os, sys
event = json.load(sys.stdin)
with open({heard!r}, "a") as heard:
    heard.write(json.dumps([event["kind"], hashlib.sha256(os.environ["PAGER_KEY"].encode()).hexdigest()]) + chr(10))
"""


@dataclass
class Line:
    """A site with planted secrets in a folder, and the commands on it. `said` is all that they have printed."""

    folder: Path
    said: list[str] = field(default_factory=list)

    @property
    def site(self) -> Path:
        return self.folder / "site"

    def give(self, *arguments: str, **environment: str) -> str:
        """One command, which must succeed."""
        done = running.gptline(*arguments, **environment)
        self.said.append(done.stdout + done.stderr)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def options(self) -> list[str]:
        """Of every command that makes something."""
        chosen = {"execution.ranks": 1, "execution.threads": 1, "execution.stale_after_days": 1e-9,
                  "execution.alert_command": f"{sys.executable} {self.folder / 'pager.py'}"}  # fmt: skip
        settings = [part for name, value in chosen.items() for part in ("--set", f"{name}={value}")]
        return ["--recipe", f"{self.folder / 'recipe.py'}:growing", "--work", str(self.folder / "work"), *settings]

    def prepare(self) -> None:
        """The secrets, a corpus of some files, the recipe over it, and the alert command."""
        self.site.mkdir(mode=0o700)
        for name in ("token", "flask_key"):
            durable.write_private(self.site / name, PLANTED[name].encode())
        credentials.write(self.site / "admin", Credentials("admin", PLANTED["admin"]))
        (self.folder / "corpus").mkdir()
        for index in range(4):
            self.add(index)
        (self.folder / "recipe.py").write_text(RECIPE.format(corpus=str(self.folder / "corpus")))
        (self.folder / "pager.py").write_text(PAGER.format(heard=str(self.folder / "heard")))

    def add(self, index: int) -> None:
        """One more file for the corpus."""
        (self.folder / "corpus" / f"{index}.txt").write_text(shakespeare(index * 50_000, (index + 1) * 50_000))

    def live(self, **at_start: str) -> None:
        """From `up` to `down`: a job, what is asked of it, a team's pull, and a retraining that calls the alert command."""
        site = ["--site", str(self.site)]
        room = [*running.head_options(self.folder, running.HEAD), "--cpus", "2"]
        self.give("up", *room, **CARRIED, **at_start)
        self.give("user", "team", *site)
        mlflow = sites.read(self.site).mlflow
        assert mlflow is not None
        self.give("submit", *site, *self.options(), **CARRIED)
        for asked in (["jobs", "--json"], ["jobs"], ["logs", "--no-follow"]):
            self.give(*asked, *site)
        self.give("status", *self.options(), "--set", f"execution.site={self.site}")
        team = [
            "--set",
            f"execution.registry={mlflow.address}",
            "--set",
            f"execution.credentials={self.site / 'users' / 'team'}",
        ]
        self.give("pull", "sentiment@champion", str(self.folder / "pulled"), *team, **CARRIED)
        self.add(4)
        assert "slot 1:" in self.give("retrain", *self.options(), "--set", f"execution.site={self.site}", **CARRIED)
        self.give("lineage", "sentiment@1", "--set", f"execution.site={self.site}")
        self.give("down", *site)

    def secrets(self) -> dict[str, set[bytes]]:
        """By name, in every form: what was planted, what was carried, and the team's password."""
        known = {**PLANTED, **CARRIED, "team": credentials.read(self.site / "users" / "team").password}
        return {name: forms(secret, ("admin", "team", "")) for name, secret in known.items()}

    def searched(self) -> list[Path]:
        """Every file that was written anywhere for this site."""
        temp = Path(json.loads((self.site / "settings.json").read_text())["temp"])
        found = [*files_below(self.folder), *files_below(temp)]
        assert sum(path.suffix == ".log" for path in found if temp in path.parents) > 5, "Ray's logs are searched"
        assert {"mlflow.db", "users.db", "record.json", "metrics.jsonl", "mlflow.log", "head.log"} <= {
            path.name for path in found
        } | ({"mlflow.db", "users.db"} if (self.site / "database").exists() else set())
        return found


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    made = Line(tmp_path)
    made.prepare()
    yield made
    running.gptline("down", "--site", str(made.site))
    shutil.rmtree(json.loads((made.site / "settings.json").read_text())["temp"], ignore_errors=True)


# The files that are made to hold them; basic_auth.ini is how MLflow is told its administrator and its database.
MEANT = {"token": ["token"], "flask_key": ["flask_key"], "admin": ["admin", "basic_auth.ini"], "team": ["users/team"]}


def assert_kept(line: Line, watch: Watch, secrets: Mapping[str, set[bytes]], meant: Mapping[str, list[str]]) -> None:
    """Every secret is in its own files and nowhere else."""
    paths = line.searched()
    found = holding(paths, {**secrets, "the recipe's name": {b"growing"}})
    named = found.pop("the recipe's name")  # no secret: it shows where this looks
    assert any(path.suffix == ".db" for path in named) or "database" in secrets
    assert any("/session_2" in str(path) for path in named), sorted(map(str, named))
    for name in secrets:
        assert found[name] == {line.site / file for file in meant.get(name, [])}, name
    for path in {path for files in found.values() for path in files}:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    printed = "\n".join(line.said).encode()
    assert len(line.said) > 10
    for name, written in secrets.items():
        assert not any(form in printed for form in written), f"{name} was printed"
        assert watch.with_secret(written) == [], f"{name} is on a command line"
        told = watch.variables(written)
        if name in CARRIED:  # where a person put it, and what was started from there
            assert {variable for variable, _ in told} == {name}
        elif name == "flask_key":
            assert told == {("MLFLOW_FLASK_SERVER_SECRET_KEY", True)}
        elif name.startswith("database"):
            assert all(server or variable == "MLFLOW_DB" for variable, server in told), (
                told
            )  # MLflow repeats it for itself
        else:
            assert told == set(), f"{name} is in an environment"


def test_no_secret_is_written_by_a_whole_line_over_a_site_but_to_its_own_file(line: Line) -> None:
    with watching() as watch:
        line.live()
    assert len(watch.processes) > 30 and any(b"ray::" in command for command in watch.commands)
    assert_kept(line, watch, line.secrets(), MEANT)
    heard = [json.loads(text) for text in (line.folder / "heard").read_text().splitlines()]
    assert heard == [["stale", hashlib.sha256(CARRIED["PAGER_KEY"].encode()).hexdigest()]], "it had its key"


def test_a_databases_password_is_written_by_a_whole_line_but_to_its_own_file(line: Line, database: str) -> None:  # noqa: F811
    with watching() as watch:
        line.live(MLFLOW_DB=database)
    from tests.site.test_thorough import PLANTED as password

    secrets = line.secrets() | {"database": forms(password) | forms("planted@secret-9f3c")}
    assert_kept(line, watch, secrets, MEANT | {"database": ["database", "basic_auth.ini"]})
