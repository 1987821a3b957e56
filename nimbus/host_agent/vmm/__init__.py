"""The VMM protocol: what differs between QEMU, Firecracker and the fake, and nothing else.

`describe` is pure and says what to start; `launch` starts it under a keeper and runs until it is gone.
Network, disk, jail and logs are not the backend's business.
"""

from __future__ import annotations

from typing import Protocol

import trio

from nimbus.host_agent.plan import VmPlan
from nimbus.host_agent.vmm.machine import Boot, KeeperTerms, LaunchSpec, Machine
from nimbus.wire.keeper import VmmExit


class Vmm(Protocol):
    """One kind of VMM."""

    @property
    def name(self) -> str:
        """How records, settings and people call it."""
        ...

    @property
    def needs_guest_files(self) -> bool:
        """Whether kernel, root disk and network are used: false for the fake alone."""
        ...

    def describe(self, plan: VmPlan, boot: Boot) -> LaunchSpec:
        """Pure: argv, files wanted in the jail, devices and limits."""
        ...

    async def launch(
        self, plan: VmPlan, boot: Boot, terms: KeeperTerms, *, task_status: trio.TaskStatus[Machine]
    ) -> VmmExit:
        """Start the VM, hand over its Machine, and return how it ended. Raises HostFault."""
        ...
