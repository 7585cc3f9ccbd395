"""What the tests on several hosts share. Where there can be no hosts, they are skipped, and say why."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hosts.machines import refusal

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ours = [item for item in items if HERE in item.path.parents]
    if ours and (why := refusal()):
        for item in ours:
            item.add_marker(pytest.mark.skip(reason=f"no hosts can be made here: {why}"))
