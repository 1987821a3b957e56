"""What a machine took is given back when it ends. `make faults` disables each release in turn, and this must fail."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio

from nimbus.cli.run import open_local_lease
from nimbus.host import cgroup
from nimbus.host.inventory import Territory
from nimbus.host_agent.guest import OutputSink
from nimbus.host_agent.ledger import OpenRecord
from nimbus.host_agent.lifecycle import run_machine
from nimbus.host_agent.ties import Ties
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


async def test_a_machine_that_is_cancelled_in_its_job_has_no_vmm_when_its_output_ends(territory: Territory) -> None:
    made, sink, populated = make_host(territory, "fake"), Collected(), [True]

    @asynccontextmanager
    async def open_sink(record: OpenRecord) -> AsyncIterator[OutputSink]:
        try:
            yield sink
        finally:
            populated[:] = [cgroup.is_populated(territory.prefix + str(record.value.vm))]

    order = replace(made.order("sh", "-c", "echo on; sleep 1000", sink=sink), ties=Ties(open_sink))
    with trio.fail_after(LIMIT_S), open_local_lease() as lease:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_machine, made.host, order, lease)
            await sink.wait_for("on")
            nursery.cancel_scope.cancel()
    assert populated == [False]
