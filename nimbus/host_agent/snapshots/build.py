"""Makes a template: boots a machine of its own, waits until its guest agent listens, and keeps its memory and disk.

No job, no runner, no token and no session ever comes near that machine: what the guest is asked (LOOK) it forgets.
The machine is torn down like any other. Called by `nimbus snapshots build` and the pool.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import structlog
import trio

from nimbus.host import process
from nimbus.host.disk import chown_nofollow
from nimbus.host_agent.build import SHARED, Host, build_vm
from nimbus.host_agent.causes import name_fault
from nimbus.host_agent.guest import look_at_guest
from nimbus.host_agent.lane import in_thread, in_thread_or_left
from nimbus.host_agent.leash import open_leash
from nimbus.host_agent.ledger import Ledger, OpenRecord
from nimbus.host_agent.page import Page, open_page
from nimbus.host_agent.phases import Phases
from nimbus.host_agent.plan import VmPlan, render_plan
from nimbus.host_agent.snapshots.templates import LIMITER, Templates
from nimbus.host_agent.teardown import teardown
from nimbus.host_agent.vmm.launch import launch_machine
from nimbus.host_agent.vmm.machine import Boot, KeeperTerms, Machine, Memory
from nimbus.model.errors import HostFault, NimbusError
from nimbus.model.ids import new_vm_id
from nimbus.model.record import Record
from nimbus.model.vm import Shape
from nimbus.storage.images import Image
from nimbus.storage.templates import Template, TemplateFiles

log = structlog.get_logger()

BOOT_LIMIT_S = 120.0  # for a host that is busy: a template is built beside running jobs


async def build_template(
    host: Host, templates: Templates, image: Image, shape: Shape, progress: Callable[[str], None] = lambda _: None
) -> Template:
    """The template of `image` in this shape on this host; the one that is there already, if it is whole.

    Raises HostFault where the machine did not boot, could not be saved, or the disk has no room.
    """
    if not templates.is_usable:
        raise HostFault(f"the VMM {host.choice.vmm.name} boots from no templates")
    key = await templates.key(image, shape)
    found = await templates.look(image, shape)
    if found is not None:
        return found.template
    try:
        async with _open_machine(host, image, shape, progress) as (machine, boot):
            progress("pausing")
            await machine.vmm.pause(machine)
            saved = await machine.vmm.save(machine, boot)
            progress("hashing and storing")
            files = TemplateFiles(saved.memory, saved.state, machine.plan.paths.overlay)
            template = await in_thread_or_left(partial(templates.store.publish, key, files), LIMITER)
    except* (NimbusError, OSError) as group:  # a machine lives in a nursery: what ends it comes as a group
        raise name_fault(group) from None
    log.info("template.built", template=template.digest, image=image.name, **vars(shape))
    return template


@asynccontextmanager
async def _open_machine(
    host: Host, image: Image, shape: Shape, progress: Callable[[str], None]
) -> AsyncIterator[tuple[Machine, Boot]]:
    """A machine that runs nothing but its listening guest agent, for a block; nothing of it is left afterwards."""
    cold = replace(host, templates=None, places=SHARED)  # CPUs of its own were promised to jobs
    with open_leash() as leash_fd:
        async with _open_record(cold, image, shape) as record:
            try:
                progress("building a machine")
                plan, boot = await build_vm(cold, record, shape, image, Phases())
                boot = replace(boot, memory=Memory.KEPT)
                if (name := cold.choice.vmm.memory_file) is not None:
                    await in_thread(partial(_make_memory, plan, name))
                async with trio.open_nursery() as nursery:
                    launch = partial(launch_machine, cold.choice.vmm, plan, boot, KeeperTerms(None, leash_fd))
                    progress("booting")
                    machine: Machine = await nursery.start(launch)
                    await in_thread(partial(record.change, keeper=machine.keeper.identity))
                    await _wait_listening(machine)
                    yield machine, boot
                    nursery.cancel_scope.cancel()
            finally:
                await teardown(cold.layout, record)  # noqa: ASYNC102 - its shields and limits are inside


async def _wait_listening(machine: Machine) -> None:
    """Its first pages are touched by the very answer that a clone will give first."""
    with trio.move_on_after(BOOT_LIMIT_S):
        hello = await look_at_guest(machine.connect_guest)
        log.debug("template.guest_listens", kernel_ms=hello.kernel_ms, init_ms=hello.init_ms)
        return
    tail = (await machine.console_tail(1024)).decode(errors="replace").strip()
    raise HostFault(f"the guest of the template was not heard in {BOOT_LIMIT_S:g} s; its console ends: {tail!r}")


def _make_memory(plan: VmPlan, name: str) -> None:
    """The file that becomes the guest's memory: sparse, and the VM's own while it runs."""
    path: Path = plan.paths.run / name
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(fd, plan.shape.mem_mib << 20)
    finally:
        os.close(fd)
    chown_nofollow(path, plan.slot.uid, plan.slot.gid)


@asynccontextmanager
async def _open_record(host: Host, image: Image, shape: Shape) -> AsyncIterator[OpenRecord]:
    """Of a machine without a lease: with its lock free it is an orphan, which any reaper takes."""
    value = Record(
        vm=new_vm_id(),
        created_at=time.time(),
        boot_id=process.boot_id(),
        backend=host.choice.vmm.name,
        plan=render_plan(shape, image.name, host.choice.accel),
        claims=host.claims,
    )
    ledger = Ledger(host.layout.ledger)
    page = Page(ledger.create(value), partial(ledger.remove, value.vm))
    async with open_page(page, host.layout.limits.acquire_s) as record:
        yield record
