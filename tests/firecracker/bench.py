"""A host with Firecracker, and VMs on it that live for a block. The guest is the probe's, which boots where Linux can't."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import pytest
import trio

from nimbus.host import process
from nimbus.host.inventory import Territory
from nimbus.host_agent.build import Host, build_vm
from nimbus.host_agent.ledger import Ledger, OpenRecord
from nimbus.host_agent.page import Page, open_page
from nimbus.host_agent.phases import Phases
from nimbus.host_agent.plan import HostLayout, VmPlan, render_plan
from nimbus.host_agent.teardown import teardown
from nimbus.host_agent.vmm.choice import Choice
from nimbus.host_agent.vmm.fcapi import CallLimits
from nimbus.host_agent.vmm.firecracker import Firecracker
from nimbus.host_agent.vmm.launch import launch_machine
from nimbus.host_agent.vmm.machine import Boot, KeeperTerms, Machine, Stage
from nimbus.model.ids import new_vm_id
from nimbus.model.record import Record
from nimbus.model.vm import Shape
from nimbus.storage.images import Image
from nimbus.wire.keeper import VmmExit

PROBE = Path(__file__).parents[2] / "nimbus" / "host" / "bin" / "nimbus-probe.elf"
SHAPE = Shape(cpus=1, mem_mib=96, disk_mib=16)
LIMIT_S = 120.0
IDLE = "idle"  # the probe's own word: print `tick N` each second, for ever


@dataclass(frozen=True)
class Programs:
    """What is driven."""

    firecracker: Path
    jailer: Path


def find_programs() -> Programs | None:
    """The real ones: by NIMBUS_FC_BIN and NIMBUS_JAILER_BIN, or on PATH."""
    found = [
        os.environ.get(variable) or shutil.which(name)
        for variable, name in (("NIMBUS_FC_BIN", "firecracker"), ("NIMBUS_JAILER_BIN", "jailer"))
    ]
    if not all(found):
        return None
    return Programs(*(Path(str(path)).resolve() for path in found))


def require_programs() -> Programs:
    """Skip, with the reason, where the real Firecracker cannot be driven."""
    programs = find_programs()
    if programs is None:
        pytest.skip("no firecracker and jailer: NIMBUS_FC_BIN and NIMBUS_JAILER_BIN name them")
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        pytest.skip("no /dev/kvm that opens: Firecracker runs on KVM alone")
    return programs


@dataclass(frozen=True)
class Bench:
    """A host, and the files that its VMs are made of."""

    host: Host
    territory: Territory
    image: Image
    started: list[Machine] = field(default_factory=list)

    @property
    def vmm(self) -> Firecracker:
        found = self.host.choice.vmm
        assert isinstance(found, Firecracker)
        return found

    def with_vmm(self, vmm: Firecracker) -> Bench:
        return replace(self, host=replace(self.host, choice=replace(self.host.choice, vmm=vmm)))

    def with_programs(self, **paths: Path) -> Bench:
        """`binary` or `jailer` replaced."""
        return replace(self, host=replace(self.host, choice=replace(self.host.choice, **paths)))  # type: ignore[arg-type]


def make_bench(territory: Territory, programs: Programs, *, limits: CallLimits | None = None) -> Bench:
    """A host whose VMs live in `territory`, with a kernel that is the probe and a root disk of zeros."""
    files = territory.state_root / "files"
    files.mkdir()
    vmlinux, initramfs, rootfs = files / "vmlinux", files / "initramfs", files / "rootfs"
    shutil.copy(PROBE, vmlinux)
    initramfs.write_bytes(bytes(512))
    rootfs.write_bytes(bytes(1 << 20))
    for path in (vmlinux, initramfs, rootfs):
        path.chmod(0o444)
    image = Image("probe", vmlinux, vmlinux, initramfs, rootfs, "none", {}, "0" * 64)
    layout = HostLayout(state=territory.state_root, runtime=territory.runtime_dir, uid_base=territory.uid_base)
    choice = Choice(Firecracker(limits, IDLE), "kvm", programs.firecracker, programs.jailer)
    return Bench(Host(layout, choice, 0), territory, image)


@asynccontextmanager
async def open_record(bench: Bench) -> AsyncIterator[OpenRecord]:
    host = bench.host
    value = Record(
        vm=new_vm_id(),
        created_at=time.time(),
        boot_id=process.boot_id(),
        backend=host.choice.vmm.name,
        plan=render_plan(SHAPE, bench.image.name, host.choice.accel),
        claims=host.claims,
    )
    ledger = Ledger(host.layout.ledger)
    page = Page(ledger.create(value), partial(ledger.remove, value.vm))
    async with open_page(page, host.layout.limits.acquire_s) as record:
        yield record


@asynccontextmanager
async def open_plan(bench: Bench, change: Boot | None = None) -> AsyncIterator[tuple[VmPlan, Boot]]:
    """All that a VM needs but its VMM; torn down at the end, which must leave nothing."""
    async with open_record(bench) as record:
        try:
            yield await build_vm(bench.host, record, SHAPE, bench.image, Phases())
        finally:
            with trio.CancelScope(shield=True):
                clean = await teardown(bench.host.layout, record)
        assert clean


@dataclass
class Run:
    """One VM from its launch to its end."""

    machine: Machine
    boot: Boot
    ended: list[VmmExit] = field(default_factory=list)
    over: trio.Event = field(default_factory=trio.Event)

    @property
    def plan(self) -> VmPlan:
        return self.machine.plan

    async def wait_printed(self, text: str) -> str:
        """The console, once `text` is in it. It signals nothing, so this asks again."""
        with trio.fail_after(LIMIT_S):
            while True:
                tail = (await self.machine.console_tail(64 << 10)).decode(errors="replace")
                if text in tail:
                    return tail
                await trio.sleep(0.02)


@asynccontextmanager
async def open_run(plan: VmPlan, boot: Boot, bench: Bench, until: Stage = Stage.RUNNING) -> AsyncIterator[Run]:
    """The VM brought up to a stage, under a keeper that ends it with this block."""
    read_fd, write_fd = os.pipe()
    try:
        async with trio.open_nursery() as nursery:
            launch = partial(launch_machine, bench.vmm, plan, boot, KeeperTerms(None, read_fd), until=until)
            runs: list[Run] = []

            async def serve(*, task_status: trio.TaskStatus[Machine]) -> None:  # noqa: ASYNC128 - launch says so
                told = await launch(task_status=task_status)
                runs[0].ended.append(told)
                runs[0].over.set()

            with trio.fail_after(LIMIT_S):
                runs.append(Run(await nursery.start(serve), boot))
            yield runs[0]
            nursery.cancel_scope.cancel()
    finally:
        os.close(read_fd)
        os.close(write_fd)
