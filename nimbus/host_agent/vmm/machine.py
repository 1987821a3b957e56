"""A running VM as the agent holds it: its keeper, its console and the way to its guest.

Knows no backend but by its protocol. Made by `open_machine` from a LaunchSpec, or by `find_machine` from a record.
"""

from __future__ import annotations

import enum
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from nimbus.host.cgroup import cgroup_dir
from nimbus.host.netns import netns_path
from nimbus.host.sealed import Sealed
from nimbus.host_agent.keeper import Keeper, KeeperGone, connect_keeper, spawn_keeper
from nimbus.host_agent.lane import in_thread
from nimbus.host_agent.plan import VmPlan
from nimbus.host_agent.vmm import Vmm
from nimbus.model.errors import Unavailable
from nimbus.model.record import ProcessId
from nimbus.storage.images import Image
from nimbus.wire.keeper import Bind, Jail, KeeperFailed, KeeperSpec, VmmExit

if TYPE_CHECKING:
    from nimbus.storage.templates import Template

CONSOLE_TAIL = "console.tail"
LAST_WORDS_BYTES = 1024


class Stage(enum.IntEnum):
    """How far a machine is brought up."""

    SPAWNED = 1  # its VMM runs and answers; no memory is loaded
    PAUSED = 2  # a template's memory is loaded; vCPUs are there and do not run
    REHEARSED = 3  # it ran until its guest had answered once, and is paused again: the answer that counts is quick
    RUNNING = 4


class Memory(enum.StrEnum):
    """Where the guest's memory comes from."""

    FRESH = "fresh"
    KEPT = "kept"  # fresh, in a file that becomes a template
    TEMPLATE = "template"


@dataclass(frozen=True)
class Boot:
    """What a boot needs beyond the plan: files, the VMM's binary, the host's TSC rate, and where memory comes from."""

    image: Image | None
    binary: Path
    tsc_khz: int
    jailer: Path | None = None  # Firecracker's
    seccomp_filter: Path | None = None  # in place of those that Firecracker brings along
    memory: Memory = Memory.FRESH
    template: Template | None = None  # with Memory.TEMPLATE
    memory_fd: int | None = None  # the template's memory and device state, sealed, for VMMs that take descriptors
    state_fd: int | None = None
    held: tuple[Sealed, ...] = field(default=(), repr=False, compare=False)  # keeps both open

    def without_template(self) -> Boot:
        """The same from nothing: a cold boot."""
        return replace(self, memory=Memory.FRESH, template=None, memory_fd=None, state_fd=None, held=())


@dataclass(frozen=True)
class SavedState:
    """Two files that a paused machine's VMM wrote; they belong to whoever asked for them."""

    memory: Path
    state: Path


@dataclass(frozen=True)
class LaunchSpec:
    """What to start, as data: the argv as seen inside the jail, and what the jail shows."""

    argv: tuple[str, ...]
    binds: tuple[Bind, ...] = ()
    devices: tuple[str, ...] = ()  # names below /dev
    rlimits: Mapping[str, int | None] = field(default_factory=dict)
    jailed: bool = True  # own netns, own root, own uid by the keeper's hand; the fake goes without
    keep_fds: tuple[int, ...] = ()  # open in the VMM under the same numbers
    proc: bool = False  # its own /proc in the jail
    pid_file: Path | None = None  # a jailer is started, as root, and names its VMM here
    calls: tuple[str, ...] = ()  # what is asked of its API before it runs, for the recipe of a template


@dataclass(frozen=True)
class KeeperTerms:
    """Until when the keeper lets the VM live: a deadline (CLOCK_BOOTTIME), or as long as a pipe is open."""

    deadline_ns: int | None
    orphan_fd: int | None


@dataclass(frozen=True)
class Machine:
    """One live VM."""

    plan: VmPlan
    keeper: Keeper
    vmm: Vmm

    async def connect_guest(self) -> trio.SocketStream:
        """A stream to the guest link. Raises OSError while there is none yet."""
        return await self.vmm.connect_guest(self.plan)

    async def wait_gone(self) -> VmmExit:
        """How the VMM ended, once it has."""
        return await self.keeper.wait_exit()

    async def console_tail(self, limit_bytes: int) -> bytes:
        """The end of what the VMM printed, from its keeper or, after both are gone, from the VM's folder."""
        try:
            tail, chunk = b"", await self.keeper.console(1 << 62)
            offset = max(0, chunk.total - limit_bytes)
            while offset < chunk.total:  # not the total of each answer: a guest that never stops printing has none
                told = await self.keeper.console(offset)
                tail, offset = tail + told.data, told.start + max(len(told.data), 1)
            return tail[-limit_bytes:]
        except (KeeperGone, Unavailable):
            return await trio.to_thread.run_sync(read_console_file, self.plan, limit_bytes)


def read_console_file(plan: VmPlan, limit_bytes: int) -> bytes:
    """The console's end as the keeper left it; nothing where it left none."""
    try:
        return (plan.paths.folder / CONSOLE_TAIL).read_bytes()[-limit_bytes:]
    except FileNotFoundError:
        return b""


def render_keeper_spec(plan: VmPlan, spec: LaunchSpec, terms: KeeperTerms) -> KeeperSpec:
    """The keeper's orders for one VM."""
    spec_for = partial(
        KeeperSpec,
        folder=str(plan.paths.folder),
        cgroup=str(cgroup_dir(plan.object)),
        argv=spec.argv,
        deadline_ns=terms.deadline_ns,
        keep_fds=spec.keep_fds,
    )
    if spec.pid_file is not None:
        return spec_for(uid=0, gid=0, pid_file=str(spec.pid_file))
    if not spec.jailed:
        return spec_for(uid=os.geteuid(), gid=os.getegid())
    return spec_for(
        uid=plan.slot.uid,
        gid=plan.slot.gid,
        netns=str(netns_path(plan.net.name)),
        jail=Jail(str(plan.paths.jail), spec.binds, spec.devices, proc=spec.proc),
        rlimits=spec.rlimits,
    )


@asynccontextmanager
async def open_machine(vmm: Vmm, plan: VmPlan, boot: Boot, terms: KeeperTerms) -> AsyncIterator[Machine]:
    """The VM while the block runs. Leaving closes the agent's ends only: teardown is what ends a VM."""
    spec = render_keeper_spec(plan, vmm.describe(plan, boot), terms)
    try:
        keeper = await spawn_keeper(spec, orphan_fd=terms.orphan_fd)
    except KeeperFailed as error:
        raise await in_thread(partial(_with_last_words, plan, error)) from error
    async with keeper:
        yield Machine(plan, keeper, vmm)


def _with_last_words(plan: VmPlan, error: KeeperFailed) -> KeeperFailed:
    """A jailer that failed has said why; nobody else could."""
    if error.step != "pid-file":
        return error
    tail = read_console_file(plan, LAST_WORDS_BYTES).decode(errors="replace").strip()
    words = "".join(char if char.isprintable() else " " for char in tail)
    return KeeperFailed(f"{error}: {words}", error.step, error.errno)


@asynccontextmanager
async def find_machine(vmm: Vmm, plan: VmPlan, identity: ProcessId) -> AsyncIterator[Machine]:
    """A VM that was started before. Raises KeeperGone where it has ended; leaving is as with `open_machine`."""
    keeper = await connect_keeper(plan.paths.folder, identity)
    async with keeper:
        yield Machine(plan, keeper, vmm)
