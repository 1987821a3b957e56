"""The fake: nimbus-init as an ordinary process of this host, for tests and rehearsals. No guest, no isolation.

It speaks the guest link for real, lives under a real keeper in a real cgroup, and a real netns, veth, tap, rules and
disk are made for it, so everything but the machine itself is the production path. It uses none of them: its process
stays in the host's own netns. `auto` never picks it. The command runs as whoever runs the agent.
"""

from __future__ import annotations

import trio

from nimbus.host_agent.plan import VmPlan
from nimbus.host_agent.vmm.machine import Boot, KeeperTerms, LaunchSpec, Machine, open_machine
from nimbus.wire.keeper import VmmExit


class Fake:
    """See the module."""

    name = "fake"
    needs_guest_files = False

    def describe(self, plan: VmPlan, boot: Boot) -> LaunchSpec:
        """Pure: the guest's own PID 1 in its host double mode, with counters that a rehearsal of OOM can raise."""
        vmstat = plan.paths.run / "vmstat"
        return LaunchSpec(argv=(str(boot.binary), "--host-double", str(plan.paths.link), str(vmstat)), jailed=False)

    async def launch(
        self, plan: VmPlan, boot: Boot, terms: KeeperTerms, *, task_status: trio.TaskStatus[Machine]
    ) -> VmmExit:
        """Start the double under a keeper; return when it is gone."""
        async with open_machine(plan, self.describe(plan, boot), terms) as machine:
            task_status.started(machine)
            return await machine.wait_gone()
