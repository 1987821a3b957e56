"""One machine's whole life, top to bottom: record, build, boot and serve, tear down.

Every ending (done, fenced, VMM dies, boot fails, cancelled) leaves through the same door, teardown.
Each step is one call into the module that owns it. Called by machines.py for leased work and by
cli/run.py for a local run.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial

import structlog
import trio

from nimbus.host import process
from nimbus.host_agent.build import Host, build_vm
from nimbus.host_agent.guest import OutputSink
from nimbus.host_agent.lane import in_thread
from nimbus.host_agent.ledger import Ledger, OpenRecord
from nimbus.host_agent.phases import Phases
from nimbus.host_agent.plan import VmPaths, render_plan
from nimbus.host_agent.serve import Lease, Life, Overtime, first_error, serve_vm
from nimbus.host_agent.teardown import end_vmm, teardown
from nimbus.model.errors import GuestFault, HostFault, NimbusError
from nimbus.model.ids import VmId, new_vm_id
from nimbus.model.record import Record
from nimbus.model.vm import Command, Ending, ExitReason, GuestExit, Shape
from nimbus.storage.images import Image

log = structlog.get_logger()

# Without an exit that was told; the most specific first.
_ENDINGS: tuple[tuple[type[NimbusError], Ending], ...] = (
    (Overtime, Ending.TIMED_OUT),
    (GuestFault, Ending.GUEST_CRASHED),
    (HostFault, Ending.HOST_FAULT),
)


@dataclass(frozen=True)
class Order:
    """What is to be run. `command` is asked for as late as possible: a runner's registration is short-lived."""

    shape: Shape
    image: Image | None
    command: Callable[[], Awaitable[Command]]
    open_sink: Callable[[VmPaths], AbstractAsyncContextManager[OutputSink]]


@dataclass(frozen=True)
class Outcome:
    """How a machine's life ended, for the terminal, the control plane and the bench."""

    vm: VmId
    ending: Ending
    exit: GuestExit | None
    cause: str
    phases_ms: dict[str, float]
    clean: bool  # nothing is left on the host
    boots: int


async def run_machine(host: Host, order: Order, lease: Lease) -> Outcome:
    """Run `order` in one fresh VM and leave nothing behind. Cancellation tears down first, then propagates.

    Raises HostFault only where not even the record could be opened; any later fault is in the outcome.
    """
    vm, phases = new_vm_id(), Phases()
    structlog.contextvars.bind_contextvars(vm=str(vm))
    error: NimbusError | None = None
    async with open_record(host, order, lease, vm) as record:
        life = Life(phases, record)
        try:
            plan, boot = await build_vm(host, record, order.shape, order.image, phases)
            async with order.open_sink(plan.paths) as sink:
                try:
                    await serve_vm(host, plan, boot, lease, order.command, sink, life)
                finally:
                    # Before the sink is closed: its last words may travel for seconds, and the guest must not go on.
                    await end_vmm(host.layout, record)  # noqa: ASYNC102 - its shield and limit are inside
        except* NimbusError as caught:  # a sink with tasks of its own gives even a single error in a group
            error = first_error(caught)
        except* OSError as refused:  # whatever the kernel would not do for this VM, its neighbours live on
            log.exception("vm.host_refused", vm=str(vm))
            error = HostFault(f"this host refused: {_only(refused)}")
        finally:
            with phases.span("teardown"):
                clean = await teardown(host.layout, record)  # noqa: ASYNC102 - its shields and limits are inside
    ending = judge(life.exit, error)
    log.info("vm.ended", ending=str(ending), cause=str(error or ""), clean=clean)
    return Outcome(vm, ending, life.exit, str(error or ""), phases.render(), clean, life.boots)


def _only(group: BaseExceptionGroup[OSError]) -> str:
    inner = group.exceptions[0]
    return _only(inner) if isinstance(inner, BaseExceptionGroup) else inner.strerror or type(inner).__name__


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
    page = Ledger(host.layout.ledger).create(value)
    record = await in_thread(page.__enter__)
    try:
        yield record
    finally:
        with trio.CancelScope(shield=True):  # closes one file descriptor
            await in_thread(partial(page.__exit__, None, None, None))


def judge(told: GuestExit | None, error: NimbusError | None) -> Ending:
    """Pure: one terminal word for how it ended."""
    if told is not None:
        if told.reason is ExitReason.TIMEOUT:
            return Ending.TIMED_OUT
        if told.reason is ExitReason.STOPPED:
            return Ending.CANCELLED
        return Ending.DONE if told.status == 0 else Ending.FAILED
    for kind, ending in _ENDINGS:
        if isinstance(error, kind):
            return ending
    return Ending.HOST_FAULT if error is None else Ending.CANCELLED
