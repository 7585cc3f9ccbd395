"""Pulls over a bad network, from a cache, and by many at once: one version, whole, fetched once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines import model_cache, patience, registry
from pipelines.model_versions import UnknownModel
from pipelines.package import PackageDamaged
from pipelines.pull import From, pull_from
from pipelines.registry import ModelVersion
from tests.mlflow_server import MlflowServer
from tests.pipelines import big_packages
from tests.pipelines.big_packages import contents
from tests.pipelines.lossy_proxy import LossyProxy, Request, waits

ROOT = Path(__file__).parents[2]
SIZE = 3_000_000
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return big_packages.write_package(tmp_path_factory.mktemp("package"), SIZE)


@pytest.fixture
def proxy(mlflow_server: MlflowServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[LossyProxy]:
    monkeypatch.setattr(patience, "_FIRST_PAUSE", 0.05)
    monkeypatch.setattr(model_cache, "_PAUSE", 0.01)
    proxy = LossyProxy(mlflow_server.port)
    yield proxy
    proxy.close()


@pytest.fixture
def registered(proxy: LossyProxy, package: Path) -> ModelVersion:
    """`cut@champion`, asked for through the proxy, which begins to count now."""
    version = big_packages.register(proxy.uri, "cut", package)
    proxy.reset()
    return version


def environment(**more: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT)} | more


def command(uri: str, spec: str, dest: Path, cache: Path | None, *options: str) -> list[str]:
    """`gptline pull`, as a process of its own."""
    settings = [f"execution.model_cache={cache or ''}", "execution.registry_patience=60"]
    given = [part for setting in settings for part in ("--set", setting)]
    return [sys.executable, "-m", "pipelines", "pull", spec, str(dest), "--registry", uri, *given, *options]


def weights(proxy: LossyProxy) -> list[Request]:
    """The requests for the big file."""
    return [request for request in proxy.seen if request.path.endswith(WEIGHTS)]


def test_a_cut_download_goes_on_where_it_was(
    proxy: LossyProxy, registered: ModelVersion, package: Path, tmp_path: Path
) -> None:
    cuts = iter([1_000_000, 500_000, 0])
    proxy.shorten = lambda request: next(cuts, None) if request.path.endswith(WEIGHTS) else None
    pulled = pull_from(From(proxy.uri, 30), "cut@champion", tmp_path / "dest")
    assert pulled.version == registered.version
    assert contents(tmp_path / "dest") == contents(package)
    asked = ["", "bytes=1000000-", "bytes=1500000-", "bytes=1500000-"]
    assert [request.range for request in weights(proxy)] == asked
    assert list(tmp_path.iterdir()) == [tmp_path / "dest"]


def test_a_killed_pull_goes_on_where_it_was(
    proxy: LossyProxy, registered: ModelVersion, package: Path, tmp_path: Path
) -> None:
    victim: list[subprocess.Popen[bytes]] = []

    def kill(request: Request) -> None:
        if request.range:
            assert waits(lambda: victim)
            victim[0].kill()

    proxy.shorten = lambda request: 1_000_000 if request.path.endswith(WEIGHTS) else None
    proxy.before = kill
    called = command(proxy.uri, "cut@champion", tmp_path / "dest", tmp_path / "cache")
    victim.append(subprocess.Popen(called, cwd=ROOT, env=environment()))
    assert victim[0].wait() == -signal.SIGKILL
    assert not (tmp_path / "dest").exists()
    assert [path.stat().st_size for path in (tmp_path / "cache").glob("*.part")] == [1_000_000]
    proxy.reset()
    pull_from(From(proxy.uri, 30, tmp_path / "cache"), "cut@champion", tmp_path / "dest")
    assert [request.range for request in weights(proxy)] == ["bytes=1000000-"]
    assert contents(tmp_path / "dest") == contents(package)
    assert not list((tmp_path / "cache").glob("*.part"))


def test_a_server_that_cannot_continue_a_file_sends_it_again(
    proxy: LossyProxy, registered: ModelVersion, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As MLflow's does when its artifacts lie in a bucket: it streams, and knows no ranges."""
    forward = proxy._forward

    def no_ranges(handler: object, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        del handler.headers["Range"]  # type: ignore[attr-defined]
        return forward(handler, body)

    monkeypatch.setattr(proxy, "_forward", no_ranges)
    cuts = iter([1_000_000, 400_000])
    proxy.shorten = lambda request: next(cuts, None) if request.path.endswith(WEIGHTS) else None
    pull_from(From(proxy.uri, 30), "cut@champion", tmp_path / "dest")
    assert len(weights(proxy)) == 3
    assert contents(tmp_path / "dest") == contents(package)


def test_a_server_that_always_cuts_at_one_place_is_given_up(
    proxy: LossyProxy, registered: ModelVersion, tmp_path: Path
) -> None:
    proxy.shorten = lambda request: 0 if request.path.endswith(WEIGHTS) else None
    with pytest.raises(ConnectionError, match=r"fetching model.safetensors \(0 of 3,.* did not answer for"):
        pull_from(From(proxy.uri, 0.5), "cut@champion", tmp_path / "dest")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["part", "entry"])
def test_damage_in_the_cache_is_noticed_and_fetched_anew(
    proxy: LossyProxy, registered: ModelVersion, package: Path, tmp_path: Path, kind: str
) -> None:
    origin = From(proxy.uri, 30, tmp_path / "cache")
    pull_from(origin, "cut@champion", tmp_path / "first")
    entry = next(path for path in (tmp_path / "cache").iterdir() if path.is_file() and path.stat().st_size > SIZE)
    data = bytearray(entry.read_bytes())
    data[SIZE // 2] ^= 1
    if kind == "part":
        entry.unlink()
        entry.with_name(f"{entry.name}.part").write_bytes(data[: SIZE - 10])
    else:
        entry.chmod(0o644)
        entry.write_bytes(data)
    proxy.reset()
    pull_from(origin, "cut@champion", tmp_path / "second")
    assert contents(tmp_path / "second") == contents(package)
    asked = [f"bytes={SIZE - 10}-", ""] if kind == "part" else [""]
    assert [request.range for request in weights(proxy)] == asked


def test_pulled_folders_share_their_files_read_only_and_need_no_server(
    proxy: LossyProxy, registered: ModelVersion, package: Path, tmp_path: Path
) -> None:
    origin = From(proxy.uri, 30, tmp_path / "cache")
    for name in ("one", "two"):
        pull_from(origin, "cut@champion", tmp_path / name)
    files = [tmp_path / name / WEIGHTS for name in ("one", "two")]
    assert files[0].samefile(files[1])
    assert files[0].stat().st_mode & 0o777 == 0o444
    assert len(weights(proxy)) == 1
    proxy.away = True
    for spec in ("cut@champion", f"cut@{registered.version}"):
        offline = From(proxy.uri, 0, tmp_path / "cache", offline=True)
        found = pull_from(offline, spec, tmp_path / "offline" / spec)
        assert (found.version, found.asked[:4]) == (registered.version, time.strftime("%Y", time.gmtime()))
        assert contents(tmp_path / "offline" / spec) == contents(package)
    with pytest.raises(UnknownModel, match=r"cut@candidate was never pulled from .*without --offline"):
        pull_from(offline, "cut@candidate", tmp_path / "unknown")
    files[0].unlink()  # the last thing a folder does: it may go as it likes
    next(path for path in (tmp_path / "cache").iterdir() if path.is_file() and path.stat().st_size > SIZE).unlink()
    with pytest.raises(PackageDamaged, match=r"model.safetensors .* is not in the cache .*without --offline"):
        pull_from(offline, "cut@champion", tmp_path / "gone")


def test_a_pull_that_races_a_promotion_gets_one_version_whole(
    proxy: LossyProxy, registered: ModelVersion, package: Path, tmp_path: Path
) -> None:
    other = big_packages.write_package(tmp_path / "other", 1000, seed=1)
    newer = registry.register(proxy.uri, "cut", other, {})
    proxy.reset()

    def promote_amid(request: Request) -> None:
        if request.path.endswith("config.json"):
            proxy.before = lambda request: False
            registry.promote(f"http://127.0.0.1:{proxy.target}", newer, [])

    proxy.before = promote_amid
    pulled = pull_from(From(proxy.uri, 30), "cut@champion", tmp_path / "dest")
    assert (pulled.version, contents(tmp_path / "dest")) == (registered.version, contents(package))
    again = pull_from(From(proxy.uri, 30), "cut@champion", tmp_path / "dest")
    assert (again.version, contents(tmp_path / "dest")) == (newer.version, contents(other))


def test_many_pulls_at_once_fetch_a_file_once(
    proxy: LossyProxy, registered: ModelVersion, package: Path, tmp_path: Path
) -> None:
    proxy.shorten = lambda request: 1_000_000 if request.path.endswith(WEIGHTS) and not request.range else None
    threads = [
        threading.Thread(
            target=pull_from, args=(From(proxy.uri, 30, tmp_path / "cache"), "cut@champion", tmp_path / str(number))
        )
        for number in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(contents(tmp_path / str(number)) == contents(package) for number in range(8))
    assert [request.range for request in weights(proxy)] == ["", "bytes=1000000-"]


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that a test starts and adds here: those that still run when it ends, as when it fails, are killed."""
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    for process in processes:
        process.kill()
        process.wait()


def test_a_dead_server_delays_ten_pulls_and_a_follower_and_stops_none(
    mlflow_server: MlflowServer, package: Path, tmp_path: Path, started: list[subprocess.Popen[bytes]]
) -> None:
    """The small form of `python -m benchmarks pulls`, and a consumer that waits for a newer version meanwhile."""
    uri = mlflow_server.uri
    big = big_packages.write_package(tmp_path / "big", 20_000_000)
    big_packages.register(uri, "loaded", big)
    old = big_packages.register(uri, "followed", package)
    waiting = ["--wait-newer-than", str(old.version), "--every", "0.2", "--json"]
    called = command(uri, "followed@champion", tmp_path / "followed", None, *waiting)
    follower = subprocess.Popen(called, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    started.append(follower)
    assert follower.stderr and follower.stdout
    assert b"followed@champion is version 1; asking again every 0.2 s" in follower.stderr.readline()
    pulls = [
        subprocess.Popen(command(uri, "loaded@champion", tmp_path / "dest" / str(number), tmp_path / f"cache-{number}"),
                         cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL)
        for number in range(10)
    ]  # fmt: skip
    started += pulls

    def begun(part: Path) -> bool:
        try:
            return part.stat().st_size > 1_000_000
        except FileNotFoundError:  # it is whole by now, and has its final name
            return True

    assert waits(lambda: sum(map(begun, tmp_path.glob("cache-*/*.part"))) >= 2)
    mlflow_server.kill()
    running = sum(pull.poll() is None for pull in pulls)
    assert b"the registry is away" in follower.stderr.readline()
    mlflow_server.start()
    newer = big_packages.register(uri, "followed", big_packages.write_package(tmp_path / "newer", 1000, seed=2))
    assert [pull.wait() for pull in pulls] == [0] * 10
    assert running > 5
    assert all(contents(tmp_path / "dest" / str(number)) == contents(big) for number in range(10))
    answer = json.loads(follower.stdout.read())
    assert (follower.wait(), answer["version"], answer["digest"]) == (0, newer.version, newer.digest)
