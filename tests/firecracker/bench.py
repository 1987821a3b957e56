"""A host with Firecracker, and VMs on it that live for a block. The guest is the probe: it boots where Linux can't."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import pytest
import trio

from nimbus.host import native, process
from nimbus.host.inventory import Territory
from nimbus.host.netns import netns_path
from nimbus.host_agent.build import Host, build_vm
from nimbus.host_agent.causes import first_error
from nimbus.host_agent.ledger import Ledger, OpenRecord
from nimbus.host_agent.page import Page, open_page
from nimbus.host_agent.phases import Phases
from nimbus.host_agent.plan import HostLayout, VmPlan, render_plan
from nimbus.host_agent.snapshots.templates import Templates
from nimbus.host_agent.teardown import teardown
from nimbus.host_agent.vmm.choice import Choice
from nimbus.host_agent.vmm.firecracker import Firecracker
from nimbus.host_agent.vmm.launch import launch_machine
from nimbus.host_agent.vmm.machine import Boot, KeeperTerms, Machine, Memory, Stage
from nimbus.model.errors import NimbusError
from nimbus.model.ids import new_vm_id
from nimbus.model.record import Record
from nimbus.model.vm import Shape
from nimbus.storage.content import hash_file
from nimbus.storage.images import Image
from nimbus.storage.templates import Template, TemplateFiles
from nimbus.wire.keeper import VmmExit

PROBE = Path(__file__).parents[2] / "nimbus" / "host" / "bin" / "nimbus-probe.elf"
SHAPE = Shape(cpus=1, mem_mib=96, disk_mib=16)
LIMIT_S = 120.0
REAL = pytest.param("real", marks=pytest.mark.needs_firecracker)
on_the_real_one = pytest.mark.parametrize("bench", [REAL], indirect=True)  # what no fake is asked to be like
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

    @property
    def vmm(self) -> Firecracker:
        found = self.host.choice.vmm
        assert isinstance(found, Firecracker)
        return found

    def with_vmm(self, vmm: Firecracker) -> Bench:
        return replace(self, host=replace(self.host, choice=replace(self.host.choice, vmm=vmm)))

    def with_jailer(self, edit: str) -> Bench:
        """The jailer behind a script that first runs `edit`, which may change `args` or not come back."""
        real = self.host.choice.jailer
        path = self.territory.state_root / "files" / "jailer"
        path.write_text(
            "#!/usr/bin/python3\nimport os, sys, time\nargs = sys.argv[1:]\n"
            f"{edit}\nos.execv({str(real)!r}, [{str(real)!r}, *args])\n"
        )
        path.chmod(0o755)
        return replace(self, host=replace(self.host, choice=replace(self.host.choice, jailer=path)))

    def boot(self, boot: Boot) -> Boot:
        """The same boot by this bench's jailer."""
        return replace(boot, jailer=self.host.choice.jailer)

    def with_templates(self) -> Bench:
        """The same host, which boots from templates where it has one."""
        return replace(self, host=replace(self.host, templates=Templates(self.host.layout, self.host.choice)))


def make_bench(territory: Territory, programs: Programs) -> Bench:
    """A host whose VMs live in `territory`, with a kernel that is the probe and a root disk of zeros."""
    files = territory.state_root / "files"
    files.mkdir(exist_ok=True)
    vmlinux, initramfs, rootfs = files / "vmlinux", files / "initramfs", files / "rootfs"
    shutil.copy(PROBE, vmlinux)
    initramfs.write_bytes(bytes(512))
    rootfs.write_bytes(bytes(1 << 20))
    for path in (vmlinux, initramfs, rootfs):
        path.chmod(0o444)
    roles = {"vmlinux": vmlinux, "initramfs": initramfs, "rootfs": rootfs}
    digests = {role: hash_file(path).sha256 for role, path in roles.items()}
    image = Image("probe", vmlinux, vmlinux, initramfs, rootfs, "none", digests, "0" * 64)
    layout = HostLayout(state=territory.state_root, runtime=territory.runtime_dir, uid_base=territory.uid_base)
    choice = Choice(Firecracker(kernel_line=IDLE), "kvm", programs.firecracker, programs.jailer)
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
async def open_plan(bench: Bench) -> AsyncIterator[tuple[VmPlan, Boot]]:
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
        return await wait_printed(self.machine, text)


async def wait_printed(machine: Machine, text: str) -> str:
    """The console, once `text` is in it. It signals nothing, so this asks again."""
    with trio.fail_after(LIMIT_S):
        while True:
            tail = (await machine.console_tail(64 << 10)).decode(errors="replace")
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
    except* NimbusError as group:
        raise first_error(group) from None
    finally:
        os.close(read_fd)
        os.close(write_fd)


async def run_until_it_fails(plan: VmPlan, boot: Boot, bench: Bench) -> None:
    async with open_run(plan, boot, bench):
        pytest.fail("it came up")


@contextmanager
def holding_tap(plan: VmPlan) -> Iterator[None]:
    """Somebody else has the VM's tap open."""
    space = os.open(netns_path(plan.net.name), os.O_RDONLY)
    try:
        tap = native.open_tap(space, plan.net.tap, plan.slot.uid, plan.slot.gid, True)
        try:
            yield
        finally:
            os.close(tap)
    finally:
        os.close(space)


def last_tick(console: str) -> int:
    return int(re.findall(r"nimbus-probe: tick (\d+)", console)[-1])


async def save_template(bench: Bench) -> tuple[Template, int]:
    """A template of the probe after its second tick, under the key that this host asks for; and the tick it was at."""
    assert bench.host.templates is not None
    key = await bench.host.templates.key(bench.image, SHAPE)
    async with open_plan(replace(bench, host=replace(bench.host, templates=None))) as (plan, cold):
        boot = replace(cold, memory=Memory.KEPT)
        async with open_run(plan, boot, bench) as run:
            await run.wait_printed("nimbus-probe: tick 2")
            await bench.vmm.pause(run.machine)
            console = (await run.machine.console_tail(4096)).decode()
            saved = await bench.vmm.save(run.machine, boot)
            files = TemplateFiles(saved.memory, saved.state, plan.paths.overlay)
            publish = partial(bench.host.templates.store.publish, key, files)
            return await trio.to_thread.run_sync(publish), last_tick(console)


@asynccontextmanager
async def open_template(bench: Bench) -> AsyncIterator[tuple[Bench, int]]:
    """A bench whose host has a template of the probe."""
    with trio.fail_after(LIMIT_S):
        templated = bench.with_templates()
        _, tick = await save_template(templated)
        assert templated.host.templates is not None
        yield templated, tick
        templated.host.templates.close()
