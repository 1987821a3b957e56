"""The real nimbus-init, prepared and looked at, as a process of this host."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import trio

from nimbus.host_agent.guest import GuestHello, look_at_guest
from nimbus.model.errors import GuestFault
from nimbus.model.vm import GuestExit
from nimbus.wire.guestlink import (
    GuestState,
    Hello,
    JobStarted,
    Refusal,
    Refused,
    render_attach,
    render_look,
    render_prepare,
)
from tests.native.guest_double import Double, Host, RawHost, new_session, open_double, run_once, shell
from tests.native.test_guest_link import FAR, NONCE, attached, job_frames

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: the command becomes the user that it asks for"),
]
ID = bytes(range(16))


def machine_id() -> str | None:
    """This host's, where it has one."""
    path = Path("/etc/machine-id")
    return path.read_text() if path.exists() else None


async def connected(double: Double) -> RawHost:
    return RawHost(await double.connect())


async def test_a_guest_tells_in_its_hello_that_it_was_prepared(tmp_path: Path) -> None:
    host = await run_once(tmp_path, shell("true"))

    assert [event.prepared for event in host.events if isinstance(event, GuestHello)] == [True]


async def test_a_double_leaves_the_hosts_clock_and_machine_id_alone(tmp_path: Path) -> None:
    before = machine_id()
    async with open_double(tmp_path) as double:
        host = await connected(double)
        await host.stream.send_all(render_prepare(10**18, bytes(32), ID) + render_attach(1, NONCE, (0, 0), FAR))
        with trio.fail_after(10):
            assert (await host.hear(Hello)).prepared

    assert time.time_ns() > 1.7 * 10**18
    assert machine_id() == before


async def test_an_attach_without_a_prepare_is_not_told_as_prepared(tmp_path: Path) -> None:
    async with open_double(tmp_path) as double:
        with trio.fail_after(10):
            assert not (await (await attached(double)).hear(Hello)).prepared


async def test_once_a_job_runs_nothing_is_prepared_any_more(tmp_path: Path) -> None:
    async with open_double(tmp_path) as double:
        with trio.fail_after(10):
            host = await attached(double)
            await host.hear(Hello)
            await host.stream.send_all(job_frames("sleep 1000"))
            await host.hear(JobStarted)
            await host.stream.send_all(render_prepare(10**18, bytes(32), ID) + render_attach(2, NONCE, (0, 0), FAR))
            hello = await host.hear(Hello)

    assert (hello.state, hello.prepared) == (GuestState.RUNNING, False)


async def test_a_guest_that_was_looked_at_obeys_whoever_comes_first_after_that(tmp_path: Path) -> None:
    host = Host()
    async with open_double(tmp_path) as double:
        with trio.fail_after(30):
            seen = [await look_at_guest(double.connect) for _ in range(3)]
            await host.run(new_session(shell("exit 5")), double.connect)

    assert [(hello.state, hello.prepared, hello.looked) for hello in seen] == [(GuestState.IDLE, False, True)] * 3
    assert host.saved == [GuestExit(5, None)]


async def test_what_was_prepared_for_a_look_is_not_told_to_the_host_that_comes(tmp_path: Path) -> None:
    async with open_double(tmp_path) as double:
        with trio.fail_after(10):
            seen = await look_at_guest(double.connect, prepare=True)
            told = await (await attached(double)).hear(Hello)

    assert (seen.prepared, told.prepared) == (True, False)


async def test_a_look_on_a_hosts_own_connection_changes_nothing_for_it(tmp_path: Path) -> None:
    async with open_double(tmp_path) as double:
        with trio.fail_after(10):
            host = await attached(double)
            first = await host.hear(Hello)
            await host.stream.send_all(render_look(77, NONCE))
            looked = await host.hear(Hello)
            await host.stream.send_all(job_frames("sleep 1000"))  # without another attach
            await host.hear(JobStarted)

    assert (first.attach_id, first.looked) == (1, False)
    assert (looked.attach_id, looked.looked) == (77, True)


async def test_a_guest_that_has_a_host_refuses_to_be_looked_at_by_another(tmp_path: Path) -> None:
    async with open_double(tmp_path) as double:
        with trio.fail_after(10):
            owner = await attached(double)
            await owner.hear(Hello)
            await owner.stream.aclose()
            stranger = await connected(double)
            await stranger.stream.send_all(render_look(9, b"x" * 16))
            refused = await stranger.hear(Refused)
            await stranger.stream.aclose()
            with pytest.raises(GuestFault, match="another session"):
                await look_at_guest(double.connect)

    assert (refused.why, refused.attach_id) == (Refusal.WRONG_NONCE, 9)
