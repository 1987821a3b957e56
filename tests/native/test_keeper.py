"""A keeper's life and its VMM's death, with real processes; a shell plays the VMM."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from nimbus.host import process
from nimbus.host_agent.keeper import KeeperGone, connect_keeper, read_exit, spawn_keeper
from nimbus.model.errors import Fenced
from nimbus.model.record import ProcessId
from nimbus.wire.keeper import VANISHED
from tests.native.conftest import Room, boottime_ns, wait_console

pytestmark = pytest.mark.root
ROOT = Path(__file__).resolve().parents[2]

# An agent of its own process, so that it can be killed: starts one keeper, tells its identity, waits for the end.
AGENT = """
import json, os, sys, trio
from nimbus.host_agent.keeper import spawn_keeper
from nimbus.wire.keeper import KeeperSpec

async def main():
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    spec = KeeperSpec(sys.argv[1], sys.argv[2], 0, 0, ("/bin/sleep", "1000"), None)
    keeper = await spawn_keeper(spec, orphan_fd=read_fd if sys.argv[3] == "orphan" else None)
    identity = keeper.identity
    print(json.dumps([identity.pid, identity.start_ticks, identity.boot_id]), flush=True)
    await trio.sleep_forever()

trio.run(main)
"""


def start_and_kill_agent(room: Room, lease: str) -> ProcessId:
    agent = subprocess.Popen(
        [sys.executable, "-c", AGENT, room.spec.folder, room.spec.cgroup, lease],
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )
    with agent:
        assert agent.stdout is not None
        pid, ticks, boot = json.loads(agent.stdout.readline())
        agent.kill()
    return ProcessId(pid, ticks, boot)


def is_dead_soon(pidfd: int) -> bool:
    waiting = select.poll()
    waiting.register(pidfd, select.POLLIN)
    return bool(waiting.poll(5000))


async def test_the_exit_status_of_a_vmm_is_kept(room: Room) -> None:
    async with await spawn_keeper(room.shell("exit 7")) as keeper:
        ending = await keeper.wait_exit()
    assert (ending.kind, ending.code, ending.reason) == ("exited", 7, "exit")
    assert room.is_empty()


async def test_the_signal_that_ended_a_vmm_is_kept(room: Room) -> None:
    async with await spawn_keeper(room.shell("kill -SEGV $$")) as keeper:
        ending = await keeper.wait_exit()
    assert (ending.kind, ending.code, ending.reason) == ("signaled", signal.SIGSEGV, "exit")


async def test_a_vmm_that_ends_at_once_still_has_a_keeper_to_ask(make_room: Callable[[], Room]) -> None:
    for code in range(20):
        async with await spawn_keeper(make_room().shell(f"exit {code}")) as keeper:
            assert (await keeper.wait_exit()).code == code


async def test_several_tasks_may_wait_for_one_end(room: Room) -> None:
    codes = []

    async def wait() -> None:
        codes.append((await keeper.wait_exit()).code)

    async with await spawn_keeper(room.spec) as keeper, trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        nursery.start_soon(wait)
        await keeper.kill("test")
    assert codes == [signal.SIGKILL, signal.SIGKILL]


async def test_a_deadline_that_passes_kills_the_vmm(room: Room) -> None:
    deadline_ns = boottime_ns(after_s=0.2)
    async with await spawn_keeper(replace(room.spec, deadline_ns=deadline_ns)) as keeper:
        ending = await keeper.wait_exit()
    assert (ending.kind, ending.code, ending.reason) == ("signaled", signal.SIGKILL, "deadline")
    assert ending.ended_ns is not None
    assert ending.ended_ns >= deadline_ns
    assert room.is_empty()


async def test_a_moved_deadline_is_the_one_that_counts(room: Room) -> None:
    async with await spawn_keeper(replace(room.spec, deadline_ns=boottime_ns(after_s=600))) as keeper:
        await keeper.set_deadline(None)
        assert (await keeper.status()).deadline_ns is None
        await keeper.set_deadline(boottime_ns(after_s=0.1))
        assert (await keeper.wait_exit()).reason == "deadline"


async def test_a_deadline_cannot_be_moved_into_the_past(room: Room) -> None:
    deadline_ns = boottime_ns(after_s=600)
    async with await spawn_keeper(replace(room.spec, deadline_ns=deadline_ns)) as keeper:
        with pytest.raises(Fenced):
            await keeper.set_deadline(boottime_ns(after_s=-1))
        assert (await keeper.status()).deadline_ns == deadline_ns


async def test_a_kill_tells_its_reason_and_may_come_twice(room: Room) -> None:
    async with await spawn_keeper(room.spec) as keeper:
        await keeper.kill("cancelled")
        await keeper.kill("second-thought")
        ending = await keeper.wait_exit()
        await keeper.kill("too-late")
        with pytest.raises(KeeperGone):
            await keeper.status()
    assert (ending.reason, ending.detail) == ("kill", "cancelled")


async def test_a_killed_keeper_takes_its_vmm_along(room: Room) -> None:
    async with await spawn_keeper(room.shell("setsid sleep 1000 & exec sleep 1000")) as keeper:
        vmm = await keeper.vmm_pidfd()
        os.kill(keeper.identity.pid, signal.SIGKILL)
        assert await keeper.wait_exit() == VANISHED
    assert is_dead_soon(vmm)
    assert room.is_empty()
    os.close(vmm)


async def test_a_keeper_is_deaf_to_polite_signals(room: Room) -> None:
    async with await spawn_keeper(room.spec) as keeper:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGALRM):
            os.kill(keeper.identity.pid, number)
        assert (await keeper.status()).phase == "running"


async def test_a_vm_outlives_a_killed_agent_until_its_next_agent_ends_it(room: Room) -> None:
    identity = start_and_kill_agent(room, "lease")
    async with await connect_keeper(room.folder, identity) as keeper:
        assert (await keeper.status()).phase == "running"
        assert process.is_alive(await keeper.vmm_identity())
        await keeper.set_deadline(boottime_ns(after_s=0.1))
        ending = await keeper.wait_exit()
    assert ending.reason == "deadline"


async def test_a_local_vm_dies_with_the_process_that_held_its_pipe(room: Room) -> None:
    start_and_kill_agent(room, "orphan")
    assert room.is_empty()
    ending = await read_exit(room.folder)
    assert (ending.kind, ending.reason) == ("signaled", "orphan")


async def test_a_dead_keeper_cannot_be_connected_but_its_word_can_be_read(room: Room) -> None:
    async with await spawn_keeper(room.shell("exit 3")) as keeper:
        await keeper.wait_exit()
        identity = keeper.identity
    assert room.is_empty()
    with pytest.raises(KeeperGone):
        await connect_keeper(room.folder, identity)
    assert (await read_exit(room.folder)).code == 3


async def test_whatever_a_vmm_started_dies_with_it(room: Room) -> None:
    script = "trap '' TERM HUP INT; for i in 1 2 3; do setsid sh -c 'sleep 1000 & sleep 1000' & done; exit 5"
    async with await spawn_keeper(room.shell(script)) as keeper:
        ending = await keeper.wait_exit()
    assert ending.code == 5
    assert room.is_empty()


async def test_a_vmm_that_forks_without_end_is_killed_all_the_same(room: Room) -> None:
    script = "f() { while :; do sleep 1000 & sleep 0.01; done; }; f & f & f"
    async with await spawn_keeper(room.shell(script, deadline_ns=boottime_ns(after_s=0.3))) as keeper:
        assert (await keeper.wait_exit()).reason == "deadline"
    assert room.is_empty()


async def test_twenty_keepers_at_once_keep_twenty_different_endings(make_room: Callable[[], Room]) -> None:
    codes: dict[int, int | None] = {}

    async def run(number: int) -> None:
        async with await spawn_keeper(make_room().shell(f"echo vm {number}; exit {number}")) as keeper:
            codes[number] = (await keeper.wait_exit()).code

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(run, number)
    assert codes == {number: number for number in range(20)}


async def test_a_vmm_that_is_stopped_or_frozen_dies_at_its_deadline_all_the_same(room: Room) -> None:
    async with await spawn_keeper(room.spec) as keeper:
        vmm = await keeper.vmm_identity()
        os.kill(vmm.pid, signal.SIGSTOP)
        Path(room.spec.cgroup, "vmm", "cgroup.freeze").write_text("1")  # noqa: ASYNC240 - a cgroup file never blocks
        await keeper.set_deadline(boottime_ns(after_s=0.1))
        assert (await keeper.wait_exit()).reason == "deadline"
    assert room.is_empty()


async def test_the_last_words_of_a_vmm_are_kept(room: Room) -> None:
    async with await spawn_keeper(room.shell("echo panic: no root >&2; exit 1")) as keeper:
        ending = await keeper.wait_exit()
    assert (room.folder / "console.tail").read_text() == "panic: no root\n"
    assert ending.console_total == len("panic: no root\n")


async def test_a_wait_for_a_console_line_sees_it(room: Room) -> None:
    async with await spawn_keeper(room.shell("echo hello; exec sleep 1000")) as keeper:
        assert await wait_console(keeper, b"hello") == b"hello\n"
