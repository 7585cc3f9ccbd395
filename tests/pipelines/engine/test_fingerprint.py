"""Identity is stable across processes, and refuses what it cannot encode stably."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.engine.fingerprint import NotCanonical, canonical, digest


def test_the_encoding_is_what_it_was_when_the_first_record_was_written() -> None:
    value = {"b": [1, 2.5, None, True], "a": {"ü": "\n"}}
    assert canonical(value) == '{"a":{"ü":"\\n"},"b":[1,2.5,null,true]}'.encode()
    assert digest(value) == "db415f235ebd8b941b572b7aed7994042b58f8ed3d916d445ae54b690a41003c"


def test_key_order_and_tuples_and_whole_floats_do_not_matter() -> None:
    assert digest({"a": 1, "b": (1.0, 2)}) == digest({"b": [1, 2.0], "a": 1.0})


def test_another_process_with_another_hash_seed_gives_the_same_digest() -> None:
    code = "from pipelines.engine.fingerprint import digest; print(digest({k: k for k in {'x','y','z','w'}}))"
    seen = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": str(seed), "PYTHONPATH": "."},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in range(3)
    }
    assert len(seen) == 1


@pytest.mark.parametrize(
    "value",
    [{1: "a"}, {"a": {1, 2}}, [object()], {"p": Path("x")}, [math.nan], [math.inf], b"bytes", {"a": [1, {"b": print}]}],
)
def test_what_has_no_stable_encoding_is_refused(value: object) -> None:
    with pytest.raises(NotCanonical):
        canonical(value)


def test_the_refusal_names_the_place() -> None:
    with pytest.raises(NotCanonical, match=r"\$\.a\[1\]\.b: a PosixPath"):
        canonical({"a": [0, {"b": Path("x")}]})
