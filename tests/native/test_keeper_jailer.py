"""A keeper whose command is a jailer: what that leaves behind is the VMM, or the start has failed by name."""

from __future__ import annotations

import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from nimbus.host import process
from nimbus.host_agent.keeper import connect_keeper, spawn_keeper
from nimbus.model.errors import Fenced, HostFault
from nimbus.wire.keeper import SOCKET_NAME, KeeperFailed, KeeperSpec
from tests.native.conftest import NOBODY_UID, Room, boottime_ns, wait_console

pytestmark = pytest.mark.root

# A child that is dead when its parent writes down its pid, and that nobody has waited for yet.
DEAD_BEFORE_THE_JAILER = """
import os, sys
pid = os.fork()
if pid == 0:
    os._exit(42)
os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
open(sys.argv[1], "w").write(str(pid))
"""


def pid_file(room: Room) -> Path:
    return room.folder / "vmm.pid"


def jailer(room: Room, script: str, deadline_ns: int | None = None) -> KeeperSpec:
    """A shell that plays the jailer; $FILE stands for the pid file."""
    text = script.replace("$FILE", str(pid_file(room)))
    return replace(room.shell(text, deadline_ns), pid_file=str(pid_file(room)))


async def test_the_vmm_is_whom_the_jailer_left_and_named(room: Room) -> None:
    spec = jailer(room, "sh -c 'echo up; sleep 1000; :' & printf %s $! > $FILE")
    async with await spawn_keeper(spec) as keeper:
        vmm = await keeper.vmm_identity()
        await wait_console(keeper, b"up\n")  # by then it is no copy of the jailer's shell any more
        cmdline = await trio.Path(f"/proc/{vmm.pid}/cmdline").read_bytes()
        assert cmdline == b"sh\0-c\0echo up; sleep 1000; :\0"
        status = await keeper.status()
        assert (status.phase, status.vmm_pid) == ("running", vmm.pid)
        await keeper.kill("test")
        ending = await keeper.wait_exit()
    assert (ending.kind, ending.code, ending.reason) == ("signaled", 9, "kill")
    assert not process.is_alive(vmm)
    assert room.is_empty()


async def test_the_exit_status_is_the_vmms_and_its_words_follow_the_jailers(room: Room) -> None:
    spec = jailer(room, "echo jailed; sh -c 'read word < $FILE.go; echo served; exit 42' & printf %s $! > $FILE")
    os.mkfifo(f"{pid_file(room)}.go")
    async with await spawn_keeper(spec) as keeper:
        await wait_console(keeper, b"jailed\n")
        await trio.to_thread.run_sync(Path(f"{pid_file(room)}.go").write_text, "go\n")
        ending = await keeper.wait_exit()
    assert (ending.kind, ending.code, ending.reason) == ("exited", 42, "exit")
    assert (room.folder / "console.tail").read_bytes() == b"jailed\nserved\n"


async def test_a_vmm_that_was_dead_before_its_jailer_ended_keeps_its_status(room: Room) -> None:
    argv = ("/usr/bin/python3", "-c", DEAD_BEFORE_THE_JAILER, str(pid_file(room)))
    async with await spawn_keeper(replace(room.spec, argv=argv, pid_file=str(pid_file(room)))) as keeper:
        ending = await keeper.wait_exit()
    assert (ending.kind, ending.code) == ("exited", 42)


async def test_a_jailer_that_fails_is_told_by_its_status_and_its_words_stay(room: Room) -> None:
    with pytest.raises(KeeperFailed, match="ended with status 3") as caught:
        await spawn_keeper(jailer(room, "sleep 1000 & printf %s $! > $FILE; echo no room >&2; exit 3"))
    assert caught.value.step == "pid-file"
    assert (room.folder / "console.tail").read_bytes() == b"no room\n"
    assert not (room.folder / "exit.json").exists()
    assert room.is_empty()


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("sleep 1000 &", "No such file"),
        ("sleep 1000 & printf %s $! > $FILE.real; ln -s $FILE.real $FILE", "symbolic links"),
        ("sleep 1000 & printf %s $! > $FILE.real; ln $FILE.real $FILE", "not permitted"),
        (f"sleep 1000 & printf %s $! > $FILE; chown {NOBODY_UID} $FILE", "not permitted"),
        ("mkfifo $FILE", "not permitted"),
        ("mkdir $FILE", "not permitted"),
        ("sleep 1000 & : > $FILE", "Invalid argument"),
        ("sleep 1000 & printf '%s x' $! > $FILE", "Invalid argument"),
        ("printf -- -1 > $FILE", "Invalid argument"),
        ("printf 0 > $FILE", "Invalid argument"),
        ("printf 99999999999 > $FILE", "Invalid argument"),
        ("printf 1 > $FILE", "no child"),
        ("printf $$ > $FILE", "no child"),
        (f"sleep 1000 & printf {os.getpid() + 100_000} > $FILE", "no child"),
    ],
)
async def test_a_pid_file_that_names_no_child_of_root_is_refused(room: Room, script: str, why: str) -> None:
    with pytest.raises(KeeperFailed, match=why) as caught:
        await spawn_keeper(jailer(room, script))
    assert caught.value.step == "pid-file"
    assert room.is_empty()


async def test_a_jailer_that_hangs_is_ended_by_the_deadline(room: Room) -> None:
    with trio.fail_after(30), pytest.raises(Fenced):
        await spawn_keeper(jailer(room, "sleep 1000", deadline_ns=boottime_ns(after_s=0.3)))
    assert room.is_empty()


async def test_a_jailer_that_hangs_is_ended_when_its_starter_gives_up(room: Room) -> None:
    with trio.move_on_after(0.3):
        await spawn_keeper(jailer(room, "sleep 1000"))
    assert room.is_empty()


async def test_a_lease_takes_the_place_of_the_orphan_pipe(room: Room) -> None:
    read_fd, write_fd = os.pipe()
    async with await spawn_keeper(room.spec, orphan_fd=read_fd) as keeper:
        os.close(read_fd)
        await keeper.lease(boottime_ns(after_s=1000))
        os.close(write_fd)
        assert (await keeper.status()).killing is None
        assert process.is_alive(await keeper.vmm_identity())
        await keeper.lease(boottime_ns(after_s=0.2))
        assert (await keeper.wait_exit()).reason == "deadline"


async def test_a_lease_that_has_passed_changes_nothing(room: Room) -> None:
    read_fd, write_fd = os.pipe()
    async with await spawn_keeper(room.spec, orphan_fd=read_fd) as keeper:
        os.close(read_fd)
        with pytest.raises(Fenced):
            await keeper.lease(boottime_ns(after_s=-1))
        assert (await keeper.status()).deadline_ns is None
        os.close(write_fd)
        assert (await keeper.wait_exit()).reason == "orphan"


async def answer_version(listening: trio.socket.SocketType, version: bytes) -> None:
    client, _ = await listening.accept()
    with client:
        await client.recv(64)
        await client.send(version)


@pytest.mark.parametrize("version", [b"1", b"2"])
async def test_a_keeper_of_this_version_or_the_last_is_taken_over(room: Room, version: bytes) -> None:
    with trio.socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        await listening.bind(str(room.folder / SOCKET_NAME))
        listening.listen(1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer_version, listening, version)
            keeper = await connect_keeper(room.folder, process.identify(os.getpid()))
            await keeper.aclose()


async def test_a_keeper_of_a_version_to_come_is_left_alone_and_named(room: Room) -> None:
    with trio.socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        await listening.bind(str(room.folder / SOCKET_NAME))
        listening.listen(1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer_version, listening, b"3")
            with pytest.raises(HostFault, match="speaks version 3, this agent 1, 2"):
                await connect_keeper(room.folder, process.identify(os.getpid()))
