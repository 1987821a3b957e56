"""Many machines of one agent, after each other and at once: nothing grows, nobody meets another's guest."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from nimbus.cli.run import open_local_lease
from nimbus.host.inventory import Territory, read_inventory
from nimbus.host_agent.life import Outcome
from nimbus.host_agent.lifecycle import run_machine
from nimbus.model.vm import Ending
from tests.hosts import Collected, TestHost, make_host, needs_root
from tests.oracle import open_territory, watch_leaks

pytestmark = [needs_root, pytest.mark.root, pytest.mark.slow]

LIMIT_S = 1800.0
WARM = 5  # lives until every pool and cache is filled
LIVES = int(os.environ.get("NIMBUS_TEST_LIVES", "20"))  # `make faults` says 200
AT_ONCE = int(os.environ.get("NIMBUS_TEST_AT_ONCE", "8"))
GROWTH_BYTES = 8 << 20  # of the allocator's own: a leak of 10 KiB a life shows at a thousand


@pytest.fixture
def territory() -> Iterator[Territory]:
    with open_territory() as found, watch_leaks(found):
        yield found


async def live_once(made: TestHost, *argv: str) -> tuple[Outcome, str]:
    sink = Collected()
    with open_local_lease() as lease:
        outcome = await run_machine(made.host, made.order(*argv, sink=sink), lease)
    return outcome, sink.stdout


def resident_bytes() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def test_life_after_life_costs_an_agent_nothing_more(territory: Territory) -> None:
    made = make_host(territory, "fake")
    with trio.fail_after(LIMIT_S):
        for _ in range(WARM):
            await live_once(made, "true")
        before, resident = read_inventory(territory), resident_bytes()
        for _ in range(LIVES):
            await live_once(made, "true")
    after = read_inventory(territory)
    assert (after.fds, after.threads) == (before.fds, before.threads)
    assert resident_bytes() - resident < GROWTH_BYTES


async def test_many_that_start_at_once_each_reach_their_own_guest(territory: Territory) -> None:
    made = make_host(territory, "fake")
    told: dict[int, tuple[Outcome, str]] = {}

    async def live(number: int) -> None:
        told[number] = await live_once(made, "echo", str(number))

    with trio.fail_after(LIMIT_S):
        async with trio.open_nursery() as nursery:
            for number in range(AT_ONCE):
                nursery.start_soon(live, number)
    assert {number: said for number, (_, said) in told.items()} == {n: f"{n}\n" for n in range(AT_ONCE)}
    assert {outcome.ending for outcome, _ in told.values()} == {Ending.DONE}
    assert len({outcome.vm for outcome, _ in told.values()}) == AT_ONCE
