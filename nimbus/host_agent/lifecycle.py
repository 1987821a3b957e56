"""One machine's whole life, top to bottom: record, build, boot or adopt, serve, tear down, report.

Every ending (done, fenced, VMM dies, boot fails, cancelled) leaves through the same door, teardown; one does not:
a machine that its agent detaches from lives on, and the next agent adopts it. Each step is one call into the module
that owns it. Called by machines.py and adopt.py for leased work and by cli/run.py for a local run.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import structlog

from nimbus.host import process
from nimbus.host_agent.build import Claimed, Host, Ready, build_vm
from nimbus.host_agent.guest import OutputSink
from nimbus.host_agent.ledger import Ledger, OpenRecord
from nimbus.host_agent.life import Lease, Life, Outcome
from nimbus.host_agent.page import Page, open_page
from nimbus.host_agent.phases import Phases
from nimbus.host_agent.plan import render_plan
from nimbus.host_agent.pool.member import take_over
from nimbus.host_agent.serve import AskCommand, ResumableSink, serve_adopted, serve_vm
from nimbus.host_agent.teardown import teardown
from nimbus.host_agent.ties import Ties, see_through
from nimbus.model.ids import VmId, new_vm_id
from nimbus.model.record import Record
from nimbus.model.vm import Shape
from nimbus.storage.images import Image

ResumableT = TypeVar("ResumableT", bound=ResumableSink)


@dataclass(frozen=True)
class Order:
    """What is to be run. `command` is asked for as late as possible: a runner's registration is short-lived."""

    shape: Shape
    image: Image | None
    command: AskCommand
    ties: Ties[OutputSink]


async def run_machine(host: Host, order: Order, lease: Lease) -> Outcome:
    """Run `order` in one fresh VM and leave nothing behind. Cancellation tears down first, then propagates.

    Raises HostFault only where not even the record could be opened; any later fault is in the outcome.
    """
    phases = Phases()
    async with open_start(host, order, lease) as (record, member):
        structlog.contextvars.bind_contextvars(vm=str(record.value.vm))
        life = Life(phases, record)

        async def serve(sink: OutputSink) -> None:
            if member is None:
                plan, boot = await build_vm(host, record, order.shape, order.image, phases)
                ready = Ready(plan, boot)
            else:
                ready = await take_over(host, member, phases)
            await serve_vm(host, ready, lease, order.command, sink, life)

        return await see_through(host.layout, order.ties, life, serve)


async def adopt_machine(host: Host, ties: Ties[ResumableT], lease: Lease, record: OpenRecord) -> Outcome:
    """Go on with the machine of `record`, whose lock the caller holds: to its end, or to what its end was."""
    structlog.contextvars.bind_contextvars(vm=str(record.value.vm))
    life = Life(Phases(), record, adopted=True, exit=record.value.exit)
    return await see_through(host.layout, ties, life, partial(serve_adopted, host, lease, life))


@asynccontextmanager
async def open_start(host: Host, order: Order, lease: Lease) -> AsyncIterator[tuple[OpenRecord, Claimed | None]]:
    """A fresh VM's record, or that of one which waited for just such a job, now under this lease."""
    member = host.reserve.claim(order.image, order.shape) if host.reserve is not None else None
    if member is None:
        async with open_record(host, order, lease, new_vm_id()) as record:
            yield record, None
        return
    try:
        try:
            await member.enter(lease.key, lease.terms().deadline_ns)
        except BaseException:  # nobody waits for it any more, and its job never had it
            await teardown(host.layout, member.record)  # noqa: ASYNC102 - its shields and limits are inside
            raise
        yield member.record, member
    finally:
        await member.page.close()  # noqa: ASYNC102 - its shield and its limit are inside


@asynccontextmanager
async def open_record(host: Host, order: Order, lease: Lease, vm: VmId) -> AsyncIterator[OpenRecord]:
    """The VM's page in the ledger, locked, on disk, and listing every claim before the first is made."""
    terms = lease.terms()
    value = Record(
        vm=vm,
        created_at=time.time(),
        boot_id=process.boot_id(),
        backend=host.choice.vmm.name,
        plan=render_plan(order.shape, order.image.name if order.image else "none", host.choice.accel),
        claims=host.claims,
        lease=lease.key,
        deadline_ns=terms.deadline_ns,
    )
    ledger = Ledger(host.layout.ledger)
    page = Page(ledger.create(value), partial(ledger.remove, vm))
    async with open_page(page, host.layout.limits.acquire_s) as record:
        yield record
