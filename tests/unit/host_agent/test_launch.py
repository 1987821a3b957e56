"""In which steps a machine is brought up: which of them a backend is asked for, and which it never is."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import trio

from nimbus.host_agent.keeper import Keeper
from nimbus.host_agent.plan import HostLayout, plan_vm
from nimbus.host_agent.vmm.firecracker import Firecracker
from nimbus.host_agent.vmm.launch import bring_up
from nimbus.host_agent.vmm.machine import Boot, Machine, Memory, Stage
from nimbus.model.ids import new_vm_id
from nimbus.model.vm import Shape, Slot
from nimbus.wire.keeper import VmmExit


class LivingKeeper:
    """Of a VMM that never ends."""

    async def wait_exit(self) -> VmmExit:
        await trio.sleep_forever()
        raise AssertionError


class AskedFirecracker(Firecracker):
    """Notes what it was asked for, and does none of it."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    async def spawn(self, machine: Machine, boot: Boot) -> None:
        await self._note("spawn")

    async def load(self, machine: Machine, boot: Boot) -> None:
        await self._note("load")

    async def run(self, machine: Machine, boot: Boot) -> None:
        await self._note("run")

    async def pause(self, machine: Machine) -> None:
        await self._note("pause")

    async def _note(self, what: str) -> None:
        self.asked.append(what)
        await trio.lowlevel.checkpoint()


def make_machine(vmm: Firecracker) -> Machine:
    plan = plan_vm(
        HostLayout(Path("/state"), Path("/run")),
        new_vm_id(),
        shape=Shape(),
        image="base",
        backend=vmm.name,
        accel="kvm",
        slot=Slot(index=0, uid=200_000, gid=200_000, cid=3),
    )
    return Machine(plan, cast("Keeper", LivingKeeper()), vmm)


async def test_a_firecracker_that_waits_warm_runs_for_the_first_time_with_its_job() -> None:
    """Release 1.16 does not hear its host by vsock any more once it ran, was paused and runs again."""
    vmm = AskedFirecracker()
    machine = make_machine(vmm)
    boot = Boot(None, Path("/firecracker"), 0, memory=Memory.TEMPLATE)
    await bring_up(machine, boot, until=Stage.REHEARSED)
    assert vmm.asked == ["spawn", "load"]
    await bring_up(machine, boot, since=Stage.REHEARSED)
    assert vmm.asked == ["spawn", "load", "run"]
