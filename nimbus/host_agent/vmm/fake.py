"""The fake: nimbus-init as an ordinary process of this host, for tests and rehearsals. No guest, no isolation.

It speaks the guest link for real, lives under a real keeper in a real cgroup, and a real netns, veth, tap, rules and
disk are made for it, so everything but the machine itself is the production path. It uses none of them: its process
stays in the host's own netns. `auto` never picks it. The command runs as whoever runs the agent.
"""

from __future__ import annotations

import trio

from nimbus.host_agent.plan import VmPlan
from nimbus.host_agent.vmm.machine import Boot, LaunchSpec, Machine, SavedState
from nimbus.host_agent.vmm.sockets import connect_unix
from nimbus.model.errors import HostFault


class Fake:
    """See the module."""

    name = "fake"
    needs_guest_files = False
    can_restore = False
    can_rehearse = False
    memory_file: str | None = None

    def describe(self, plan: VmPlan, boot: Boot) -> LaunchSpec:
        """Pure: the guest's own PID 1 in its host double mode, with counters that a rehearsal of OOM can raise."""
        vmstat = plan.paths.run / "vmstat"
        return LaunchSpec(argv=(str(boot.binary), "--host-double", str(plan.paths.link), str(vmstat)), jailed=False)

    async def spawn(self, machine: Machine, boot: Boot) -> None:
        """It runs from its first instant on."""

    async def load(self, machine: Machine, boot: Boot) -> None:
        """Never asked for: it has no memory to load."""
        raise HostFault("the fake VMM boots from no template")

    async def run(self, machine: Machine, boot: Boot) -> None:
        """It does."""

    async def vcpu_threads(self, machine: Machine) -> tuple[int, ...]:
        """None: it is a process like any other."""
        return ()

    async def pause(self, machine: Machine) -> None:
        """Never asked for."""
        raise HostFault("the fake VMM cannot be paused")

    async def save(self, machine: Machine, boot: Boot) -> SavedState:
        """Never asked for."""
        raise HostFault("the fake VMM saves no template")

    async def connect_guest(self, plan: VmPlan) -> trio.SocketStream:
        """The double listens where QEMU's port would."""
        return await connect_unix(plan.paths.link)
