"""What a microVM is: its shape, its slot on the host, its network and the command it runs. Values only."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

from nimbus.model.errors import Refused

MIN_MEM_MIB = 96  # below this Debian's cloud kernel and its initramfs do not reach PID 1 (measured with QEMU 7.2)
MAX_CPUS = 64
DEFAULT_GRACE_S = 30.0  # NIMBUS_VM_SHUTDOWN_GRACE of the documents


@dataclass(frozen=True)
class Shape:
    """What a machine request asks of a host."""

    cpus: int = 1
    mem_mib: int = 256
    disk_mib: int = 2048

    def __post_init__(self) -> None:
        if not 1 <= self.cpus <= MAX_CPUS:
            raise Refused(f"cpus={self.cpus}: between 1 and {MAX_CPUS} are possible")
        if self.mem_mib < MIN_MEM_MIB:
            raise Refused(f"memory of {self.mem_mib} MiB is below the {MIN_MEM_MIB} MiB that a guest needs to boot")
        if self.disk_mib < 16:
            raise Refused(f"disk of {self.disk_mib} MiB is below the 16 MiB that an overlay needs")


@dataclass(frozen=True)
class Slot:
    """One of the host's places for a VM, claimed host-wide: its index decides addresses, uid and CID."""

    index: int
    uid: int
    gid: int
    cid: int


@dataclass(frozen=True)
class HostPort:
    """One host service that guests may reach: `gateway:port` in the guest, `target:target_port` on the host."""

    port: int
    target: IPv4Address
    target_port: int


@dataclass(frozen=True)
class NetPlan:
    """Names and addresses of one VM's network. The tap and the guest's side are the same in every netns."""

    name: str  # netns, veth on the host and nft table: `nb<3 hex>-<8 hex>`
    tap: str  # inside the netns
    peer: str  # the veth's end inside the netns
    uplink_host: IPv4Interface  # the veth's address on the host, /30
    uplink_peer: IPv4Interface  # the veth's address inside the netns, same /30
    gateway: IPv4Interface  # the tap's address: the guest's gateway and the address of all host services
    guest: IPv4Interface
    mac: str
    tap_uid: int
    tap_gid: int
    subnet: IPv4Network  # where the uplinks of all VMs lie; a guest reaches no neighbour's
    host_ports: tuple[HostPort, ...] = ()
    nameserver: IPv4Address | None = None  # asked on behalf of the guest, whose resolver is the gateway, port 53


@dataclass(frozen=True)
class Command:
    """What runs in the guest. `argv` is never joined into a shell line; `timeout_s` None means no limit."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict, repr=False)  # a job's secrets are in it
    cwd: str = "/"
    user: str = "root"
    timeout_s: float | None = None
    grace_s: float = DEFAULT_GRACE_S

    def __post_init__(self) -> None:
        if not self.argv or not self.argv[0]:
            raise Refused("a command needs at least one word")
        for word in (*self.argv, *self.env, *self.env.values(), self.cwd, self.user):
            if "\0" in word:
                raise Refused("a NUL byte cannot be part of a command, its environment, folder or user")
        for name in self.env:
            if not name or "=" in name:
                raise Refused(f"{name!r} is no environment variable name")
        if self.timeout_s is not None and not self.timeout_s > 0:
            raise Refused("timeout must be more than 0 seconds")


class ExitReason(enum.StrEnum):
    """Why the command in a guest ended, as nimbus-init saw it."""

    EXITED = "exited"  # by itself: code or signal say how
    TIMEOUT = "timeout"  # its own time limit
    STOPPED = "stopped"  # the host asked for it
    NOT_STARTED = "not_started"  # execve failed: code 126 or 127 as a shell would say


@dataclass(frozen=True)
class GuestExit:
    """How the command ended. Exactly one of `code` and `signal` is set."""

    code: int | None
    signal: int | None
    reason: ExitReason = ExitReason.EXITED
    message: str = ""
    oom_kills: int = 0  # processes that the guest's kernel killed for memory while the command ran

    @property
    def status(self) -> int:
        """One number as a shell gives it: the code, or 128 + signal; 124 for a timeout (as timeout(1) does)."""
        if self.reason is ExitReason.TIMEOUT:
            return 124
        if self.code is not None:
            return self.code
        return 128 + (self.signal or 0)


class Claim(enum.StrEnum):
    """Host resources of one VM, in the order of acquisition; torn down in reverse."""

    SLOT = "slot"
    NETWORK = "network"
    DISK = "disk"
    JAIL = "jail"
    CGROUP = "cgroup"
    VMM = "vmm"


class Ending(enum.StrEnum):
    """How a machine's life ended: one terminal word for each."""

    DONE = "done"  # the command ended with status 0
    FAILED = "failed"  # the command ended otherwise
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"
    OUT_OF_MEMORY = "out_of_memory"  # the guest's kernel, or the host for the VM's cgroup, killed for memory
    GUEST_CRASHED = "guest_crashed"  # the VM ended without an exit frame
    HOST_FAULT = "host_fault"  # it never got as far as running
    FENCED = "fenced"
    LOST = "lost"


@dataclass(frozen=True)
class Usage:
    """What one VM has used since its boot, as the host counts it. None: this host cannot count it."""

    cpu_ms: int | None = None
    memory_bytes: int | None = None  # now, the VMM's own included
    disk_bytes: int | None = None  # blocks its overlay holds on the host
    received_bytes: int | None = None  # by the guest
    sent_bytes: int | None = None
