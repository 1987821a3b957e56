"""What several test modules here need: a VM's folder and cgroup, as the agent would have made them."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import trio

from nimbus.host import cgroup
from nimbus.host_agent.keeper import Keeper
from nimbus.model.ids import new_vm_id, object_name
from nimbus.wire.keeper import KeeperSpec

LIMITS = cgroup.Limits(cpus=1, mem_mib=256, pids=256)
NOBODY_UID = 65534
REMOVE_LIMIT_S = 5.0


@dataclass(frozen=True)
class Room:
    """One VM's folder and cgroup."""

    name: str
    folder: Path

    @property
    def spec(self) -> KeeperSpec:
        """A VMM that would sleep for long; tests replace what they are about."""
        return KeeperSpec(
            folder=str(self.folder),
            cgroup=str(cgroup.cgroup_dir(self.name)),
            uid=0,
            gid=0,
            argv=("/bin/sleep", "1000"),
            deadline_ns=None,
        )

    def shell(self, script: str, deadline_ns: int | None = None) -> KeeperSpec:
        return replace(self.spec, argv=("/bin/sh", "-c", script), deadline_ns=deadline_ns)

    def is_empty(self) -> bool:
        """Whether keeper, VMM and all their children are dead; waits a moment for the kernel to bury them."""
        return cgroup.wait_empty(self.name, REMOVE_LIMIT_S)


@pytest.fixture
def make_room(tmp_path: Path) -> Iterator[Callable[[], Room]]:
    if os.geteuid() != 0:
        pytest.skip("needs root: cgroups and namespaces")
    root_id = secrets.token_hex(2)[:3]
    rooms: list[Room] = []

    def make() -> Room:
        vm = new_vm_id()
        room = Room(object_name(root_id, vm), tmp_path / str(vm))
        room.folder.mkdir(mode=0o711)
        rooms.append(room)
        cgroup.ensure_leaf(room.name, LIMITS)
        return room

    yield make
    for room in rooms:
        cgroup.remove_cgroup(room.name, REMOVE_LIMIT_S)


@pytest.fixture
def room(make_room: Callable[[], Room]) -> Room:
    return make_room()


async def wait_console(keeper: Keeper, needle: bytes) -> bytes:
    """What the VMM has printed, once `needle` is in it. The console signals nothing, so this asks again."""
    with trio.fail_after(10):
        while True:
            data = (await keeper.console(0)).data
            if needle in data:
                return data
            await trio.sleep(0.005)


async def wait_printed(keeper: Keeper, total: int) -> None:
    """Until the VMM has printed that much."""
    with trio.fail_after(10):
        while True:
            if (await keeper.status()).console_total >= total:
                return
            await trio.sleep(0.005)


def boottime_ns(after_s: float = 0.0) -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) + int(after_s * 1e9)
