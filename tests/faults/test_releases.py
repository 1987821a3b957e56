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
from nimbus.host_agent.build import Claimed, Host
from nimbus.host_agent.guest import OutputSink
from nimbus.host_agent.ledger import OpenRecord
from nimbus.host_agent.life import Outcome
from nimbus.host_agent.lifecycle import run_machine
from nimbus.host_agent.plan import HostLayout
from nimbus.host_agent.ties import Ties
from nimbus.model.vm import Ending
from tests.faults.clones import (
    build_clone_template,
    find_image,
    find_places,
    install_host,
    make_clone_host,
    open_pool,
)
from tests.hosts import Collected, TestHost, make_host, needs_root
from tests.oracle import open_territory, watch_leaks, watch_leaks_inside

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


async def run_true(host: Host, territory: Territory) -> Outcome:
    order = TestHost(host, territory, find_image(host.layout)).order("true", sink=Collected())
    with trio.fail_after(LIMIT_S), open_local_lease() as lease:
        return await run_machine(host, order, lease)


@pytest.fixture
async def clones(territory: Territory) -> Host:
    """A host whose machines are clones of a template, and that looks at a clone's first run: its threads stay."""
    layout = HostLayout(territory.state_root, territory.runtime_dir, uid_base=territory.uid_base)
    host = make_clone_host(layout, install_host(territory.state_root), places=find_places())
    with trio.fail_after(LIMIT_S):
        await build_clone_template(host)
    return host


async def test_a_clone_that_ended_leaves_nothing(territory: Territory, clones: Host) -> None:
    async with watch_leaks_inside(territory):
        outcome = await run_true(clones, territory)
    assert (outcome.ending, outcome.clean, "load" in outcome.phases_ms) == (Ending.DONE, True, True)


@pytest.mark.parametrize("kind", ["built", "prespawned", "warm"])
async def test_a_machine_of_the_pool_leaves_nothing_claimed_or_not(
    territory: Territory, clones: Host, kind: str
) -> None:
    members: list[Claimed] = []  # held, or the collector of garbage would close what they forget
    async with watch_leaks_inside(territory):
        for is_claimed in (True, False):
            async with open_pool(clones, f"1x256x2048 {kind}=1") as pooled:
                assert pooled.reserve is not None
                members += pooled.reserve.waiting
                outcome = await run_true(pooled, territory) if is_claimed else None
            if outcome is not None:
                assert (outcome.vm, outcome.ending, outcome.clean) == (members[0].plan.vm, Ending.DONE, True)


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
