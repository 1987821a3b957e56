"""What a machine took is given back when it ends. `make faults` disables each release in turn, and this must fail."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import trio

from nimbus.cli.run import open_local_lease
from nimbus.host.inventory import Territory
from nimbus.host_agent.lifecycle import run_machine
from nimbus.model.vm import Ending
from tests.hosts import Collected, make_host, needs_root
from tests.oracle import open_territory, watch_leaks

pytestmark = [needs_root, pytest.mark.root]

LIMIT_S = 60.0


@pytest.fixture
def territory() -> Iterator[Territory]:
    with open_territory() as found, watch_leaks(found):
        yield found


async def test_a_machine_that_ended_leaves_nothing(territory: Territory) -> None:
    made = make_host(territory, "fake")
    with trio.fail_after(LIMIT_S), open_local_lease() as lease:
        outcome = await run_machine(made.host, made.order("true", sink=Collected()), lease)
    assert (outcome.ending, outcome.clean) == (Ending.DONE, True)
