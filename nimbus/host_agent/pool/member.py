"""One machine of the pool, from its making to the moment when a job takes it or nobody may any more.

It is a VM like any other, with a record and all claims, but without a lease: its keeper ends it when this agent dies,
and any reaper may clear it away. It is never known to GitHub, holds no session, and serves one job at most.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import structlog
import trio

from nimbus.host import process
from nimbus.host_agent import claims
from nimbus.host_agent.attesting import attest_boot
from nimbus.host_agent.build import SHARED, Claimed, Host, Ready, build_vm
from nimbus.host_agent.claims import Target
from nimbus.host_agent.lane import in_thread
from nimbus.host_agent.ledger import Ledger, OpenRecord
from nimbus.host_agent.page import Page
from nimbus.host_agent.phases import Phases
from nimbus.host_agent.plan import VmPlan, render_plan, with_placement
from nimbus.host_agent.pool.sizes import KINDS
from nimbus.host_agent.teardown import teardown
from nimbus.host_agent.vmm.launch import launch_machine
from nimbus.host_agent.vmm.machine import Boot, KeeperTerms, Machine, Memory, Stage
from nimbus.model.errors import HostFault
from nimbus.model.ids import VmId
from nimbus.model.lease import LeaseKey
from nimbus.model.record import POOL_KEY, Record
from nimbus.model.vm import Claim, Shape
from nimbus.storage.images import Image

log = structlog.get_logger()


@dataclass(frozen=True)
class Wanted:
    """A machine that is to wait, under the name that it will have."""

    vm: VmId
    image: Image
    shape: Shape
    kind: str  # one of KINDS
    ttl_s: float


@dataclass
class Member:
    """A machine that waits. Whoever claims it owns its page from then on."""

    page: Page[OpenRecord]
    record: OpenRecord
    plan: VmPlan
    boot: Boot
    kind: str  # one of KINDS
    image: Image
    born: float  # trio's time
    is_claimed: bool = False
    has_died: bool = False  # its VMM ended while it waited
    gone: trio.Event = field(default_factory=trio.Event)  # what nobody claimed is torn down
    leave: trio.CancelScope = field(default_factory=trio.CancelScope)

    @property
    def stage(self) -> Stage | None:
        """How far it is; None: no VMM was started yet."""
        return KINDS[self.kind]

    def serves(self, image: Image, shape: Shape) -> bool:
        """Whether it was made of exactly this."""
        return self.plan.shape == shape and self.image.manifest_sha256 == image.manifest_sha256

    def claim(self) -> None:
        """From now on it is the caller's: its keeper goes on as if nobody had held it."""
        self.is_claimed = True
        self.leave.cancel()

    async def enter(self, key: LeaseKey | None, deadline_ns: int | None) -> None:
        """Its record says from now on whose it is; an agent that dies here leaves what its successor gives back.

        Raises HostFault where the disk refuses.
        """
        stored = {name: value for name, value in self.record.value.plan.items() if name != POOL_KEY}
        await in_thread(partial(self.record.change, lease=key, deadline_ns=deadline_ns, plan=stored))


async def keep_member(
    host: Host,
    wanted: Wanted,
    leash_fd: int,
    *,
    on_ready: Callable[[Member], None],
    on_gone: Callable[[Member], None],
) -> None:
    """Make one, keep it until it is claimed, too old, dead or cancelled; what nobody claimed is torn down.

    Raises HostFault where it could not be made.
    """
    value = Record(
        vm=wanted.vm,
        created_at=time.time(),
        boot_id=process.boot_id(),
        backend=host.choice.vmm.name,
        plan={**render_plan(wanted.shape, wanted.image.name, host.choice.accel), POOL_KEY: wanted.kind},
        claims=host.claims,
    )
    ledger = Ledger(host.layout.ledger)
    page = Page(ledger.create(value), partial(ledger.remove, value.vm))
    record = await page.open(host.layout.limits.acquire_s)
    member: Member | None = None
    try:
        unplaced = replace(host, places=SHARED)  # CPUs of its own come with a job
        plan, boot = await build_vm(unplaced, record, wanted.shape, wanted.image, Phases())
        if boot.memory is not Memory.TEMPLATE:
            raise HostFault("its template went away while it was made")
        member = Member(page, record, plan, boot, wanted.kind, wanted.image, trio.current_time())
        await _wait_claimed(host, member, leash_fd, wanted.ttl_s, on_ready)
    finally:
        if member is not None:
            on_gone(member)
        try:
            if member is None or not member.is_claimed:
                await teardown(host.layout, record)  # noqa: ASYNC102 - its shields and limits are inside
                await page.close()  # noqa: ASYNC102 - likewise
        finally:
            if member is not None:
                member.gone.set()


async def _wait_claimed(
    host: Host, member: Member, leash_fd: int, ttl_s: float, on_ready: Callable[[Member], None]
) -> None:
    """Returns when it is claimed, too old or dead."""
    terms, stage = KeeperTerms(None, leash_fd), member.stage
    with member.leave:
        if stage is None:
            on_ready(member)
            await trio.sleep(ttl_s)
            return
        async with trio.open_nursery() as nursery:

            async def live(task_status: trio.TaskStatus[Machine]) -> None:  # noqa: ASYNC128 - launch_machine says so
                told = await launch_machine(
                    host.choice.vmm, member.plan, member.boot, terms, until=stage, task_status=task_status
                )
                log.warning("pool.member_died", vm=str(member.plan.vm), how=told.kind, code=told.code)
                member.has_died = True
                member.leave.cancel()

            machine: Machine = await nursery.start(live)
            await in_thread(partial(member.record.change, keeper=machine.keeper.identity))
            on_ready(member)
            await trio.sleep(ttl_s)
            member.leave.cancel()


async def take_over(host: Host, member: Claimed, phases: Phases) -> Ready:
    """What a job needs of the machine that it claimed, with CPUs of its own where this host gives them."""
    record, plan = member.record, member.plan
    with phases.span("claim"):
        await attest_boot(record, member.boot)  # it may have waited for long
        placement = await in_thread(partial(host.places.take, host.layout.runtime, plan.object, plan.shape.cpus))
        if placement is not None:
            plan = replace(plan, placement=placement)
            await in_thread(partial(record.change, plan=with_placement(record.value.plan, placement)))
            await claims.acquire(Claim.CGROUP, Target(host.layout, record.value, plan))
    return Ready(plan, member.boot, member.stage)
