"""QEMU's microvm machine type: the portable backend, real guests even where there is no KVM.

Under TCG it is no security boundary (QEMU's own policy), and every run says so. Argument choices and
their reasons were measured on QEMU 7.2; see docs/decisions/0002-qemu-microvm.md.
"""

from __future__ import annotations

import trio

from nimbus.host_agent.plan import VmPlan
from nimbus.host_agent.vmm.machine import Boot, KeeperTerms, LaunchSpec, Machine, open_machine
from nimbus.model.errors import HostFault
from nimbus.wire.keeper import Bind, VmmExit

KERNEL_LINE = "console=ttyS0 reboot=t panic=-1 quiet loglevel=1 random.trust_cpu=on cryptomgr.notests"
SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
# TCG emulates `rep movsb` byte by byte: without these two the kernel copies in words, and a boot is a tenth shorter.
CPU_MODELS = {"kvm": "host", "tcg": "max,erms=off,fsrm=off"}
LINK_PORT = "nimbus.link"


class Qemu:
    """See the module."""

    name = "qemu"
    needs_guest_files = True

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
        )

    def _argv(self, plan: VmPlan, boot: Boot) -> tuple[str, ...]:
        line = KERNEL_LINE
        if plan.accel == "tcg":
            # Without the rate the guest kernel can hang while it calibrates against the PIT (1 boot in 9 under load).
            line = f"{line} tsc_early_khz={boot.tsc_khz}"
        return (
            str(boot.binary),
            *("-name", f"{plan.object},debug-threads=on"),
            *("-M", f"microvm,accel={plan.accel},acpi=on,rtc=on,pit=on,pic=on,x-option-roms=off,isa-serial=on"),
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
        )

    async def launch(
        self, plan: VmPlan, boot: Boot, terms: KeeperTerms, *, task_status: trio.TaskStatus[Machine]
    ) -> VmmExit:
        """Start QEMU under a keeper; return when it is gone."""
        async with open_machine(plan, self.describe(plan, boot), terms) as machine:
            task_status.started(machine)
            return await machine.wait_gone()
