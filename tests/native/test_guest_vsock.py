"""nimbus-init as a process of this host, its link on a vsock port: the newest host is served."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio

from nimbus.model.vm import GuestExit
from nimbus.wire.guestlink import Hello, JobStarted, render_attach
from tests.native.guest_double import INIT, Host, RawHost, new_session, shell, wait_ready
from tests.native.test_guest_link import FAR, NONCE, job_frames

LOCAL_CID = 1


def has_loopback() -> bool:
    """Whether this kernel's vsock talks to itself: without vsock_loopback nobody is there, or nobody answers."""
    try:
        with (
            socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as listener,
            socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as caller,
        ):
            listener.bind((socket.VMADDR_CID_ANY, socket.VMADDR_PORT_ANY))
            listener.listen(1)
            caller.settimeout(0.5)
            caller.connect((LOCAL_CID, listener.getsockname()[1]))
    except OSError:
        return False
    return True


pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: the command becomes the user that it asks for"),
]
needs_loopback = pytest.mark.skipif(
    not has_loopback(), reason="needs vsock_loopback: tests/vm/test_guest_vsock.py has it in a guest"
)


def free_port() -> int:
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as probe:
        probe.bind((socket.VMADDR_CID_ANY, socket.VMADDR_PORT_ANY))
        return int(probe.getsockname()[1])


async def connect(port: int) -> trio.SocketStream:
    opened = trio.socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    await opened.connect((LOCAL_CID, port))
    return trio.SocketStream(opened)


@asynccontextmanager
async def open_vsock_double() -> AsyncIterator[int]:
    """The port of a double; killed where it has not gone by itself."""
    port = free_port()
    start = partial(trio.run_process, [INIT, "--host-double", f"vsock:{port}"], check=False, stdout=subprocess.PIPE)
    async with trio.open_nursery() as nursery:
        await wait_ready(await nursery.start(start))
        yield port
        nursery.cancel_scope.cancel()


async def test_a_double_holds_the_port_that_it_is_told() -> None:
    async with open_vsock_double() as port:
        with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as other, pytest.raises(OSError, match="in use"):
            other.bind((socket.VMADDR_CID_ANY, port))


@needs_loopback
async def test_a_job_runs_over_vsock() -> None:
    host = Host()
    async with open_vsock_double() as port:
        with trio.fail_after(30):
            await host.run(new_session(shell("seq 1 100000; exit 6")), partial(connect, port))

    assert host.saved == [GuestExit(6, None)]
    assert host.sink.ends["stdout"] == 588895


@needs_loopback
async def test_a_newer_connection_takes_the_place_of_one_that_still_stands() -> None:
    async with open_vsock_double() as port:
        with trio.fail_after(30):
            first = RawHost(await connect(port))
            await first.stream.send_all(render_attach(1, NONCE, (0, 0), FAR))
            await first.hear(Hello)
            await first.stream.send_all(job_frames("sleep 1000"))
            await first.hear(JobStarted)
            second = RawHost(await connect(port))
            await second.stream.send_all(render_attach(2, NONCE, (0, 0), FAR))
            hello = await second.hear(Hello)

    assert hello.attach_id == 2
