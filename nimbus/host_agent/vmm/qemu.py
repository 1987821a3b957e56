"""QEMU's microvm machine type: the portable backend, real guests even where there is no KVM.

Under TCG it is no security boundary (QEMU's own policy), and every run says so. Argument choices and
their reasons were measured on QEMU 7.2; see docs/decisions/0002-qemu-microvm.md.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import trio

from nimbus.host import process
from nimbus.host_agent.lane import in_thread
from nimbus.host_agent.plan import VmPlan
from nimbus.host_agent.vmm.machine import Boot, LaunchSpec, Machine, Memory, SavedState
from nimbus.host_agent.vmm.qmpclient import Monitor, open_monitor, opened
from nimbus.host_agent.vmm.sockets import connect_unix
from nimbus.model.errors import HostFault
from nimbus.wire.keeper import Bind
from nimbus.wire.qmp import parse_cpus, parse_migration, parse_status

KERNEL_LINE = "console=ttyS0 reboot=t panic=-1 quiet loglevel=1 random.trust_cpu=on cryptomgr.notests"
SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
# TCG emulates `rep movsb` byte by byte: without these two the kernel copies in words, and a boot is a tenth shorter.
CPU_MODELS = {"kvm": "host", "tcg": "max,erms=off,fsrm=off"}
LINK_PORT = "nimbus.link"
RAM = "ram"
MIGRATION_LIMIT_S = 60.0
# Memory stays where it is, in its file or its descriptor; the stream is the devices alone (63 KB, 2 to 18 ms).
SHARED = {"capabilities": [{"capability": "x-ignore-shared", "state": True}]}


class Qemu:
    """See the module."""

    name = "qemu"
    needs_guest_files = True
    can_restore = True
    can_rehearse = True
    memory_file: str | None = RAM

    def describe(self, plan: VmPlan, boot: Boot) -> LaunchSpec:
        """Pure: QEMU's argv and the read-only view of the host that it is given."""
        image = boot.image
        if image is None:
            raise HostFault(f"VM {plan.vm}: QEMU needs an image")
        devices: tuple[str, ...] = ("null", "urandom", "net/tun")
        if plan.accel == "kvm":
            devices = (*devices, "kvm")
        binds = (
            Bind("/usr", "/usr"),
            Bind("/lib", "/lib"),
            Bind("/lib64", "/lib64"),
            Bind(str(image.vmlinux), "/boot/kernel"),
            Bind(str(image.initramfs), "/boot/initramfs"),
            Bind(str(image.rootfs), "/boot/rootfs"),
            Bind(str(plan.paths.run), "/vm/run", writable=True),
            Bind(str(plan.paths.disk), "/vm/disk", writable=True),
        )
        overlay_bytes = plan.shape.disk_mib << 20
        return LaunchSpec(
            argv=self._argv(plan, boot),
            binds=binds,
            devices=devices,
            rlimits={"nofile": 1024, "fsize": overlay_bytes, "core": 0},
            keep_fds=() if boot.memory_fd is None else (boot.memory_fd,),
            proc=boot.memory_fd is not None,
        )

    def _argv(self, plan: VmPlan, boot: Boot) -> tuple[str, ...]:
        line = KERNEL_LINE
        if plan.accel == "tcg":
            # Without the rate the guest kernel can hang while it calibrates against the PIT (1 boot in 9 under load).
            line = f"{line} tsc_early_khz={boot.tsc_khz}"
        memory, backend = _plan_memory(plan, boot)
        return (
            str(boot.binary),
            *("-name", f"{plan.object},debug-threads=on"),
            *("-M", f"microvm,accel={plan.accel},acpi=on,rtc=on,pit=on,pic=on,x-option-roms=off,isa-serial=on{memory}"),
            *("-cpu", CPU_MODELS[plan.accel]),
            *("-smp", str(plan.shape.cpus), "-m", f"{plan.shape.mem_mib}M"),
            *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
            *("-kernel", "/boot/kernel", "-initrd", "/boot/initramfs", "-append", line),
            *("-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"),
            *("-device", "virtio-serial-device"),
            *("-chardev", "socket,id=link,path=/vm/run/link.sock,server=on,wait=off"),
            *("-device", f"virtserialport,chardev=link,name={LINK_PORT}"),
            *("-drive", "if=none,id=root,file=/boot/rootfs,format=raw,readonly=on,cache=unsafe"),
            *("-device", "virtio-blk-device,drive=root"),
            *("-drive", "if=none,id=overlay,file=/vm/disk/overlay.img,format=raw,cache=unsafe,discard=unmap"),
            *("-device", "virtio-blk-device,drive=overlay"),
            *("-netdev", f"tap,id=net,ifname={plan.net.tap},script=no,downscript=no"),
            *("-device", f"virtio-net-device,netdev=net,mac={plan.net.mac}"),
            *("-object", "rng-random,id=rng,filename=/dev/urandom", "-device", "virtio-rng-device,rng=rng"),
            *("-qmp", "unix:/vm/run/qmp.sock,server=on,wait=off"),
            *("-sandbox", SANDBOX),
            *backend,
            *(("-S",) if _waits(plan, boot) else ()),
            *(("-incoming", "defer") if boot.memory is Memory.TEMPLATE else ()),
        )

    async def spawn(self, machine: Machine, boot: Boot) -> None:
        """A machine that runs at once is asked nothing: its guest is heard soon enough."""
        if _waits(machine.plan, boot):
            async with open_monitor(_socket(machine.plan)):
                pass

    async def load(self, machine: Machine, boot: Boot) -> None:
        """The devices' state comes through a descriptor; memory is the template's, copied on write."""
        if boot.state_fd is None:
            raise HostFault(f"VM {machine.plan.vm}: there is no template to load")
        # Opened anew: descriptors that are passed on share one offset, and several clones may load at once.
        with opened(Path(f"/proc/self/fd/{boot.state_fd}"), os.O_RDONLY) as fd:
            await self._load(machine, fd)

    async def _load(self, machine: Machine, fd: int) -> None:
        async with open_monitor(_socket(machine.plan)) as monitor:
            await monitor.ask("migrate-set-capabilities", SHARED)
            await monitor.ask("getfd", {"fdname": "state"}, fd=fd)
            await monitor.ask("migrate-incoming", {"uri": "fd:state"})
            over = frozenset({"paused", "prelaunch", "running", "internal-error", "guest-panicked"})
            status = await monitor.wait_for(partial(_ask_status, monitor), over, MIGRATION_LIMIT_S)
            if status not in {"paused", "prelaunch"}:
                raise HostFault(f"QEMU is {status} where a template was loaded")

    async def run(self, machine: Machine, boot: Boot) -> None:
        """See the protocol."""
        if _waits(machine.plan, boot):
            async with open_monitor(_socket(machine.plan)) as monitor:
                await monitor.ask("cont")

    async def vcpu_threads(self, machine: Machine) -> tuple[int, ...]:
        """QEMU numbers them as its own pid namespace does; the host's numbers are looked up."""
        async with open_monitor(_socket(machine.plan)) as monitor:
            inner = parse_cpus(await monitor.ask("query-cpus-fast"))
        identity = await machine.keeper.vmm_identity()
        return await in_thread(partial(process.find_threads, identity.pid, inner))

    async def pause(self, machine: Machine) -> None:
        """See the protocol."""
        async with open_monitor(_socket(machine.plan)) as monitor:
            await monitor.ask("stop")

    async def save(self, machine: Machine, boot: Boot) -> SavedState:
        """A machine saves once: QEMU is left where it can only end."""
        if boot.memory is not Memory.KEPT:
            raise HostFault(f"VM {machine.plan.vm}: its memory is in no file that could be kept")
        state = machine.plan.paths.folder / "state"
        writing = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        with opened(state, writing) as fd:
            await self._save(machine, fd)
        return SavedState(machine.plan.paths.run / RAM, state)

    async def _save(self, machine: Machine, fd: int) -> None:
        async with open_monitor(_socket(machine.plan)) as monitor:
            await monitor.ask("migrate-set-capabilities", SHARED)
            await monitor.ask("getfd", {"fdname": "state"}, fd=fd)
            await monitor.ask("migrate", {"uri": "fd:state"})
            over = frozenset({"completed", "failed", "cancelled"})
            ended = await monitor.wait_for(partial(_ask_migration, monitor), over, MIGRATION_LIMIT_S)
            if ended != "completed":
                raise HostFault(f"QEMU's migration into a file {ended}")

    async def connect_guest(self, plan: VmPlan) -> trio.SocketStream:
        """The host's end of the guest's port."""
        return await connect_unix(plan.paths.link)


def _socket(plan: VmPlan) -> Path:
    return plan.paths.run / "qmp.sock"


def _waits(plan: VmPlan, boot: Boot) -> bool:
    """Whether its vCPUs wait for `run`: for a template's memory, or to be pinned first."""
    return boot.memory is Memory.TEMPLATE


def _plan_memory(plan: VmPlan, boot: Boot) -> tuple[str, tuple[str, ...]]:
    """What the machine type says of memory, and the memory itself.

    A clone maps the template's by a sealed descriptor: QEMU 7.2 opens the path for writing even where it copies on
    write, so no file that several VMs share could be given to it.
    """
    match boot.memory:
        case Memory.FRESH:
            return "", ()
        case Memory.KEPT:
            where = f"mem-path=/vm/run/{RAM},share=on"
        case Memory.TEMPLATE:
            where = f"mem-path=/proc/self/fd/{boot.memory_fd},share=off"
    size = f"size={plan.shape.mem_mib}M"
    return ",memory-backend=ram0", ("-object", f"memory-backend-file,id=ram0,{size},{where}")


async def _ask_status(monitor: Monitor) -> str:
    return parse_status(await monitor.ask("query-status"))


async def _ask_migration(monitor: Monitor) -> str:
    return parse_migration(await monitor.ask("query-migrate"))
