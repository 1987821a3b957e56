"""The pool: keeps as many machines waiting as it was told, and hands each to one job.

One is made at a time and only while no job has just come, so that a refill never stands in a job's way. A template
that is missing is built first. What it holds is given up when a job of another shape needs the slot, when it is too
old, and when the agent leaves. Started by main.py; asked by lifecycle.py.
"""

from __future__ import annotations

from functools import partial

import structlog
import trio

from nimbus.host.slots import count_slots
from nimbus.host_agent import metrics
from nimbus.host_agent.build import Host
from nimbus.host_agent.causes import name_fault
from nimbus.host_agent.lane import in_thread
from nimbus.host_agent.leash import open_leash
from nimbus.host_agent.pool.member import Member, keep_member
from nimbus.host_agent.pool.sizes import PoolPolicy, PoolSize
from nimbus.host_agent.snapshots.build import build_template
from nimbus.host_agent.snapshots.templates import Templates
from nimbus.host_agent.vmm.launch import RestoreFailed
from nimbus.model.errors import NimbusError
from nimbus.model.vm import Shape
from nimbus.storage.content import ImageStore
from nimbus.storage.images import Image, resolve_image

log = structlog.get_logger()

QUIET_S = 1.0  # after a claim: that job's first second is its own
RETRY_S = 60.0  # after one that could not be made
LOOK_S = 30.0  # an image may be built anew, a template set aside


class Reserve:
    """See the module."""

    def __init__(self, host: Host, templates: Templates, policy: PoolPolicy) -> None:
        self._host, self._templates, self._policy = host, templates, policy
        self._members: list[Member] = []
        self._making: list[tuple[Shape, str]] = []
        self._changed = trio.Event()
        self._last_claim = -QUIET_S

    @property
    def idle(self) -> int:
        """Machines that hold a slot and have no job."""
        return len(self._members) + len(self._making)

    @property
    def waiting(self) -> tuple[Member, ...]:
        """The machines that a job could be given now."""
        return tuple(self._members)

    def claim(self, image: Image | None, shape: Shape) -> Member | None:
        """The readiest machine of exactly this, the caller's from now on; None where there is none."""
        if image is None or not any(size.shape == shape for size in self._policy.sizes):
            return None
        fitting = [member for member in self._members if member.serves(image, shape)]
        fitting.sort(key=lambda member: (-(member.stage or 0), member.born))
        if not fitting:
            metrics.count_pool_claim("missed")
            return None
        member = fitting[0]
        self._members.remove(member)
        member.claim()
        metrics.count_pool_claim(member.kind)
        self._last_claim = trio.current_time()
        self._note_change()
        return member

    async def make_room(self) -> bool:
        """Give up the machine that waits longest where no slot is left. True once its slot is free."""
        layout = self._host.layout
        if not self._members or await in_thread(partial(count_slots, layout.runtime)) < layout.slot_limit:
            return False
        if not self._members:  # claimed while the slots were counted
            return False
        member = min(self._members, key=lambda one: one.born)
        self._members.remove(member)
        member.leave.cancel()
        await member.gone.wait()
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
        try:
            image = await in_thread(self._find_image)
            self._give_up_outdated(image)
            wanted = self._find_missing(image)
            if wanted is None:
                return LOOK_S
            quiet_s = self._last_claim + QUIET_S - trio.current_time()
            if quiet_s > 0:
                return quiet_s
            shape, kind = wanted
            await build_template(self._host, self._templates, image, shape)
            await members.start(self._make, image, shape, kind, leash_fd)
        except (NimbusError, OSError) as error:
            log.warning("pool.not_filled", error=str(error), again_in_s=RETRY_S)
            metrics.count_pool_failure()
            return RETRY_S
        return 0.0

    async def _make(
        self, image: Image, shape: Shape, kind: str, leash_fd: int, *, task_status: trio.TaskStatus[None]
    ) -> None:
        """One machine's whole waiting. Started once it waits, or could not be made."""
        self._making.append((shape, kind))
        is_ready = False

        def on_ready(member: Member) -> None:
            nonlocal is_ready
            is_ready = True
            self._making.remove((shape, kind))
            self._members.append(member)
            metrics.POOL.labels(kind).inc()
            log.info("pool.machine_waits", vm=str(member.plan.vm), kind=kind)
            task_status.started()

        def on_gone(member: Member) -> None:
            if member in self._members:
                self._members.remove(member)
            if is_ready:
                metrics.POOL.labels(kind).dec()
            self._note_change()

        failed: NimbusError | None = None
        try:
            keep = partial(keep_member, self._host, image, shape, kind, leash_fd, self._policy.ttl_s)
            await keep(on_ready=on_ready, on_gone=on_gone)
        except* (NimbusError, OSError) as group:
            failed = name_fault(group)
        finally:
            if not is_ready:
                self._making.remove((shape, kind))
        if isinstance(failed, RestoreFailed):
            await self._templates.forget(image, shape, str(failed))
        if failed is not None and is_ready:
            log.warning("pool.machine_lost", error=str(failed))
        elif failed is not None:
            raise failed

    def _find_image(self) -> Image:
        store = ImageStore(self._host.layout.images)
        return resolve_image(
            store, self._policy.image, kernel=self._host.kernel_override, rootfs=self._host.rootfs_override
        )

    def _give_up_outdated(self, image: Image) -> None:
        for member in [one for one in self._members if one.image.manifest_sha256 != image.manifest_sha256]:
            self._members.remove(member)
            member.leave.cancel()

    def _find_missing(self, image: Image) -> tuple[Shape, str] | None:
        for size in self._policy.sizes:
            for kind, number in size.numbers.items():
                if self._count(image, size, kind) < number:
                    return size.shape, kind
        return None

    def _count(self, image: Image, size: PoolSize, kind: str) -> int:
        waiting = sum(1 for member in self._members if member.kind == kind and member.serves(image, size.shape))
        return waiting + self._making.count((size.shape, kind))

    def _note_change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
