"""A guest that ends before it says hello, through the whole lifecycle: each boot has a chroot of its own."""

from __future__ import annotations

import pytest
import trio

from nimbus.cli.run import open_local_lease
from nimbus.host_agent.keeper import connect_keeper
from nimbus.host_agent.ledger import Ledger
from nimbus.host_agent.life import Outcome
from nimbus.host_agent.lifecycle import run_machine
from nimbus.host_agent.plan import HostLayout
from nimbus.host_agent.serve import BOOT_ATTEMPTS
from nimbus.model.record import ProcessId
from nimbus.model.vm import Ending
from tests.firecracker.bench import LIMIT_S, Bench
from tests.hosts import Collected, TestHost

pytestmark = pytest.mark.root


async def wait_booted(layout: HostLayout, before: ProcessId | None) -> tuple[str, ProcessId]:
    """The VM's id and the keeper of its next boot, once that is up. The ledger signals nothing, so this asks again."""
    ledger = Ledger(layout.ledger)
    while True:
        for vm in ledger.vms():
            record = ledger.read(vm)
            if record is not None and record.session is not None and record.keeper not in (None, before):
                assert record.keeper is not None
                return str(vm), record.keeper
        await trio.sleep(0.01)


async def kill_each_boot(layout: HostLayout) -> None:
    keeper = None
    for _ in range(BOOT_ATTEMPTS):
        vm, keeper = await wait_booted(layout, keeper)
        async with await connect_keeper(layout.state / "vms" / vm, keeper) as connected:
            await connected.kill("test")


async def run(bench: Bench) -> Outcome:
    host = TestHost(bench.host, bench.territory, bench.image)
    outcomes = []
    with trio.fail_after(LIMIT_S), open_local_lease() as lease:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(kill_each_boot, bench.host.layout)
            outcomes.append(await run_machine(bench.host, host.order("true", sink=Collected()), lease))
            nursery.cancel_scope.cancel()
    return outcomes[0]


async def test_a_boot_that_ends_early_is_tried_again_in_a_new_chroot_and_given_up_by_name(bench: Bench) -> None:
    outcome = await run(bench)
    assert (outcome.ending, outcome.boots, outcome.clean) == (Ending.HOST_FAULT, BOOT_ATTEMPTS, True)
    assert f"never said hello in {BOOT_ATTEMPTS} boots" in outcome.cause
