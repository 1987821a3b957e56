"""Starts that fail, are late, cancelled or not allowed: each is named, and none leaves anything."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import replace

import pytest
import trio

from nimbus.host import cgroup
from nimbus.host_agent.keeper import KEEPER_BINARY, KeeperGone, connect_keeper, spawn_keeper
from nimbus.model.errors import Fenced, HostFault
from nimbus.wire.keeper import KeeperFailed
from tests.native.conftest import NOBODY_UID, Room, boottime_ns

pytestmark = pytest.mark.root


async def test_a_start_after_its_deadline_is_refused_and_starts_nothing(room: Room) -> None:
    marker = room.folder / "ran"
    with pytest.raises(Fenced):
        await spawn_keeper(room.shell(f"touch {marker}", deadline_ns=boottime_ns(after_s=-1)))
    assert not marker.exists()
    assert room.is_empty()


async def test_a_start_that_is_cancelled_leaves_nothing_running(make_room: Callable[[], Room]) -> None:
    started = []
    for step in range(24):
        room = make_room()
        with trio.move_on_after(step * 0.0005) as scope:
            started.append(await spawn_keeper(room.spec))
        if scope.cancelled_caught:
            assert room.is_empty()
    for keeper in started:
        await keeper.aclose()
    assert len(started) < 24


async def test_starts_good_and_bad_leave_no_descriptor_open(make_room: Callable[[], Room]) -> None:
    counts = []
    for _ in range(6):
        room = make_room()
        async with await spawn_keeper(room.shell("exit 0")) as keeper:
            await keeper.kill("test")
            await keeper.wait_exit()
        with pytest.raises(KeeperFailed):
            await spawn_keeper(replace(room.spec, argv=("/no/such/vmm",)))
        with pytest.raises(KeeperGone):
            await connect_keeper(room.folder, keeper.identity)
        counts.append(len(os.listdir("/proc/self/fd")))
    assert len(set(counts[1:])) == 1


async def test_a_step_that_fails_is_named_and_nothing_is_left(room: Room) -> None:
    failing = {
        "exec": replace(room.spec, argv=("/no/such/vmm",)),
        "netns": replace(room.spec, netns="/run/netns/no-such-netns"),
        "cgroup": replace(room.spec, cgroup="/no/such/cgroup"),
        "rlimit": replace(room.spec, rlimits={"nofile": 1 << 40}),
    }
    steps = []
    for spec in failing.values():
        with pytest.raises(KeeperFailed) as caught:
            await spawn_keeper(spec)
        steps.append(caught.value.step)
    assert steps == list(failing)
    assert room.is_empty()
    assert os.listdir(room.folder) == ["keeper.sock"] or os.listdir(room.folder) == []


async def test_a_vm_without_its_folder_is_a_fault_of_the_host(room: Room) -> None:
    with pytest.raises(HostFault, match="no-such-folder"):
        await spawn_keeper(replace(room.spec, folder=str(room.folder / "no-such-folder")))


async def test_the_environment_of_the_agent_never_reaches_the_vmm(room: Room) -> None:
    os.environ["NIMBUS_TEST_SECRET"] = "do not leak"
    async with await spawn_keeper(replace(room.spec, argv=("/usr/bin/env",))) as keeper:
        await keeper.wait_exit()
    del os.environ["NIMBUS_TEST_SECRET"]
    assert (room.folder / "console.tail").read_bytes() == b""


def run_binary(*words: str, user: int = 0) -> subprocess.CompletedProcess[str]:
    fd = os.open(KEEPER_BINARY, os.O_RDONLY)  # by descriptor: another user may not reach the checkout
    try:
        return subprocess.run(
            [f"/proc/self/fd/{fd}", *words], user=user, pass_fds=(fd,), capture_output=True, text=True, check=False
        )
    finally:
        os.close(fd)


def test_an_ordinary_user_is_told_that_root_is_needed(room: Room) -> None:
    words = ("--dir", "/a", "--cgroup", "/b", "--uid", "1", "--gid", "1", "--deadline", "none", "--", "/bin/true")
    ran = run_binary(*words, user=NOBODY_UID)
    assert (ran.returncode, ran.stderr) == (
        77,
        "nimbus-keeper: needs root: namespaces, cgroups and the VMM's own uid\n",
    )


def test_a_wrong_option_is_named(room: Room) -> None:
    ran = run_binary("--ready-fd", "1", "--netns", "relative")
    assert ran.returncode == 64
    assert json.loads(ran.stdout)["error"] == "--netns: an absolute path without .. is needed"


@pytest.mark.parametrize("killed", ["keeper", "vmm", ""])
async def test_a_vmm_starts_in_a_cgroup_that_was_killed_before(room: Room, killed: str) -> None:
    (cgroup.cgroup_dir(room.name) / killed / "cgroup.kill").write_text("1")
    async with await spawn_keeper(room.shell("exit 7")) as keeper:
        assert (await keeper.wait_exit()).code == 7
