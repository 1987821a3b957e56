"""A Firecracker outlives the agent that started it, and the next one takes it over or clears it away."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from nimbus.host import process
from nimbus.host.inventory import leftovers
from nimbus.host_agent.ledger import Ledger
from nimbus.host_agent.plan import replan
from nimbus.host_agent.reaper import reap
from nimbus.host_agent.vmm.machine import find_machine
from nimbus.model.ids import VmId
from tests.firecracker.bench import LIMIT_S, Bench, wait_printed

pytestmark = pytest.mark.root

CHECKOUT = Path(__file__).parents[2]
AGENT = """
import sys
from pathlib import Path
import trio
from nimbus.host.inventory import Territory
from tests.firecracker.leaving import leave_a_machine
trio.run(leave_a_machine, Territory(Path(sys.argv[1]), Path(sys.argv[2])))
"""


def run_agent_to_its_death(bench: Bench) -> VmId:
    """The VM that an agent left when it was killed."""
    territory = bench.territory
    words = [sys.executable, "-c", AGENT, str(territory.state_root), str(territory.runtime_dir)]
    choice = bench.host.choice
    programs = {"NIMBUS_FC_BIN": str(choice.binary), "NIMBUS_JAILER_BIN": str(choice.jailer)}
    with subprocess.Popen(words, stdout=subprocess.PIPE, cwd=CHECKOUT, env=os.environ | programs) as agent:
        assert agent.stdout is not None
        try:
            said = next((line for line in agent.stdout if line.startswith(b"{")), b"")  # the others are its log
        finally:
            agent.kill()
    return VmId(json.loads(said)["vm"])


def forget(bench: Bench, vm: VmId) -> None:
    """The record is lost."""
    for path in bench.host.layout.ledger.iterdir():
        if str(vm) in path.name:
            path.unlink()


async def test_the_next_agent_finds_the_vmm_and_its_api_where_the_killed_one_left_them(bench: Bench) -> None:
    vm = await trio.to_thread.run_sync(run_agent_to_its_death, bench)
    layout = bench.host.layout
    with trio.fail_after(LIMIT_S):
        value = Ledger(layout.ledger).read(vm)
        assert value is not None
        assert value.keeper is not None
        assert value.slot is not None
        plan = replan(layout, vm, backend=value.backend, stored=value.plan, slot=value.slot)
        async with find_machine(bench.vmm, plan, value.keeper) as machine:
            vmm = await machine.keeper.vmm_identity()
            assert process.is_alive(vmm)
            await wait_printed(machine, "nimbus-probe: tick")
            assert len(await bench.vmm.vcpu_threads(machine)) == 1
            await bench.vmm.pause(machine)
            assert await trio.to_thread.run_sync(leftovers, bench.territory) != ()
        report = await reap(layout, living=True)
        assert report.reaped == [str(vm)]
        assert not process.is_alive(vmm)
        assert await trio.to_thread.run_sync(leftovers, bench.territory) == ()


async def test_what_no_record_speaks_of_is_swept_by_its_name(bench: Bench) -> None:
    vm = await trio.to_thread.run_sync(run_agent_to_its_death, bench)
    forget(bench, vm)
    with trio.fail_after(LIMIT_S):
        report = await reap(bench.host.layout, living=True)
    assert report.reaped == [str(vm)]
    assert await trio.to_thread.run_sync(leftovers, bench.territory) == ()
