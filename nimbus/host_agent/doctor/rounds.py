"""The doctor's round: every check in order, each to its end, whatever another one found.

Changes nothing that stays: a check that makes something removes it, and signals wait until it has. Called by
`nimbus doctor`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from nimbus.host import probes
from nimbus.host_agent.doctor import kernel, stock
from nimbus.host_agent.doctor.finding import Finding, Patient, Verdict, broken, degraded
from nimbus.model.errors import NimbusError

Check = Callable[[Patient], Iterator[Finding]]

CHECKS: dict[str, Check] = {
    "kernel": kernel.check_kernel,
    "privileges": kernel.check_privileges,
    "cgroup": kernel.check_cgroups,
    "network": kernel.check_network,
    "conntrack": kernel.check_conntrack,
    "reflink": kernel.check_reflink,
    "kvm": kernel.check_kvm,
    "vmm": stock.check_vmm,
    "programs": stock.check_programs,
    "image": stock.check_image,
    "disk": stock.check_disk,
    "memory": stock.check_memory,
    "descriptors": kernel.check_descriptors,
    "clocks": kernel.check_clocks,
    "slots": stock.check_slots,
    "name": stock.check_name,
    "ledger": stock.check_ledger,
    "leftovers": stock.check_leftovers,
    "agent": stock.check_agent,
}
ROOTS_ALONE = frozenset({"cgroup", "network", "conntrack", "leftovers"})
_REMEDIES = {
    "cgroup": "mount -t cgroup2 none /sys/fs/cgroup, as root of the host (not of a container without rights)",
    "network": "run as root of the host, with the modules tun and veth: modprobe -a tun veth",
}


def examine(patient: Patient) -> Iterator[Finding]:
    """Each finding as soon as its check is over."""
    is_root = os.geteuid() == 0
    if is_root:
        with probes.hold_signals():
            probes.sweep_probes()
    for name, check in CHECKS.items():
        if name in ROOTS_ALONE and not is_root:
            yield degraded(name, "not tried: it takes root", "sudo nimbus doctor")
            continue
        with probes.hold_signals():
            found = run_check(name, check, patient)
        yield from found


def run_check(name: str, check: Check, patient: Patient) -> list[Finding]:
    """What one check found; what it could not even look at is broken, and the others go on."""
    found: list[Finding] = []
    try:
        found.extend(check(patient))
    except (NimbusError, OSError) as error:
        told = str(error) if isinstance(error, NimbusError) else f"{type(error).__name__}: {error}"
        found.append(broken(name, told, _REMEDIES.get(name, "see the message")))
    return found


def worst(findings: list[Finding]) -> Verdict:
    """Pure: the verdict on the whole host."""
    order = list(Verdict)
    return max((finding.verdict for finding in findings), key=order.index, default=Verdict.OK)
