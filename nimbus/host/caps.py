"""What this host lacks to run microVMs, each as a sentence that says who must do what.

Reading and judging are apart: `judge` is pure. Never tries to mend anything. Called by cli/run.py,
host_agent/main.py and `nimbus doctor`.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from nimbus.host import cgroup, nft
from nimbus.model.errors import HostFault

# Numbers of include/uapi/linux/capability.h; what each is needed for is what a reader must know.
_NEEDED = {
    0: ("CAP_CHOWN", "give a VM's files to its uid"),
    1: ("CAP_DAC_OVERRIDE", "remove what a VM left"),
    5: ("CAP_KILL", "end a VM of another uid"),
    6: ("CAP_SETGID", "start a VM under its own gid"),
    7: ("CAP_SETUID", "start a VM under its own uid"),
    12: ("CAP_NET_ADMIN", "make links and firewall rules"),
    18: ("CAP_SYS_CHROOT", "jail a VM"),
    21: ("CAP_SYS_ADMIN", "make network and mount namespaces"),
}


@dataclass(frozen=True)
class HostFacts:
    """What was read from the host."""

    capabilities: int  # CapEff of /proc/self/status
    tools: frozenset[str]  # found on PATH
    has_tun: bool
    has_cgroup2: bool
    has_nftables: bool
    can_write_run: bool


_TOOLS = {
    "qemu-system-x86_64": "qemu-system-x86",
}
_QEMU = "qemu-system-x86_64"  # wanted by that backend alone: Firecracker's binaries are vmm/choice.py's to find


def missing_for_vm(*, qemu: bool = True) -> tuple[str, ...]:
    """One sentence for each thing that a VM needs and this process or host lacks; `qemu`: whether that is its VMM."""
    return judge(read_facts(), qemu=qemu)


def judge(facts: HostFacts, *, qemu: bool = True) -> tuple[str, ...]:
    """Pure: the sentences for these facts."""
    missing = []
    lacking = [
        f"{name} (to {purpose})" for number, (name, purpose) in _NEEDED.items() if not facts.capabilities >> number & 1
    ]
    if lacking:
        missing.append(f"run nimbus as root (sudo): this process lacks {', '.join(lacking)}")
    if not facts.has_cgroup2:
        missing.append("mount cgroup v2 (needs root): mount -t cgroup2 none /sys/fs/cgroup")
    if not lacking and not facts.can_write_run:
        missing.append("make /run writable: Nimbus keeps its slots in /run/nimbus and its namespaces in /run/netns")
    if not facts.has_tun:
        missing.append("give this host the device /dev/net/tun (needs root): modprobe tun")
    if not facts.has_nftables:
        missing.append(f"install the Debian package libnftables1 (needs root): {nft.LIBRARY} could not be loaded")
    missing += [
        f"install the Debian package {package} (needs root): {tool} was not found on PATH"
        for tool, package in _TOOLS.items()
        if tool not in facts.tools and (qemu or tool != _QEMU)
    ]
    return tuple(missing)


def read_facts() -> HostFacts:
    """What this process may do and what the host has."""
    try:
        cgroup.cgroup_mount()
        has_cgroup2 = True
    except HostFault:
        has_cgroup2 = False
    return HostFacts(
        capabilities=parse_capabilities(Path("/proc/self/status").read_text()),
        tools=frozenset(tool for tool in _TOOLS if shutil.which(tool)),
        has_tun=Path("/dev/net/tun").is_char_device(),
        has_cgroup2=has_cgroup2,
        has_nftables=nft.is_installed(),
        can_write_run=os.access("/run", os.W_OK),
    )


def parse_capabilities(status: str) -> int:
    """The effective set in the text of /proc/self/status."""
    return next((int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapEff:")), 0)
