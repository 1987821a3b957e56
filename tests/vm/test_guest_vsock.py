"""nimbus-init as PID 1 with a vsock port for its link, in a guest whose kernel talks vsock to itself.

QEMU's own vsock device wants a module of the host's; so a relay in the guest stands for the VMM: it carries bytes
between a virtio port of another name, behind which the test sits, and the vsock port.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import trio

from nimbus.host_agent.guest import GuestConnected, GuestHello
from nimbus.host_agent.guesttalk import connect_patiently
from nimbus.model.vm import GuestExit
from nimbus.rootfs.tree import file
from tests.hosts import require_guest
from tests.native.guest_double import CutStream, Host, shell
from tests.vm.altered_guest import alter_initramfs, compile_init, compile_program, loopback_modules
from tests.vm.bare_guest import BareGuest, new_session, open_bare_guest

pytestmark = [pytest.mark.vm, pytest.mark.slow]
LIMIT_S = 180  # five seconds of them the guest waits for a virtio port of its own
ITSELF = "LINK_HOST_CID=VMADDR_CID_LOCAL"


@pytest.fixture(autouse=True)
def _guest() -> None:
    require_guest()


def vsock_initramfs(folder: Path, *defines: str) -> Path:
    """/init is the relay, and runs nimbus-init."""
    programs = (
        file("init", compile_program("vsock_relay", folder), 0o755),
        file("nimbus-init", compile_init(folder, *defines), 0o755),
    )
    return alter_initramfs(folder, [*programs, *loopback_modules()])


async def test_a_job_runs_over_vsock_though_its_connections_break_again_and_again(tmp_path: Path) -> None:
    chance = random.Random(2)
    host = Host()
    cuts = 0

    async def connect_badly(guest: BareGuest) -> trio.abc.Stream:
        nonlocal cuts
        inner = await guest.connect()
        cuts += 1
        if cuts > 15:
            return inner
        return CutStream(inner, int(10 ** chance.uniform(1, 5.5)), int(10 ** chance.uniform(2, 4.5)))

    initramfs = vsock_initramfs(tmp_path, ITSELF)
    async with open_bare_guest(tmp_path, network=False, initramfs=initramfs, port="relay") as guest:
        with trio.fail_after(LIMIT_S):
            session = replace(new_session(shell("seq 1 100000; exit 9")), net=None)
            await host.run(session, partial(connect_badly, guest))
            await guest.process.wait()

    expected = hashlib.sha256("".join(f"{n}\n" for n in range(1, 100_001)).encode())
    assert host.sink.hashes["stdout"].digest() == expected.digest()
    assert host.saved == [GuestExit(9, None)]
    assert all(event.prepared for event in host.events if isinstance(event, GuestHello))
    assert sum(isinstance(event, GuestConnected) for event in host.events) > 5


async def test_whoever_connects_from_within_the_guest_is_not_taken_for_its_host(tmp_path: Path) -> None:
    console = tmp_path / "console"
    refused = b"a connection from 1 was refused"
    initramfs = vsock_initramfs(tmp_path)
    async with open_bare_guest(tmp_path, network=False, initramfs=initramfs, port="relay", console=console) as guest:
        with trio.fail_after(LIMIT_S):
            stream = await connect_patiently(guest.connect)  # the relay takes it for a reason to connect
            while refused not in await trio.Path(console).read_bytes():
                assert guest.process.returncode is None
                await trio.sleep(0.05)  # QEMU's file signals nothing
            await stream.aclose()
