"""A line over several hosts ends with the bytes that one machine makes, whatever becomes of the hosts."""

from __future__ import annotations

import re

from tests.hosts import lines
from tests.hosts.fleet import IMPATIENT, fleet


def test_a_worker_host_loses_power_in_training_and_a_blind_one_is_refused_and_the_bytes_are_the_same() -> None:
    with fleet(3, settings=lines.settings(), ray=IMPATIENT) as hosts:
        hosts.add(4, hidden=hosts.folder)
        hosts.when_up(4)
        hosts.start("--until", "pretrain")
        hosts.until(lambda: lines.checkpoint(hosts.work, "pretrain") >= 20)
        doomed = max(hosts.ranks_on())  # never the head: it holds one rank at most
        hosts.hosts[doomed].kill()
        said = hosts.ended()
        assert not lines.differences(hosts, lines.alone("pretrain"))
    assert "host gp4 does not see the work directory" in said
    assert re.search(r"2 ranks on 2 hosts: 0 on gp\d", said) and "placing the ranks again" in said
