"""The pool: keeps as many machines waiting as it was told, and hands each to one job.

One is made at a time and only while no job has just come, so that a refill never stands in a job's way. A template
that is missing is built first. What it holds, and what it is about to hold, is given up when a job needs the slot, when
it is too old or outdated, and when the agent leaves; it never takes a host's last slot or disk from what comes next.
Started by main.py; asked by lifecycle.py and build.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial

import structlog
import trio

from nimbus.host_agent import metrics
from nimbus.host_agent.admission import DiskPolicy, Supply, count_disk_mib, count_slots, read_supply
from nimbus.host_agent.build import Host
from nimbus.host_agent.causes import name_fault
from nimbus.host_agent.jailer import SecurityAlarm
from nimbus.host_agent.lane import in_thread
from nimbus.host_agent.leash import open_leash
from nimbus.host_agent.pool.member import Member, Wanted, keep_member
from nimbus.host_agent.pool.patience import Patience
from nimbus.host_agent.pool.sizes import PoolPolicy
from nimbus.host_agent.snapshots.build import build_template
from nimbus.host_agent.snapshots.templates import Templates
from nimbus.host_agent.vmm.launch import RestoreFailed
from nimbus.model.errors import HostFault, NimbusError
from nimbus.model.ids import VmId, new_vm_id, object_name
from nimbus.model.vm import Shape
from nimbus.storage.content import ImageStore
from nimbus.storage.images import Image, resolve_image
from nimbus.storage.templates import Template

log = structlog.get_logger()

QUIET_S = 1.0  # after a job came: its first second is its own
LOOK_S = 30.0  # an image may be built anew, a template set aside
ROOM_LOOK_S = 5.0  # slots and disk come free without a word to us
_IMAGE = "image"


@dataclass
class _Attempt:
    """One machine in the making, its template's too where that is missing."""

    vm: VmId
    leave: trio.CancelScope = field(default_factory=trio.CancelScope)
    gone: trio.Event = field(default_factory=trio.Event)  # it waits now, or nothing of it is left


class Reserve:
    """See the module."""

    def __init__(self, host: Host, templates: Templates, policy: PoolPolicy, disk: DiskPolicy | None = None) -> None:
        self._host, self._templates, self._policy, self._disk = host, templates, policy, disk
        self._members: list[Member] = []
        self._attempt: _Attempt | None = None
        self._changed = trio.Event()
        self._last_job = -QUIET_S
        self._patience = Patience()
        self._lacking = ""  # why nothing is made though something is missing
        self._tidied: set[str] = set()  # generations of templates

    @property
    def idle(self) -> frozenset[str]:
        """Names of the VMs that may hold a slot and have no job: each is taken with its slot, or gives it up."""
        names = {member.plan.object for member in self._members}
        if self._attempt is not None:
            names.add(object_name(self._host.layout.root_id, self._attempt.vm))
        return frozenset(names)

    @property
    def waiting(self) -> tuple[Member, ...]:
        """The machines that a job could be given now."""
        return tuple(self._members)

    def claim(self, image: Image | None, shape: Shape) -> Member | None:
        """The readiest machine of exactly this, the caller's from now on; None where there is none."""
        if image is None or not any(size.shape == shape for size in self._policy.sizes):
            return None
        fitting = [member for member in self._members if member.serves(image, shape) and self._is_trusted(member)]
        fitting.sort(key=lambda member: (-(member.stage or 0), member.born))
        self._last_job = trio.current_time()
        if not fitting:
            metrics.count_pool_claim("missed")
            return None
        member = fitting[0]
        self._members.remove(member)
        member.claim()
        metrics.count_pool_claim(member.kind)
        self._patience.forget((shape, member.kind))
        self._note_change()
        return member

    async def make_room(self) -> bool:
        """Give up the machine that waits longest, or else the one in the making. True once it is gone, slot and all."""
        self._last_job = trio.current_time()
        if self._members:
            member = min(self._members, key=lambda one: one.born)
            self._give_up(member)
            await member.gone.wait()
            return True
        if (attempt := self._attempt) is None:
            return False
        attempt.leave.cancel()
        await attempt.gone.wait()
        return True

    async def run(self) -> None:
        """Keep it filled until cancelled; then all that waits is torn down."""
        with open_leash() as leash_fd:
            async with trio.open_nursery() as members:
                while True:
                    wait_s = await self._refill(members, leash_fd)
                    changed = self._changed
                    with trio.move_on_after(wait_s):
                        await changed.wait()

    async def _refill(self, members: trio.Nursery, leash_fd: int) -> float:
        """Make one that is missing, if any. Returns after how many seconds to look again."""
        quiet_s = self._last_job + QUIET_S - trio.current_time()
        if quiet_s > 0:  # not even a look at the disk: it would stand in that job's way
            return quiet_s
        try:
            image = await in_thread(self._find_image)
            await self._give_up_outdated(image)
            self._patience.forget(_IMAGE)
            supply = await in_thread(partial(read_supply, self._host.layout))
        except (NimbusError, OSError) as error:
            return self._note_failure(_IMAGE, error)
        missing, wait_s = self._find_missing(image)
        quiet_s = self._last_job + QUIET_S - trio.current_time()  # one may have come meanwhile
        if missing is None or quiet_s > 0:
            return wait_s if missing is None else quiet_s
        self._note_lacking(self._find_lacking(supply, missing[0]))
        if self._lacking:
            return ROOM_LOOK_S
        return await self._make_one(image, *missing, members, leash_fd)

    async def _make_one(self, image: Image, shape: Shape, kind: str, members: trio.Nursery, leash_fd: int) -> float:
        """Returns once it waits, or was given up for a job, or failed."""
        attempt = self._attempt = _Attempt(new_vm_id())
        try:
            with attempt.leave:
                await self._tidy(await build_template(self._host, self._templates, image, shape))
                wanted = Wanted(attempt.vm, image, shape, kind, self._policy.ttl_s)
                await members.start(self._keep, wanted, leash_fd)
        except (NimbusError, OSError) as error:
            return self._note_failure((shape, kind), error)
        finally:
            self._attempt = None
            attempt.gone.set()
        return 0.0

    async def _keep(self, wanted: Wanted, leash_fd: int, *, task_status: trio.TaskStatus[None]) -> None:
        """One machine's whole waiting. Started once it waits; raises where it could not be made."""
        is_ready, template = False, None

        def on_ready(member: Member) -> None:
            nonlocal is_ready
            is_ready = True
            self._members.append(member)
            metrics.POOL.labels(wanted.kind).inc()
            log.info("pool.machine_waits", vm=str(wanted.vm), kind=wanted.kind)
            task_status.started()

        def on_gone(member: Member) -> None:
            nonlocal template
            template = member.boot.template
            if member in self._members:
                self._members.remove(member)
            if is_ready:
                metrics.POOL.labels(wanted.kind).dec()
            if member.has_died and not member.is_claimed:
                self._note_failure((wanted.shape, wanted.kind), HostFault("its VMM ended while it waited"))
            self._note_change()

        failed: NimbusError | None = None
        try:
            await keep_member(self._host, wanted, leash_fd, on_ready=on_ready, on_gone=on_gone)
        except* (NimbusError, OSError) as group:
            failed = name_fault(group)
        if isinstance(failed, RestoreFailed) and template is not None:
            await self._templates.distrust(template, str(failed))
        if is_ready and failed is not None:
            log.warning("pool.machine_lost", vm=str(wanted.vm), error=str(failed))
        elif not is_ready:
            raise failed or HostFault("it ended before it could wait")

    async def _tidy(self, template: Template) -> None:
        """After each template that is new to this agent: those that it replaces go."""
        if template.generation in self._tidied:
            return
        self._tidied.add(template.generation)
        waiting = (member.boot.template for member in self._members)
        await self._templates.tidy({template.digest, *(one.digest for one in waiting if one is not None)})

    def _find_image(self) -> Image:
        store = ImageStore(self._host.layout.images)
        return resolve_image(
            store, self._policy.image, kernel=self._host.kernel_override, rootfs=self._host.rootfs_override
        )

    async def _give_up_outdated(self, image: Image) -> None:
        """Machines of an image that was built anew, or of a template that was replaced or set aside."""
        for member in self.waiting:
            template = member.boot.template
            is_current = template is not None and await self._templates.is_current(template)
            if (not is_current or member.image.manifest_sha256 != image.manifest_sha256) and member in self._members:
                self._give_up(member)

    def _give_up(self, member: Member) -> None:
        self._members.remove(member)
        member.leave.cancel()

    def _is_trusted(self, member: Member) -> bool:
        return member.boot.template is not None and self._templates.is_trusted(member.boot.template)

    def _find_missing(self, image: Image) -> tuple[tuple[Shape, str] | None, float]:
        """What to make now; nothing, and when to look again, where all is there or lately failed."""
        wait_s, now = LOOK_S, trio.current_time()
        for size in self._policy.sizes:
            for kind, number in size.numbers.items():
                waiting = sum(member.kind == kind and member.serves(image, size.shape) for member in self._members)
                if waiting < number:
                    pause_s = self._patience.wait_s((size.shape, kind), now)
                    if pause_s <= 0:
                        return (size.shape, kind), 0.0
                    wait_s = min(wait_s, pause_s)
        return None, wait_s

    def _find_lacking(self, supply: Supply, shape: Shape) -> str:
        """Why this host has no room for one more that waits; nothing where it has. A job of any of the pool's shapes
        must find its disk beside it: what waits is given up for a slot, not for disk.
        """
        if count_slots(supply, self._host.layout.slot_limit, taken=0) <= 0:
            return "a slot: NIMBUS_VM_SLOTS"
        if self._disk is not None:
            largest_mib = max(size.shape.disk_mib for size in self._policy.sizes)
            if count_disk_mib(supply, self._disk, taken_mib=0) < shape.disk_mib + largest_mib:
                return "disk for it and for a job beside it"
        return ""

    def _note_lacking(self, lacking: str) -> None:
        if lacking and lacking != self._lacking:
            log.warning("pool.not_filled", lacks=lacking, waiting=len(self._members))
        self._lacking = lacking

    def _note_failure(self, what: tuple[Shape, str] | str, error: Exception) -> float:
        """Returns how long to leave it alone. A VMM that had too many rights is never tried again."""
        now, for_good = trio.current_time(), isinstance(error, SecurityAlarm)
        metrics.count_pool_failure()
        is_news = self._patience.note_failure(what, str(error), now, for_good=for_good)
        wait_s = self._patience.wait_s(what, now)
        say = log.warning if is_news else log.debug
        say("pool.not_filled", error=str(error), again_in_s=None if math.isinf(wait_s) else wait_s)
        return min(wait_s, LOOK_S)

    def _note_change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
