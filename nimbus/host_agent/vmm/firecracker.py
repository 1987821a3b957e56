"""Firecracker under its jailer: the backend for hosts with KVM.

The jailer is started by the keeper and leaves Firecracker behind, which is configured over its API call by call; what
it says when it refuses reaches people as it is. Nothing is believed of the jail before /proc says it, and a load that
failed is the end of its process. Which release knows which call is wire/firecracker.py's.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import structlog
import trio

from nimbus.host import process
from nimbus.host.chroots import find_chroot
from nimbus.host_agent import jailer, metrics
from nimbus.host_agent.jailer import SecurityAlarm, check_jail
from nimbus.host_agent.keeper import KeeperGone
from nimbus.host_agent.lane import in_thread
from nimbus.host_agent.plan import VmPlan
from nimbus.host_agent.vmm.fcapi import ApiClient, CallLimits
from nimbus.host_agent.vmm.fcexits import NAME
from nimbus.host_agent.vmm.machine import Boot, LaunchSpec, Machine, Memory, SavedState
from nimbus.host_agent.vmm.sockets import connect_unix
from nimbus.model.errors import HostFault, Unavailable
from nimbus.model.record import ProcessId
from nimbus.wire import firecracker as api
from nimbus.wire.fcanswers import parse_connected
from nimbus.wire.firecracker import ApiCall, Drive, Nic, Restore, Version

log = structlog.get_logger()

# Firecracker's own line but for two words: our guests load modules, and their console is what a panic is read from.
KERNEL_LINE = (
    "reboot=k panic=-1 i8042.noaux i8042.nomux i8042.dumbkbd swiotlb=noforce pci=off "
    "console=ttyS0 quiet loglevel=1 random.trust_cpu=on cryptomgr.notests"
)
OLDEST, NEWEST = Version(1, 13), Version(2, 0)  # snapshots are no preview any more; and nobody knows what 2 will change
GUEST_CID = 3  # the same in every clone: the socket's path tells them apart
GUEST_PORT = 1024  # nimbus-init listens there
NIC, ROOT, OVERLAY = "net", "root", "overlay"
READY_LIMIT_S = 15.0
VSOCK_LIMIT_S = 5.0  # Firecracker gives a guest 2 s to take a connection
_VSOCK_WORD_BYTES = 32
_VCPU = "fc_vcpu "


class Firecracker:
    """See the module."""

    name = NAME
    needs_guest_files = True
    can_restore = True
    can_rehearse = False  # release 1.16 loses its vsock to a bare pause and resume (upstream 6100)
    memory_file: str | None = None

    def __init__(
        self, limits: CallLimits | None = None, *, ready_s: float = READY_LIMIT_S, kernel_line: str = KERNEL_LINE
    ) -> None:
        self._limits, self._ready_s = limits, ready_s
        self._kernel_line = kernel_line  # another for another guest than ours

    def describe(self, plan: VmPlan, boot: Boot) -> LaunchSpec:
        """Pure: the jailer's command line, and what its VMM is asked before it runs."""
        return LaunchSpec(
            argv=jailer.plan_jailer(plan, boot),
            pid_file=jailer.plan_pid_file(plan, boot),
            calls=tuple(f"{call} {api.render_body(call).decode()}" for call in plan_boot(plan, self._kernel_line)),
        )

    async def spawn(self, machine: Machine, boot: Boot) -> None:
        """The API answers as the instance that was started, in a release that we know, from inside its jail."""
        root = jailer.plan_root(machine.plan, boot)
        client = self._client(root)
        await client.wait_ready(machine.plan.object, self._ready_s)
        check_version(await client.version())
        await _check(machine, root, filtered=False)

    async def load(self, machine: Machine, boot: Boot) -> None:
        """Memory and devices of the template, on this VM's tap and disk. What came up is what was asked for."""
        root = jailer.plan_root(machine.plan, boot)
        client = self._client(root)
        restore = Restore(f"/{jailer.STATE}", f"/{jailer.MEMORY}", {NIC: machine.plan.net.tap})
        call = api.load_snapshot(restore)
        api.check_call(call, await client.version())
        failed = await _try_load(client, call, machine.plan)
        if failed is not None:
            await machine.keeper.kill("load-failed")  # it ends by itself; one that does not is of no use either
            raise HostFault(str(failed)) from failed
        await client.ask(api.put_metadata(plan_metadata(machine.plan)))  # no template holds any
        await _check(machine, root, filtered=True)

    async def run(self, machine: Machine, boot: Boot) -> None:
        """Configure and start; or resume what was loaded."""
        root = jailer.plan_root(machine.plan, boot)
        client = self._client(root)
        if boot.memory is Memory.TEMPLATE:
            await client.ask(api.resume_vm())
            return
        version = await client.version()
        for call in plan_boot(machine.plan, self._kernel_line):
            api.check_call(call, version)
            await client.ask(call)
        await _check(machine, root, filtered=True)

    async def vcpu_threads(self, machine: Machine) -> tuple[int, ...]:
        """They are named by their vCPU."""
        identity = await _identify(machine)
        return await in_thread(partial(find_vcpus, identity))

    async def pause(self, machine: Machine) -> None:
        """See the protocol. Release 1.16 loses its vsock to a bare pause and resume (upstream 6100): save, then end."""
        await (await self._find(machine.plan)).ask(api.pause_vm())

    async def save(self, machine: Machine, boot: Boot) -> SavedState:
        """Firecracker writes both files itself, into its chroot."""
        if boot.memory is not Memory.KEPT:
            raise HostFault(f"VM {machine.plan.vm}: it may not write a file as large as its memory")
        root = jailer.plan_root(machine.plan, boot)
        await self._client(root).ask(api.create_snapshot(f"/{jailer.SAVED_STATE}", f"/{jailer.SAVED_MEMORY}"))
        return SavedState(root / jailer.SAVED_MEMORY, root / jailer.SAVED_STATE)

    async def connect_guest(self, plan: VmPlan) -> trio.SocketStream:
        """Through Firecracker's vsock to the port of nimbus-init."""
        root = await in_thread(partial(find_chroot, plan.jails, plan.object))
        if root is None:
            raise FileNotFoundError(f"VM {plan.vm} has no chroot")
        return await open_vsock(root / jailer.VSOCK_SOCKET, GUEST_PORT)

    def _client(self, root: Path) -> ApiClient:
        return ApiClient(root / jailer.API_SOCKET, self._limits)

    async def _find(self, plan: VmPlan) -> ApiClient:
        """Of a machine that maybe an earlier agent started, with a binary of another name."""
        root = await in_thread(partial(find_chroot, plan.jails, plan.object))
        if root is None:
            raise HostFault(f"VM {plan.vm} has no chroot below {plan.jails}")
        return self._client(root)


def plan_boot(plan: VmPlan, kernel_line: str = KERNEL_LINE) -> tuple[ApiCall, ...]:
    """Pure: all calls of a cold start, in their order; the last one starts the guest."""
    return (
        api.set_machine(plan.shape.cpus, plan.shape.mem_mib),
        api.set_boot(f"/{jailer.KERNEL}", kernel_line, f"/{jailer.INITRAMFS}"),
        *(api.set_drive(drive) for drive in plan_drives()),
        api.set_nic(Nic(NIC, plan.net.tap, plan.net.mac)),
        api.set_metadata_service([NIC]),
        api.put_metadata(plan_metadata(plan)),
        api.set_vsock(GUEST_CID, f"/{jailer.VSOCK_SOCKET}"),
        api.set_entropy(),
        api.start_instance(),
    )


def plan_drives() -> tuple[Drive, ...]:
    """Pure: in the order in which the guest finds them."""
    return (
        Drive(ROOT, f"/{jailer.ROOTFS}", read_only=True, root=True),
        Drive(OVERLAY, f"/{jailer.OVERLAY}", read_only=False),
    )


def plan_metadata(plan: VmPlan) -> Mapping[str, object]:
    """Pure: what every process in the guest may ask for; so no secret is ever in it."""
    return {"nimbus": {"vm": str(plan.vm), "image": plan.image}}


def check_version(version: Version) -> None:
    """HostFault for a release that this agent does not know."""
    if not OLDEST <= version < NEWEST:
        raise HostFault(
            f"this host runs Firecracker {version}, and Nimbus drives {OLDEST} and later, below {NEWEST}: "
            "`nimbus assets fetch` installs one, or name another by NIMBUS_FC_BIN"
        )


def check_config(plan: VmPlan, config: Mapping[str, object]) -> None:
    """HostFault where what a template brought up is not the VM that was planned."""
    match config:
        case {"machine-config": {"vcpu_count": int(cpus), "mem_size_mib": int(mem_mib)}, "drives": list(drives)}:
            found = {drive.get("drive_id"): drive.get("path_on_host") for drive in drives if isinstance(drive, dict)}
            wanted = {drive.name: drive.path for drive in plan_drives()}
            if (cpus, mem_mib) == (plan.shape.cpus, plan.shape.mem_mib) and found == wanted:
                return
    raise HostFault("the template's machine is not the one that was planned: other vCPUs, memory or disks came up")


async def open_vsock(path: Path, port: int) -> trio.SocketStream:
    """A stream to a port of the guest. OSError where nobody listens there yet, HostFault for a strange answer."""
    with trio.move_on_after(VSOCK_LIMIT_S):
        stream = await connect_unix(path)
        try:
            await _shake_hands(stream, port)
        except BaseException:
            stream.socket.close()
            raise
        return stream
    raise TimeoutError(f"no answer to CONNECT {port} in {VSOCK_LIMIT_S:g} s")


async def _shake_hands(stream: trio.SocketStream, port: int) -> None:
    try:
        await stream.send_all(api.render_connect(port))
        line = b""
        while not line.endswith(b"\n") and len(line) < _VSOCK_WORD_BYTES:
            byte = await stream.receive_some(1)  # what follows the line is the guest's
            if not byte:
                raise ConnectionRefusedError(f"the guest does not listen on port {port}")
            line += byte
    except trio.BrokenResourceError as error:
        raise ConnectionRefusedError(f"the guest does not listen on port {port}") from error
    parse_connected(line)


async def _try_load(client: ApiClient, call: ApiCall, plan: VmPlan) -> HostFault | None:
    try:
        await client.ask(call)
        check_config(plan, await client.config())
    except HostFault as error:
        return error
    return None


def find_vcpus(identity: ProcessId) -> tuple[int, ...]:
    """Thread ids of the vCPUs, vCPU 0 first; none where the process has none, or has ended."""
    found: dict[int, int] = {}
    try:
        for task in os.listdir(f"/proc/{identity.pid}/task"):
            name = Path(f"/proc/{identity.pid}/task/{task}/comm").read_text().rstrip("\n")
            if name.startswith(_VCPU) and name.removeprefix(_VCPU).isdecimal():
                found[int(name.removeprefix(_VCPU))] = int(task)
    except (FileNotFoundError, ProcessLookupError):
        return ()
    return tuple(found[number] for number in sorted(found)) if process.is_alive(identity) else ()


async def _check(machine: Machine, root: Path, *, filtered: bool) -> None:
    """Raise SecurityAlarm, and kill, where the VMM is not jailed as it was to be."""
    identity = await _identify(machine)
    alarm = await in_thread(partial(_look, identity, machine.plan, root, filtered))
    if alarm is not None:
        metrics.count_alarm()
        log.error("security.alarm", vm=str(machine.plan.vm), error=str(alarm))
        await machine.keeper.kill("security-alarm")
        raise alarm


def _look(identity: ProcessId, plan: VmPlan, root: Path, filtered: bool) -> SecurityAlarm | None:
    """What is wrong with that very process: one that ends meanwhile may leave its pid to another."""
    try:
        check_jail(identity.pid, plan, root, filtered=filtered)
    except (SecurityAlarm, ProcessLookupError) as error:
        if isinstance(error, SecurityAlarm) and process.is_alive(identity):
            return error
        raise HostFault("the VMM ended while its jail was looked at") from error
    return None


async def _identify(machine: Machine) -> ProcessId:
    try:
        return await machine.keeper.vmm_identity()
    except KeeperGone as error:
        raise HostFault("the VMM has ended") from error
    except Unavailable as error:
        raise HostFault(str(error)) from error
