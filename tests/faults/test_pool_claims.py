"""A job that claims a machine of the pool loses nothing by it: whatever that machine is worth then, it is done."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
import trio

from nimbus.cli.run import open_local_lease
from nimbus.host.inventory import Territory
from nimbus.host_agent.lifecycle import run_machine
from nimbus.host_agent.plan import HostLayout
from nimbus.model.vm import Ending
from tests.faults.clones import build_clone_template, find_image, install_host, make_clone_host, open_pool
from tests.hosts import Collected, TestHost, needs_root
from tests.oracle import open_territory, watch_leaks

pytestmark = [needs_root, pytest.mark.root]

LIMIT_S = 120.0


@pytest.fixture
def territory() -> Iterator[Territory]:
    with open_territory() as found, watch_leaks(found):
        yield found


async def test_a_waiting_machine_whose_keeper_gives_no_answer_costs_its_job_a_cold_boot(territory: Territory) -> None:
    layout = HostLayout(territory.state_root, territory.runtime_dir, uid_base=territory.uid_base)
    host = make_clone_host(layout, install_host(territory.state_root))
    with trio.fail_after(LIMIT_S):
        await build_clone_template(host)
        async with open_pool(host, "1x256x2048 prespawned=1") as pooled:
            assert pooled.reserve is not None
            member = pooled.reserve.waiting[0]
            assert member.record.value.keeper is not None
            os.kill(member.record.value.keeper.pid, signal.SIGSTOP)
            order = TestHost(pooled, territory, find_image(layout)).order("true", sink=Collected())
            with open_local_lease() as lease:
                outcome = await run_machine(pooled, order, lease)
    assert (outcome.vm, outcome.ending, outcome.boots, outcome.clean) == (member.plan.vm, Ending.DONE, 2, True)
    assert "load" not in outcome.phases_ms
