"""The VMM protocol: what differs between Firecracker, QEMU and the fake, and nothing else.

`describe` is pure and says what to start; the other steps drive a machine whose VMM was started. In what order is
launch.py's business, the same for all. Network, disk, jail and logs are not the backend's business.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import trio

if TYPE_CHECKING:
    from nimbus.host_agent.plan import VmPlan
    from nimbus.host_agent.vmm.machine import Boot, LaunchSpec, Machine, SavedState


class Vmm(Protocol):
    """One kind of VMM. Each step raises HostFault with the VMM's own words where it refuses."""

    @property
    def name(self) -> str:
        """How records, settings and people call it."""
        ...

    @property
    def needs_guest_files(self) -> bool:
        """Whether kernel, root disk and network are used: false for the fake alone."""
        ...

    @property
    def can_restore(self) -> bool:
        """Whether it saves templates and boots from them."""
        ...

    @property
    def can_rehearse(self) -> bool:
        """Whether a guest that ran, was paused and runs again still hears its host."""
        ...

    @property
    def memory_file(self) -> str | None:
        """In the VM's run folder: where a machine has memory that is to be kept. None: it writes it when it saves."""
        ...

    def describe(self, plan: VmPlan, boot: Boot) -> LaunchSpec:
        """Pure: argv, files wanted in the jail, devices and limits."""
        ...

    async def spawn(self, machine: Machine, boot: Boot) -> None:
        """Wait until the VMM that was started answers, and check that it is what was asked for."""
        ...

    async def load(self, machine: Machine, boot: Boot) -> None:
        """Memory and devices of `boot.template`; the vCPUs stay paused. A machine that failed here is lost."""
        ...

    async def run(self, machine: Machine, boot: Boot) -> None:
        """Let the vCPUs run: a cold start, or what was loaded goes on."""
        ...

    async def vcpu_threads(self, machine: Machine) -> tuple[int, ...]:
        """Thread ids on this host, vCPU 0 first; none where there are none yet."""
        ...

    async def pause(self, machine: Machine) -> None:
        """Stop the vCPUs."""
        ...

    async def save(self, machine: Machine, boot: Boot) -> SavedState:
        """Memory and device state of a paused machine, as files in the VM's folder."""
        ...

    async def connect_guest(self, plan: VmPlan) -> trio.SocketStream:
        """A stream to the guest link. Raises OSError while the VMM or the guest has made none."""
        ...
