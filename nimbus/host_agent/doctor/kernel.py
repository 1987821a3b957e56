"""What the kernel and the machine give: rights, cgroups, network, nftables, reflinks, KVM, limits and clocks.

Whatever can be tried is tried on throw-away objects (nimbus.host.probes); a file that exists proves little.
Called by rounds.py.
"""

from __future__ import annotations

import errno
import os
import re
import resource
import time
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

from nimbus.host import caps, cgroup, conntrack, kvm, nft, probes
from nimbus.host.kvm import Kvm, KvmVerdict
from nimbus.host_agent.doctor.finding import Finding, Patient, broken, degraded, ok
from nimbus.host_agent.network import plan_network, render_host_rules, render_netns_rules
from nimbus.host_agent.sight.presence import find_agent
from nimbus.model.errors import HostFault
from nimbus.model.ids import new_vm_id, object_name
from nimbus.model.vm import Slot

OLDEST_KERNEL = (5, 14)  # cgroup.kill
FDS_PER_MACHINE = 16  # keeper, guest link, record, spool and console, with room to spare
FDS_OF_AGENT = 256
SLOW_CREATE_MS = 10.0  # a tenth of what a start may take in all; without the delay below it is well under one
_NOBODYS = IPv4Address("192.0.2.1")  # of the range for documentation: no host's, so nothing real is forgotten
_V2_ONLY = "boot with cgroup v2 alone (kernel parameter cgroup_no_v1=all, or systemd.unified_cgroup_hierarchy=1)"
_OLDEST_CLOCK = 1_700_000_000  # Unix seconds of November 2023: before this release was made

_UNSAFE = "guests run under software emulation: slow, and no security boundary"
_SLOW_CREATE = (
    "mount -o remount,favordynmods /sys/fs/cgroup (and so in fstab); where"
    " /sys/devices/system/cpu/vulnerabilities/itlb_multihit says `Not affected`, the kernel parameter"
    " kvm.nx_huge_pages=never too"
)
_KVM_REMEDIES = {
    KvmVerdict.EMULATED: "take a host of bare metal, or a VM with nested virtualisation, and load kvm_intel or kvm_amd",
    KvmVerdict.UNUSABLE: "see the kernel's log: dmesg | grep -i kvm; then modprobe kvm_intel || modprobe kvm_amd",
    KvmVerdict.ABSENT: "turn virtualisation on in the firmware (or nested, in a VM), then: modprobe kvm_intel"
    " || modprobe kvm_amd",
    KvmVerdict.DENIED: "run as root, or let this container have the device /dev/kvm",
}

# What a VM does to its neighbours where the controller is missing.
_CONTROLLERS = {
    "cpu": "a VM can take more CPU time than its shape says",
    "memory": "a VMM that leaks is not killed alone: the host's OOM killer chooses",
    "pids": "a VMM can fill the host's process table",
}
# What is done without these: each is asked for by a setting, or has something else in its place.
_SPARED = {
    "io": "NIMBUS_VM_IO_BPS and NIMBUS_VM_IO_IOPS would be refused here",
    "cpuset": "VMs with CPUs of their own are kept to them by affinity, and their memory comes from any node",
}


def check_kernel(_: Patient) -> Iterator[Finding]:
    yield judge_kernel(os.uname().release)


def judge_kernel(release: str) -> Finding:
    """Pure: whether this kernel is new enough."""
    found = re.match(r"(\d+)\.(\d+)", release)
    version = (int(found[1]), int(found[2])) if found else (0, 0)
    if version >= OLDEST_KERNEL:
        return ok("kernel", f"Linux {release}")
    wanted = ".".join(map(str, OLDEST_KERNEL))
    detail = f"Linux {release} has no cgroup.kill: keepers could not end their VMs at once"
    return broken("kernel", detail, f"install Linux {wanted} or newer")


def check_privileges(patient: Patient) -> Iterator[Finding]:
    missing = caps.missing_for_vm(qemu=patient.vmm not in {"fake", "firecracker"})
    for sentence in missing:
        yield broken("privileges", "what a VM takes is missing here", sentence)
    if not missing:
        yield ok("privileges", "every capability, tool and device that a VM takes is here")


def check_cgroups(patient: Patient) -> Iterator[Finding]:
    with probes.open_cgroup() as folder:
        yield ok("cgroup", f"v2 is mounted at {cgroup.cgroup_mount()}, and a cgroup could be made")
        for controller, harm in _CONTROLLERS.items():
            must = "NIMBUS_REQUIRE_LIMITS wants every VM limited" if patient.layout.require_limits else ""
            yield _try_controller(controller, folder, harm=harm, must=must)
        for controller, instead in _SPARED.items():
            must = "NIMBUS_VM_IO_BPS or NIMBUS_VM_IO_IOPS is set" if controller == "io" and patient.layout.io else ""
            yield _try_controller(controller, folder, harm=instead, must=must, spared=True)
        probes.kill_in(folder)
        yield ok("cgroup-kill", "a process was ended by cgroup.kill")


def _try_controller(controller: str, folder: Path, *, harm: str, must: str, spared: bool = False) -> Finding:
    name = f"cgroup-{controller}"
    try:
        if not probes.is_offered(controller):
            raise OSError(errno.ENODEV, "not offered by cgroup v2: absent, or bound to v1")
        probes.try_controller(controller, folder)
    except OSError as error:
        if must:
            return broken(name, f"{error.strerror}; {must}", _V2_ONLY)
        if spared:
            return ok(name, f"{error.strerror}; {harm}")
        return degraded(name, f"{error.strerror}; {harm}", _V2_ONLY)
    return ok(name, "can be handed down to a VM's cgroup")


def check_network(patient: Patient) -> Iterator[Finding]:
    """The objects of a VM's network, and its very rules, loaded where they touch nobody: in the namespace."""
    layout = patient.layout
    plan = plan_network(
        object_name(layout.root_id, new_vm_id()),
        Slot(0, layout.uid_base, layout.uid_base, 3),
        subnet=layout.subnet,
        tap_prefix=layout.tap_prefix,
        host_ports=layout.host_ports,
        nameserver=layout.nameserver,
    )
    with probes.open_network() as path:
        yield ok("network", "a namespace, a veth pair and a tap were made")
        try:
            nft.apply_ruleset(render_host_rules(plan), netns=path)
            nft.apply_ruleset(render_netns_rules(plan), netns=path)
        except HostFault as error:
            remedy = "apt-get install libnftables1; modprobe -a nf_tables nft_chain_nat nft_ct nft_masq"
            yield broken("nft", f"{error}: no VM starts without its firewall", remedy)
        else:
            yield ok("nft", "a VM's firewall rules were taken by the kernel")


def check_conntrack(_: Patient) -> Iterator[Finding]:
    try:
        conntrack.flush_connections(_NOBODYS)
    except HostFault as error:
        detail = f"{error}: a slot's next tenant could inherit them, so slots are not given back"
        yield broken("conntrack", detail, "modprobe -a nf_conntrack nf_conntrack_netlink (Linux 5.8 or newer)")
    else:
        yield ok("conntrack", "tracked connections of one address can be forgotten")


def check_reflink(patient: Patient) -> Iterator[Finding]:
    folder = existing(patient.layout.state)
    if probes.can_reflink(folder):
        yield ok("reflink", f"files in {folder} share their blocks (FICLONE)")
    else:
        detail = f"{folder} cannot share blocks between files: each VM's disk is a copy, which takes time and room"
        yield degraded("reflink", detail, "put NIMBUS_STATE_DIR on XFS (mkfs.xfs -m reflink=1) or btrfs")


def existing(folder: Path) -> Path:
    """The folder itself, or the nearest one above it that is there: a first start has not made it yet."""
    return next(place for place in (folder, *folder.parents) if place.exists())


def check_kvm(patient: Patient) -> Iterator[Finding]:
    """Tried anew each time: what an agent remembers may be older than what an operator has just mended."""
    yield judge_kvm(kvm.probe_kvm(), needed=patient.accel == "kvm" or patient.vmm == "firecracker")


def judge_kvm(found: Kvm, *, needed: bool) -> Finding:
    """Pure: what a guest that was booted on it proved. `needed`: the settings allow nothing else."""
    told = f"{found.verdict}: {found.why}"
    if found.create_vm_ms is not None:
        told = f"{told}; KVM_CREATE_VM took {found.create_vm_ms:.1f} ms"
    if found.verdict is KvmVerdict.HARDWARE:
        if found.create_vm_ms is not None and found.create_vm_ms > SLOW_CREATE_MS:
            return degraded("kvm", f"{told}, of which every boot and restore pays the whole", _SLOW_CREATE)
        return ok("kvm", told)
    bad = broken if needed else degraded
    return bad("kvm", f"{told}; {_UNSAFE}", _KVM_REMEDIES[found.verdict])


def check_descriptors(patient: Patient) -> Iterator[Finding]:
    """Of the agent where one runs, else of this shell, from which one may be started."""
    agent = find_agent(patient.layout.state)
    pid = agent.pid if agent else os.getpid()
    soft, _ = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    yield judge_descriptors(soft, patient.layout.slot_limit, f"agent {pid}" if agent else "this shell")


def judge_descriptors(soft: int, slots: int, whose: str) -> Finding:
    """Pure: whether so many descriptors do for so many VMs."""
    wanted = FDS_OF_AGENT + FDS_PER_MACHINE * slots
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return ok("descriptors", f"{whose} may open {'any number' if soft == resource.RLIM_INFINITY else soft} files")
    detail = f"{whose} may open {soft} files; {slots} VMs at once take up to {wanted}"
    return degraded(
        "descriptors", detail, f"LimitNOFILE={wanted} in the unit, or: ulimit -n {wanted}; or fewer NIMBUS_VM_SLOTS"
    )


def check_clocks(_: Patient) -> Iterator[Finding]:
    monotonic = time.clock_gettime(time.CLOCK_MONOTONIC)
    yield judge_clocks(monotonic, time.clock_gettime(time.CLOCK_BOOTTIME), time.time())


def judge_clocks(monotonic_s: float, boottime_s: float, unix_s: float) -> Finding:
    """Pure: leases end by CLOCK_BOOTTIME, tokens and TLS by the wall clock."""
    if boottime_s < monotonic_s:
        return broken(
            "clocks", "CLOCK_BOOTTIME is behind CLOCK_MONOTONIC: a lease would end too late", "reboot the host"
        )
    if unix_s < _OLDEST_CLOCK:
        return broken("clocks", "the wall clock is years behind: tokens and TLS fail", "timedatectl set-ntp true")
    slept_s = boottime_s - monotonic_s
    return ok("clocks", f"in order; this host was suspended for {slept_s:.0f} s since its boot")
