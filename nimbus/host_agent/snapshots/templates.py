"""The templates that this host may boot from: found by what must match, verified once, their memory kept ready.

A template that is damaged, or whose clone did not run, is put aside, and the boot is a cold one. Makes none: that is
snapshots/build.py's. Called by build.py and serve.py; one object for each agent or run.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import structlog
import trio

from nimbus.host import cpuinfo
from nimbus.host.sealed import Sealed
from nimbus.host_agent import metrics
from nimbus.host_agent.lane import Hung, in_thread_or_left, look
from nimbus.host_agent.plan import HostLayout, plan_vm
from nimbus.host_agent.vmm.choice import Choice
from nimbus.host_agent.vmm.machine import Boot, Memory
from nimbus.host_agent.vmm.version import read_version
from nimbus.model.errors import HostFault
from nimbus.model.ids import VmId
from nimbus.model.template import TemplateKey, digest_recipe
from nimbus.model.vm import Shape, Slot
from nimbus.storage.content import hash_file
from nimbus.storage.images import Image
from nimbus.storage.templatefolder import read_generation
from nimbus.storage.templates import DamagedTemplate, Template, TemplateStore
from nimbus.storage.verified import VerifiedTemplates

log = structlog.get_logger()

_ANY_VM = VmId("00000000")
_ANY_SLOT = Slot(index=0, uid=1, gid=1, cid=3)
KEEP = 2  # of one image and shape: the one in use, and the one before it, for who goes back to it
FIND_LIMIT_S = 30.0  # for a first reading; one that takes longer goes on without the boot, and serves the next
LIMITER = trio.CapacityLimiter(2)  # hashing and copying whole memories: never more than the disk can bear


@dataclass(frozen=True)
class SealedTemplate:
    """What clones of one make of a template read by descriptors."""

    generation: str
    memory: Sealed
    state: Sealed


@dataclass(frozen=True)
class ReadyTemplate:
    """One that was verified, and copies of what clones read of it by descriptors that nobody can change any more."""

    template: Template
    sealed: SealedTemplate | None = None

    @property
    def memory_fd(self) -> int | None:
        return self.sealed.memory.fd if self.sealed else None

    @property
    def state_fd(self) -> int | None:
        return self.sealed.state.fd if self.sealed else None

    def boot(self, cold: Boot) -> Boot:
        """The same boot, from this template."""
        held = (self.sealed.memory, self.sealed.state) if self.sealed else ()
        told = replace(cold, memory=Memory.TEMPLATE, template=self.template, held=held)
        return replace(told, memory_fd=self.memory_fd, state_fd=self.state_fd)


class Templates:
    """See the module. `close` lets go of the memories; what waits to boot from one, or runs, keeps its own."""

    def __init__(self, layout: HostLayout, choice: Choice, *, find_s: float = FIND_LIMIT_S) -> None:
        self._layout, self._choice, self._find_s = layout, choice, find_s
        self.store = TemplateStore(layout.templates)
        self._verified = VerifiedTemplates(self.store)
        self._sealed: dict[str, SealedTemplate] = {}  # of each template, by its digest, the make that was used last
        self._distrusted: set[str] = set()  # generations
        self._vmm: tuple[str, str] | None = None
        self._turn = trio.Lock()

    @property
    def is_usable(self) -> bool:
        """Whether this host's backend boots from templates at all."""
        return self._choice.vmm.can_restore

    async def find(self, image: Image, shape: Shape) -> ReadyTemplate | None:
        """What a boot may use: the template for exactly this, verified. None means a cold boot. Never raises for a
        template's sake, and waits for none for long.
        """
        ready, outcome = None, "unreadable"
        with trio.move_on_after(self._find_s) as scope:
            ready, outcome = await self._look(image, shape)
        if scope.cancelled_caught:
            log.warning("template.not_used", image=image.name, error=str(Hung(self._find_s)))
        metrics.count_restore(outcome)
        return ready

    async def look(self, image: Image, shape: Shape) -> ReadyTemplate | None:
        """The same for whoever boots nothing of it now: only what is wrong with it is counted."""
        ready, outcome = await self._look(image, shape)
        if outcome not in {"restored", "none"}:
            metrics.count_restore(outcome)
        return ready

    async def _look(self, image: Image, shape: Shape) -> tuple[ReadyTemplate | None, str]:
        if not self.is_usable:
            return None, "none"
        try:
            key = await self.key(image, shape)
            async with self._turn:  # one boot hashes and copies, the others find it done
                ready = await self._open(key.digest())
        except DamagedTemplate as error:  # set aside by whoever found it
            log.error("template.quarantined", image=image.name, error=str(error))
            return None, "quarantined"
        except (HostFault, OSError) as error:
            log.warning("template.not_used", image=image.name, error=str(error))
            return None, "unreadable"
        return ready, "none" if ready is None else "restored"

    async def _open(self, digest: str) -> ReadyTemplate | None:
        template = await in_thread_or_left(partial(self._verified.find, digest), LIMITER)
        if template is None or template.generation in self._distrusted:
            return None
        return ReadyTemplate(template, await self._seal(template))

    async def distrust(self, template: Template, why: str) -> None:
        """Set it aside: the next boots are cold until a new one is built."""
        if template.generation in self._distrusted:
            return  # two of its clones failed at the same time
        self._distrusted.add(template.generation)
        self._sealed.pop(template.digest, None)
        metrics.count_restore("quarantined")
        log.error("template.quarantined", template=template.digest, why=why)
        aside = partial(self.store.quarantine, template.digest, why, generation=template.generation)
        try:
            await look(aside, self._layout.limits.release_s)  # left behind it is done all the same
        except (HostFault, OSError) as error:
            log.warning("template.not_set_aside", template=template.digest, error=str(error))

    async def key(self, image: Image, shape: Shape) -> TemplateKey:
        """All that must match. Raises HostFault where this host, its VMM or the image cannot be told exactly."""
        if self._vmm is None:
            self._vmm = await in_thread_or_left(partial(_read_vmm, self._choice), LIMITER)
        version, sha256 = self._vmm
        lacking = {"vmlinux", "initramfs", "rootfs"} - set(image.digests)
        if lacking:
            raise HostFault(f"image {image.name} with its {', '.join(sorted(lacking))} replaced boots from no template")
        host = await in_thread_or_left(cpuinfo.read_cpu, LIMITER)
        return TemplateKey(
            image=image.name,
            manifest_sha256=image.manifest_sha256,
            kernel_sha256=image.digests["vmlinux"],
            initramfs_sha256=image.digests["initramfs"],
            rootfs_sha256=image.digests["rootfs"],
            backend=self._choice.vmm.name,
            accel=self._choice.accel,
            vmm_version=version,
            vmm_sha256=sha256,
            cpu=host,
            host_kernel=os.uname().release,
            shape=shape,
            recipe_sha256=digest_recipe(self._plan_recipe(image, shape)),
        )

    def close(self) -> None:
        """Let go of the sealed memories."""
        self._sealed.clear()

    async def tidy(self, in_use: Collection[str]) -> None:
        """Remove templates that newer ones of their image and shape have made old, but none of these digests."""
        try:
            garbage = await in_thread_or_left(partial(self.store.gc, keep=KEEP, in_use=in_use), LIMITER)
            here = await in_thread_or_left(self.store.digests, LIMITER)
        except (HostFault, OSError) as error:
            log.warning("template.not_removed", error=str(error))
            return
        for template in garbage.templates:
            log.info("template.removed", template=template.digest, image=template.key.image)
        for digest in self._sealed.keys() - set(here):
            del self._sealed[digest]

    def is_trusted(self, template: Template) -> bool:
        """False once a clone of that very make has failed here."""
        return template.generation not in self._distrusted

    async def is_current(self, template: Template) -> bool:
        """Whether nobody has built it anew, removed it or set it aside since: what was copied from its folder is all of
        one make, and fit for use.
        """
        if not self.is_trusted(template):
            return False
        try:
            found = await look(partial(read_generation, template.folder), self._layout.limits.look_s)
        except Hung:
            return False
        return found == template.generation

    async def _seal(self, template: Template) -> SealedTemplate | None:
        if self._choice.vmm.name != "qemu":
            return None  # Firecracker maps the files themselves, read-only, by links of its own
        sealed = self._sealed.get(template.digest)
        if sealed is None or sealed.generation != template.generation:
            sealed = await in_thread_or_left(partial(_seal_template, template), LIMITER)
            self._sealed[template.digest] = sealed
        return sealed

    def _plan_recipe(self, image: Image, shape: Shape) -> tuple[str, ...]:
        """Pure: how such a VM is started, without what is one VM's own or differs from start to start."""
        layout = HostLayout(Path("/state"), Path("/run"))
        plan = plan_vm(
            layout,
            _ANY_VM,
            shape=shape,
            image=image.name,
            backend=self._choice.vmm.name,
            accel=self._choice.accel,
            slot=_ANY_SLOT,
        )
        spec = self._choice.vmm.describe(
            plan, Boot(image, self._choice.binary, tsc_khz=0, jailer=self._choice.jailer, memory=Memory.KEPT)
        )
        return (*spec.argv, *spec.calls)


def _seal_template(template: Template) -> SealedTemplate:
    name = f"nimbus-{template.digest[:12]}"
    return SealedTemplate(template.generation, Sealed(template.memory, name), Sealed(template.state, name))


def _read_vmm(choice: Choice) -> tuple[str, str]:
    if shutil.which(str(choice.binary)) is None:
        raise HostFault(f"{choice.binary} cannot be executed")
    return read_version(choice.binary), hash_file(choice.binary).sha256
