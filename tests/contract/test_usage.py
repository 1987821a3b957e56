"""What a VM uses, counted from outside while it runs, and how a death for memory is rehearsed and seen for real."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest
import trio

from nimbus.cli.run import open_local_lease
from nimbus.host_agent.ledger import Ledger
from nimbus.host_agent.lifecycle import run_machine
from nimbus.host_agent.plan import VmPlan, replan
from nimbus.host_agent.usage import read_usage
from nimbus.model.vm import Shape, Usage
from tests.guests import count_boots
from tests.hosts import Collected, TestHost, make_host, needs_root
from tests.oracle import open_territory, watch_leaks

pytestmark = [needs_root, pytest.mark.root]

BACKENDS = ["fake", pytest.param("qemu", marks=pytest.mark.vm)]
LIMIT_S = 90.0
MIB = 2**20
SHAPE = Shape(mem_mib=128, disk_mib=128)


@pytest.fixture(params=BACKENDS)
def host(request: pytest.FixtureRequest) -> Iterator[TestHost]:
    with open_territory() as territory:
        made = make_host(territory, request.param)
        with watch_leaks(territory):
            yield made


def find_plan(host: TestHost) -> VmPlan:
    """The plan of this host's one VM, as its record tells it."""
    ledger = Ledger(host.host.layout.ledger)
    (vm,) = ledger.vms()
    record = ledger.read(vm)
    assert record is not None
    assert record.slot is not None
    return replan(host.host.layout, vm, backend=record.backend, stored=record.plan, slot=record.slot)


async def look_twice(host: TestHost, work: str) -> tuple[VmPlan, Usage, Usage]:
    """What a VM has used before and after its command did `work`."""
    out, seen = Collected(), list[tuple[VmPlan, Usage, Usage]]()
    script = f"echo idle; sleep 0.5; {work}; echo worked; sleep 1000"

    async def look(stop: trio.Event) -> None:
        await out.wait_for("idle")
        plan = find_plan(host)
        before = await trio.to_thread.run_sync(read_usage, plan)
        await out.wait_for("worked")
        seen.append((plan, before, await trio.to_thread.run_sync(read_usage, plan)))
        stop.set()

    with trio.fail_after(LIMIT_S), open_local_lease() as lease:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(look, lease.stop))
            outcome = await run_machine(
                host.host, host.order("sh", "-c", script, sink=out, shape=SHAPE, grace_s=1), lease
            )
    count_boots(host.host.choice.vmm.name, outcome.boots)
    return seen[0]


async def test_a_running_vm_uses_processor_memory_and_disk_and_a_gone_one_nothing(host: TestHost) -> None:
    plan, before, after = await look_twice(host, "n=0; while [ $n -lt 50000 ]; do n=$((n+1)); done")
    assert before.cpu_ms is not None
    assert after.cpu_ms is not None
    assert after.cpu_ms > before.cpu_ms
    assert after.memory_bytes is not None
    assert MIB < after.memory_bytes < 1024 * MIB
    assert after.disk_bytes is not None
    assert None not in {after.received_bytes, after.sent_bytes}
    assert await trio.to_thread.run_sync(read_usage, plan) == Usage()


@pytest.mark.parametrize("host", BACKENDS[1:], indirect=True)
async def test_what_a_guest_writes_and_sends_is_counted(host: TestHost) -> None:
    write = "head -c 4194304 /dev/urandom > /written && sync"
    send = "ping -c 1 -W 2 -s 1000 192.0.2.1 > /dev/null"  # an address of nobody: that it went out is enough
    _, before, after = await look_twice(host, f"{write}; {send}")
    assert before.disk_bytes is not None
    assert after.disk_bytes is not None
    assert after.disk_bytes - before.disk_bytes >= 4 * MIB
    assert before.sent_bytes is not None
    assert after.sent_bytes is not None
    assert after.sent_bytes - before.sent_bytes >= 1000
