"""An agent that is told to stop takes its machines down and says so, so that nobody waits for a lease to run out."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest
import trio

from nimbus.host.inventory import Territory
from nimbus.host_agent.departure import Departure, Order
from nimbus.model.vm import Ending
from nimbus.wire.leaseapi import FinishRequest
from tests.faults.leased import Plane, serve
from tests.faults.test_adoption import adopt
from tests.hosts import needs_root
from tests.oracle import open_territory, watch_leaks

pytestmark = [needs_root, pytest.mark.root]

LIMIT_S = 60.0


@pytest.fixture
def territory() -> Iterator[Territory]:
    with open_territory() as found, watch_leaks(found):
        yield found


async def stop_when_running(territory: Territory, plane: Plane) -> float:
    """Serve one machine, stop when its command runs; the seconds that stopping took."""
    with trio.fail_after(LIMIT_S):
        async with trio.open_nursery() as machines:
            departure = Departure()
            machines.start_soon(partial(serve, territory, plane, "sleep", "1000", departure=departure))
            await plane.running.wait()
            began = trio.current_time()
            departure.note(Order.TEAR_DOWN)
            machines.cancel_scope.cancel()
    return trio.current_time() - began


async def test_a_stopped_agents_machine_is_given_back_at_once(territory: Territory) -> None:
    plane = Plane(ttl_s=300)
    await stop_when_running(territory, plane)
    assert [told.ending for told in plane.ends] == [Ending.CANCELLED]
    assert "stopped" in plane.ends[0].cause


async def test_a_control_plane_that_does_not_answer_holds_no_stop_back_for_long(territory: Territory) -> None:
    class Silent(Plane):
        async def finish(self, request: FinishRequest) -> None:
            await super().finish(request)
            await trio.sleep(LIMIT_S)

    plane, heir = Silent(ttl_s=300), Plane(ttl_s=300)
    with trio.fail_after(LIMIT_S):
        took_s = await stop_when_running(territory, plane)
        await adopt(territory, heir)
    assert len(plane.ends) == 1
    assert took_s < LIMIT_S / 2
    assert [told.ending for told in heir.ends] == [Ending.CANCELLED]  # the next agent says it
