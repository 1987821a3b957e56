"""A running VM as the agent holds it: its keeper, its console and the way to its guest.

Knows no backend. Made by `open_machine` from a LaunchSpec, or by adoption from a record.
"""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from nimbus.host.cgroup import cgroup_dir
from nimbus.host_agent.keeper import Keeper, spawn_keeper
from nimbus.host_agent.plan import VmPlan
from nimbus.model.errors import HostFault
from nimbus.storage.images import Image
from nimbus.wire.keeper import Bind, KeeperSpec, VmmExit

KILL_LIMIT_S = 5.0  # a keeper that does not answer a kill within this is killed itself, by teardown


@dataclass(frozen=True)
class Boot:
    """What a boot needs beyond the plan: the image's files, the VMM's binary and the host's TSC rate."""

    image: Image | None
    overlay: Path | None
    binary: Path
    tsc_khz: int


@dataclass(frozen=True)
class LaunchSpec:
    """What to start, as data: the argv as seen inside the jail, and what the jail shows."""

    argv: tuple[str, ...]
    jailed: bool = True
    binds: tuple[Bind, ...] = ()
    devices: tuple[str, ...] = ()  # names below /dev
    rlimits: tuple[tuple[str, int], ...] = ()


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

    async def kill(self, reason: str) -> None:
        """Ask the keeper to kill the VM now; the next step is teardown, which does not depend on the answer."""
        with trio.move_on_after(KILL_LIMIT_S):
            await self.keeper.kill(reason)


def render_keeper_spec(plan: VmPlan, spec: LaunchSpec, terms: KeeperTerms) -> KeeperSpec:
    """Pure: the keeper's orders for one VM."""
    return KeeperSpec(
        vm_dir=str(plan.paths.folder),
        cgroup=str(cgroup_dir(plan.object)),
        netns=f"/run/netns/{plan.net.name}" if spec.jailed else None,
        uid=plan.slot.uid if spec.jailed else None,
        gid=plan.slot.gid if spec.jailed else None,
        deadline_ns=terms.deadline_ns,
        jail=str(plan.paths.jail) if spec.jailed else None,
        binds=spec.binds,
        devices=spec.devices,
        rlimits=spec.rlimits,
        argv=spec.argv,
    )


@asynccontextmanager
async def open_machine(plan: VmPlan, spec: LaunchSpec, terms: KeeperTerms) -> AsyncIterator[Machine]:
    """The VM while the block runs. Leaving closes the agent's ends only: teardown is what ends a VM."""
    keeper = await spawn_keeper(render_keeper_spec(plan, spec, terms), orphan_fd=terms.orphan_fd)
    try:
        yield Machine(plan, keeper)
    finally:
        with trio.move_on_after(1, shield=True):
            await keeper.aclose()


async def connect_unix(path: Path) -> trio.SocketStream:
    """A stream to the unix socket at `path`, however long that path is (sun_path holds 107 bytes).

    The folder may belong to a VM's uid: the name itself is not followed where it is a symlink.
    """
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        if path.is_symlink():
            raise HostFault(f"{path} is a symlink: a VMM tried to lead the agent elsewhere")
        sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            await sock.connect(f"/proc/self/fd/{folder}/{path.name}")
        except BaseException:
            sock.close()
            raise
        return trio.SocketStream(sock)
    finally:
        os.close(folder)
