"""An agent that is going to be killed: it starts one VM under a lease, says which, and waits for its end."""

from __future__ import annotations

import json
import sys
import time
from functools import partial

import trio

from nimbus.host.inventory import Territory
from nimbus.host_agent.build import build_vm
from nimbus.host_agent.lane import in_thread
from nimbus.host_agent.phases import Phases
from nimbus.host_agent.vmm.launch import launch_machine
from nimbus.host_agent.vmm.machine import KeeperTerms
from tests.firecracker.bench import SHAPE, find_programs, make_bench, open_record

LEASE_S = 300


async def leave_a_machine(territory: Territory) -> None:
    programs = find_programs()
    assert programs is not None
    bench = make_bench(territory, programs)
    deadline_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) + LEASE_S * 10**9
    async with open_record(bench) as record, trio.open_nursery() as nursery:
        plan, boot = await build_vm(bench.host, record, SHAPE, bench.image, Phases())
        launch = partial(launch_machine, bench.vmm, plan, boot, KeeperTerms(deadline_ns, None))
        machine = await nursery.start(launch)
        await in_thread(partial(record.change, keeper=machine.keeper.identity))
        sys.stdout.write(json.dumps({"vm": str(plan.vm)}) + "\n")
        sys.stdout.flush()
        await trio.sleep_forever()
