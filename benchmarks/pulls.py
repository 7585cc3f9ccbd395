"""Pulls: fifty consumers fetch one model at once from one MLflow server, which is killed and started again meanwhile.

The one idea: what counts is how many of them have the whole model in the end, and what it takes. Each pull is a process
of its own, with a cache of its own (fifty machines) or one for all (fifty consumers on one machine). Beside them stands
MLflow's own `download_artifacts`: in threads of one process, because importing mlflow fifty times would decide the time.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import contender
from benchmarks.mlflow_server import Server, serving
from benchmarks.report import Figure, Options, say

_NAME = "load"
_AWAY = 2.0  # seconds between the server's death and its next start
_KILL_AT = 0.25  # of all bytes


@dataclass(frozen=True)
class Load:
    """How many pulls of how large a model (bytes of weights)."""

    count: int
    size: int


def run(options: Options) -> list[Figure]:
    """Pull undisturbed and with the server's death, ours and MLflow's; seconds, and how many have everything."""
    load = Load(10, 20 << 20) if options.small else Load(50, 500 << 20)
    quiet = Load(load.count // 5, load.size)
    with serving(options.folder / "server") as server:
        _register(server.uri, load, options.folder)
        found = {
            "quiet": _ours(server, quiet, options.folder, shared=False, kill=False),
            "mlflow quiet": _theirs(server, quiet, options.folder, kill=False),
            "killed": _ours(server, load, options.folder, shared=False, kill=True),
            "mlflow killed": _theirs(server, load, options.folder, kill=True),
            "shared": _ours(server, load, options.folder, shared=True, kill=True),
        }
    title, beside = f"pulls at once of {load.size >> 20} MB", "mlflow's download_artifacts"
    whole = f"= {load.count}"
    return [
        Figure(f"{quiet.count} {title}", "s", found["quiet"][0], beside, found["mlflow quiet"][0]),
        Figure(f"{load.count} {title}, server killed: whole and verified", "pulls", found["killed"][1], beside,
               found["mlflow killed"][1], whole, found["killed"][1] == load.count),
        Figure(f"{load.count} {title}, server killed: until the last", "s", found["killed"][0]),
        Figure(f"{load.count} {title}, one cache, server killed: whole and verified", "pulls", found["shared"][1], "", None,
               whole, found["shared"][1] == load.count),
        Figure(f"{load.count} {title}, one cache, server killed: until the last", "s", found["shared"][0]),
    ]  # fmt: skip


def _register(uri: str, load: Load, folder: Path) -> None:
    contender.run(
        "benchmarks.pulls:register", {"uri": uri, "size": load.size, "folder": str(folder / "made")}, threads=1
    )
    shutil.rmtree(folder / "made")


def register(item: dict[str, Any]) -> None:
    """Register a package whose weights are random bytes."""
    from pipelines import registry
    from pipelines.model_card import Card
    from pipelines.package import build_package

    export = Path(item["folder"]) / "export"
    export.mkdir(parents=True)
    (export / "config.json").write_text("{}")
    header = b'{"weight":{"dtype":"U8","shape":[%d],"data_offsets":[0,%d]}}' % (item["size"], item["size"])
    with open(export / "model.safetensors", "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for block in range(item["size"] >> 20):
            file.write(random.Random(block).randbytes(1 << 20))
    package = export.with_name("package")
    build_package(export, package, Card(_NAME, "text-generation", "Random numbers."))
    registry.promote(item["uri"], registry.register(item["uri"], _NAME, package, {}), [])


def _ours(server: Server, load: Load, folder: Path, shared: bool, kill: bool) -> tuple[float, int]:
    """Seconds, and how many pulls ended with 0 and hold what their manifest lists."""
    place = folder / "ours"
    place.mkdir()
    began = time.monotonic()
    pulls = []
    for number in range(load.count):
        cache = place / ("cache" if shared else f"cache-{number}")
        command = [sys.executable, "-m", "pipelines", "pull", f"{_NAME}@champion", str(place / f"dest-{number}")]
        command += ["--registry", server.uri, "--set", f"execution.model_cache={cache}"]
        pulls.append(
            subprocess.Popen(
                command,
                cwd=contender.ROOT,
                env=contender.environment(1),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        )
    if kill:
        _kill_amid(server, place, load.size if shared else load.size * load.count)
    codes = [pull.wait() for pull in pulls]
    seconds = time.monotonic() - began
    whole = sum(_whole(place / f"dest-{number}") for number, code in enumerate(codes) if code == 0)
    _told(f"ours{', one cache' if shared else ''}", load, kill, seconds, whole)
    shutil.rmtree(place)
    return seconds, whole


def _theirs(server: Server, load: Load, folder: Path, kill: bool) -> tuple[float, int]:
    place = folder / "theirs"
    place.mkdir()
    item = {"uri": server.uri, "count": load.count, "place": str(place)}
    killer = threading.Thread(target=_kill_amid, args=(server, place, load.size * load.count))
    if kill:
        killer.start()
    seconds = contender.run("benchmarks.pulls:download", item, threads=1)
    if kill:
        killer.join()
    whole = sum(_whole(place / str(number)) for number in range(load.count))
    _told("mlflow's download_artifacts", load, kill, seconds, whole)
    shutil.rmtree(place)
    return float(seconds), whole


def download(item: dict[str, Any]) -> float:
    """MLflow's own way, in threads; seconds, without its import. A download that fails is not tried again by us."""
    import contextlib
    import os
    from concurrent.futures import ThreadPoolExecutor

    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    import mlflow

    mlflow.set_tracking_uri(item["uri"])

    def one(number: int) -> None:
        with contextlib.suppress(Exception):
            mlflow.artifacts.download_artifacts(f"models:/{_NAME}@champion", dst_path=f"{item['place']}/{number}")

    began = time.monotonic()
    with ThreadPoolExecutor(item["count"]) as pool:
        list(pool.map(one, range(item["count"])))
    return time.monotonic() - began


def _kill_amid(server: Server, place: Path, size: int) -> None:
    """SIGKILL the server when a part of all bytes has arrived, and start it again."""
    end = time.monotonic() + 600
    while _bytes(place) < _KILL_AT * size and time.monotonic() < end:
        time.sleep(0.1)
    server.kill()
    time.sleep(_AWAY)
    server.start()


def _bytes(place: Path) -> int:
    found = 0
    for path in place.rglob("*"):
        try:
            found += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:  # it was renamed meanwhile
            continue
    return found


def _whole(folder: Path) -> bool:
    from pipelines.package import PackageDamaged, verify_package

    try:
        return bool(verify_package(folder))
    except (PackageDamaged, FileNotFoundError):
        return False


def _told(who: str, load: Load, kill: bool, seconds: float, whole: int) -> None:
    rate = load.count * load.size / seconds / 1e6
    said = "the server killed amid" if kill else "undisturbed"
    say(
        f"{who}: {load.count} x {load.size >> 20} MB, {said}: {seconds:.1f} s ({rate:,.0f} MB/s), {whole} whole and verified"
    )
