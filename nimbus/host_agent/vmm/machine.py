"""A running VM as the agent holds it: its keeper, its console and the way to its guest.

Knows no backend. Made by `open_machine` from a LaunchSpec, or by adoption from a record.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import trio

from nimbus.host.cgroup import cgroup_dir
from nimbus.host.netns import netns_path
from nimbus.host_agent.keeper import Keeper, KeeperGone, connect_keeper, spawn_keeper
from nimbus.host_agent.plan import VmPlan
from nimbus.model.errors import HostFault, Unavailable
from nimbus.model.record import ProcessId
from nimbus.storage.images import Image
from nimbus.wire.keeper import Bind, Jail, KeeperSpec, VmmExit

CONSOLE_TAIL = "console.tail"


@dataclass(frozen=True)
class Boot:
    """What a boot needs beyond the plan: the image's files, the VMM's binary and the host's TSC rate."""

    image: Image | None
    binary: Path
    tsc_khz: int


@dataclass(frozen=True)
class LaunchSpec:
    """What to start, as data: the argv as seen inside the jail, and what the jail shows."""

    argv: tuple[str, ...]
    binds: tuple[Bind, ...] = ()
    devices: tuple[str, ...] = ()  # names below /dev
    rlimits: Mapping[str, int | None] = field(default_factory=dict)
    jailed: bool = True  # own netns, own root, own uid; only the fake goes without


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

    async def connect_guest(self) -> trio.SocketStream:
        """A stream to the guest link. Raises OSError while the VMM has not made its socket yet."""
        return await connect_unix(self.plan.paths.link)

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
    )
    if not spec.jailed:
        return spec_for(uid=os.geteuid(), gid=os.getegid())
    return spec_for(
        uid=plan.slot.uid,
        gid=plan.slot.gid,
        netns=str(netns_path(plan.net.name)),
        jail=Jail(str(plan.paths.jail), spec.binds, spec.devices),
        rlimits=spec.rlimits,
    )


@asynccontextmanager
async def open_machine(plan: VmPlan, spec: LaunchSpec, terms: KeeperTerms) -> AsyncIterator[Machine]:
    """The VM while the block runs. Leaving closes the agent's ends only: teardown is what ends a VM."""
    keeper = await spawn_keeper(render_keeper_spec(plan, spec, terms), orphan_fd=terms.orphan_fd)
    async with keeper:
        yield Machine(plan, keeper)


@asynccontextmanager
async def find_machine(plan: VmPlan, identity: ProcessId) -> AsyncIterator[Machine]:
    """The VM that an earlier agent started. Raises KeeperGone where it has ended; leaving is as with `open_machine`."""
    keeper = await connect_keeper(plan.paths.folder, identity)
    async with keeper:
        yield Machine(plan, keeper)


async def connect_unix(path: Path) -> trio.SocketStream:
    """A stream to the unix socket at `path`, however long that path is (sun_path holds 107 bytes).

    The folder belongs to a VM's uid, so the socket's own inode is opened, never a link's target, and
    connected by its descriptor. Raises OSError while there is none.
    """
    found = os.open(path, os.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        if not stat.S_ISSOCK(os.fstat(found).st_mode):
            raise HostFault(f"{path.name} of the VM is no socket: a VMM tried to lead the agent elsewhere")
        sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            await sock.connect(f"/proc/self/fd/{found}")
        except BaseException:
            sock.close()
            raise
        return trio.SocketStream(sock)
    finally:
        os.close(found)
