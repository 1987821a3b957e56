"""The keeper's socket and console ring: what a wrong, slow or greedy client can do (nothing)."""

from __future__ import annotations

import os
import select
import socket
import stat
from contextlib import ExitStack, closing

import pytest
import trio

from nimbus.host import process
from nimbus.host_agent.keeper import Keeper, spawn_keeper
from nimbus.model.errors import Unavailable
from nimbus.wire.keeper import RING_BYTES, SOCKET_NAME, VANISHED, VERSION
from tests.native.conftest import Room, boottime_ns, wait_console, wait_printed

pytestmark = pytest.mark.root
CLIENTS_MAX = 16


def connect(room: Room) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.settimeout(10)
    folder_fd = os.open(room.folder, os.O_RDONLY)
    try:
        sock.connect(f"/proc/self/fd/{folder_fd}/{SOCKET_NAME}")
    finally:
        os.close(folder_fd)
    return sock


def ask(sock: socket.socket, message: bytes) -> bytes:
    sock.send(message)
    return sock.recv(64 * 1024)


def flood(sock: socket.socket) -> None:
    """Ask and never read an answer, far more often than any buffer can hold."""
    for _ in range(100_000):
        sock.send(b"STATUS")


@pytest.mark.parametrize(
    "garbage",
    [
        b"\0",
        b"status",
        b"STATUS ",
        b"KILL",
        b"KILL Ill\0egal",
        b"DEADLINE 99999999999999999999999",
        b"LEASE none",
        b"\xff" * 64,
        b"A" * 60_000,
    ],
)
async def test_garbage_is_called_malformed_and_changes_nothing(room: Room, garbage: bytes) -> None:
    async with await spawn_keeper(room.spec) as keeper:
        with closing(connect(room)) as sock:
            assert ask(sock, garbage) == b"ERR malformed"
            assert ask(sock, b"VERSION") == b"%d" % VERSION
        assert (await keeper.status()).killing is None


async def test_an_empty_message_ends_only_its_own_client(room: Room) -> None:
    async with await spawn_keeper(room.spec) as keeper:
        with closing(connect(room)) as sock:
            assert ask(sock, b"") == b""
        assert await keeper.version() == VERSION


async def test_a_kill_gets_through_though_others_hold_every_place(room: Room) -> None:
    async with await spawn_keeper(room.spec) as keeper:
        with ExitStack() as held:
            first, *_ = [held.enter_context(closing(connect(room))) for _ in range(CLIENTS_MAX)]
            assert ask(first, b"VERSION") == b"%d" % VERSION
            await keeper.kill("fenced")
            assert first.recv(64) == b""
            assert (await keeper.wait_exit()).detail == "fenced"


async def test_a_keeper_that_lives_and_is_silent_is_not_taken_for_dead(room: Room) -> None:
    async with await spawn_keeper(room.spec) as keeper:
        (room.folder / SOCKET_NAME).unlink()
        with pytest.raises(Unavailable):
            await keeper.status()
        assert process.is_alive(keeper.identity)


async def test_a_kill_ends_the_vm_though_its_keeper_cannot_be_asked(room: Room) -> None:
    async with await spawn_keeper(room.spec) as keeper:
        (room.folder / SOCKET_NAME).unlink()
        await keeper.kill("test")
        assert await keeper.wait_exit() == VANISHED
    assert room.is_empty()


async def test_a_client_that_never_reads_is_dropped_and_nobody_waits_for_it(room: Room) -> None:
    async with await spawn_keeper(room.spec) as keeper:
        with closing(connect(room)) as slow:
            waiting = select.poll()
            waiting.register(slow, select.POLLHUP)
            with pytest.raises(OSError, match=r"Broken pipe|reset"):
                flood(slow)
            assert waiting.poll(5000)
        assert await keeper.version() == VERSION


async def test_the_socket_is_for_root_alone(room: Room) -> None:
    async with await spawn_keeper(room.spec):
        status = (room.folder / SOCKET_NAME).stat()
    assert stat.S_IMODE(status.st_mode) == 0o600
    assert status.st_uid == 0


async def test_the_socket_is_gone_after_the_end(room: Room) -> None:
    async with await spawn_keeper(room.shell("exit 0")) as keeper:
        await keeper.wait_exit()
    assert sorted(os.listdir(room.folder)) == ["console.tail", "exit.json"]


async def test_a_keeper_is_reached_though_its_path_is_longer_than_a_socket_address(room: Room) -> None:
    deep = room.folder / ("d" * 120)
    deep.mkdir()
    async with await spawn_keeper(Room(room.name, deep).spec) as keeper:
        assert await keeper.version() == VERSION


async def test_the_vmm_is_named_by_the_hosts_pid(room: Room) -> None:
    async with await spawn_keeper(room.spec) as keeper:
        vmm = await keeper.vmm_identity()
        assert (await keeper.status()).vmm_pid == vmm.pid
        assert process.is_alive(vmm)
        assert os.readlink(f"/proc/{vmm.pid}/exe").endswith("sleep")


async def test_a_question_that_is_cancelled_leaves_the_next_answer_right(room: Room) -> None:
    async with await spawn_keeper(room.spec) as keeper:
        for step in range(20):
            with trio.move_on_after(step * 0.00005):
                await keeper.status()
            assert await keeper.version() == VERSION


async def read_console(keeper: Keeper, total: int) -> tuple[int, bytes]:
    """Everything that the ring holds, and where it starts."""
    first = chunk = await keeper.console(0)
    data = chunk.data
    while chunk.start + len(chunk.data) < total:
        chunk = await keeper.console(chunk.start + len(chunk.data))
        data += chunk.data
    return first.start, data


async def test_the_console_keeps_its_last_64_kib_and_their_offsets(room: Room) -> None:
    printed = b"".join(b"%06d\n" % number for number in range(30_000))
    script = "seq -f %06.0f 0 29999; exec sleep 1000"
    async with await spawn_keeper(room.shell(script)) as keeper:
        await wait_printed(keeper, len(printed))
        start, data = await read_console(keeper, len(printed))
        assert (start, data) == (len(printed) - RING_BYTES, printed[-RING_BYTES:])
        assert (await keeper.console(1 << 62)) == (len(printed), len(printed), b"")
        await keeper.kill("test")
        ending = await keeper.wait_exit()
    assert ending.console_total == len(printed)
    assert (room.folder / "console.tail").read_bytes() == printed[-RING_BYTES:]


async def test_a_vmm_that_never_stops_printing_neither_blocks_nor_escapes_its_deadline(room: Room) -> None:
    spec = room.shell("exec yes", deadline_ns=boottime_ns(after_s=0.3))
    async with await spawn_keeper(spec) as keeper:
        await wait_console(keeper, b"y\ny\n")
        ending = await keeper.wait_exit()
    assert ending.reason == "deadline"
    assert ending.console_total > 4 * RING_BYTES
