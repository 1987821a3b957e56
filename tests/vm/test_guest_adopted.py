"""A real guest whose host dies: QEMU's port closes and opens again, and the job's output and exit are still there."""

from __future__ import annotations

import secrets
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import trio

from nimbus.host_agent.guest import GuestJobStarted, GuestSession
from nimbus.model.vm import GuestExit
from nimbus.wire.guestlink import GuestState, Hello, render_attach
from tests.hosts import require_guest
from tests.native.guest_double import Host, RawHost, shell
from tests.native.test_guest_adopted import holds, open_killable_host, wait_for
from tests.vm.bare_guest import BareGuest, new_session, open_bare_guest

pytestmark = [pytest.mark.vm, pytest.mark.slow]
LIMIT_S = 180
LINES = 300_000
LINES_TEXT = "".join(f"{n}\n" for n in range(1, LINES + 1)).encode()


@pytest.fixture(autouse=True)
def _guest() -> None:
    require_guest()


async def test_hosts_killed_in_the_midst_of_a_real_guests_output_lose_none_and_repeat_none(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    folder.mkdir()
    (folder / "nonce").write_text(secrets.token_hex(16))
    size = len(LINES_TEXT)
    script = f"seq 1 {LINES}; seq 1 {LINES} >&2; exit 9"
    stdout, stderr = folder / "stdout", folder / "stderr"

    with trio.fail_after(LIMIT_S):
        async with open_bare_guest(tmp_path) as guest:
            for part, path, given in ((1, stdout, script), (size // 2, stdout, None), (1, stderr, None)):
                await wait_for(guest.link.exists)
                async with open_killable_host(guest.link, folder, given) as process:
                    await wait_for(partial(holds, process, path, part))
                    process.send_signal(signal.SIGKILL)
                    assert await process.wait() == -signal.SIGKILL
            async with open_killable_host(guest.link, folder) as process:
                assert await process.wait() == 0
            await guest.process.wait()

    assert stdout.read_bytes() == LINES_TEXT
    assert stderr.read_bytes() == LINES_TEXT
    assert (folder / "exits").read_text() == "9\n"


async def test_a_real_guests_job_that_ended_while_nobody_listened_tells_output_and_exit(tmp_path: Path) -> None:
    session = new_session(shell("sleep 1; seq 1 50000; echo e >&2; exit 7"))
    first, started = Host(), trio.Event()
    first.on_event = lambda event: started.set() if isinstance(event, GuestJobStarted) else None

    with trio.fail_after(LIMIT_S):
        async with open_bare_guest(tmp_path) as guest:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(first.run, session, guest.connect)
                await started.wait()
                nursery.cancel_scope.cancel()
            while await look_in(guest, session) is not GuestState.EXITED:
                pass
            second = Host()
            told = await second.run(replace(session, command=None), guest.connect)
            await guest.process.wait()

    assert first.sink.ends == {"stdout": 0, "stderr": 0}
    assert told == GuestExit(7, None)
    assert second.sink.out == "".join(f"{n}\n" for n in range(1, 50_001))
    assert second.sink.err == "e\n"


async def test_a_real_guest_hears_every_host_however_soon_it_follows_the_last(tmp_path: Path) -> None:
    # The job keeps the guest's one processor busy, so that a host is often gone before the guest has seen it come.
    session = new_session(shell("while :; do seq 1 20; done"))
    host, started = Host(), trio.Event()
    host.on_event = lambda event: started.set() if isinstance(event, GuestJobStarted) else None

    with trio.fail_after(LIMIT_S):
        async with open_bare_guest(tmp_path) as guest:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(host.run, session, guest.connect)
                await started.wait()
                nursery.cancel_scope.cancel()
            for _ in range(600):
                assert await look_in(guest, session) is GuestState.RUNNING


async def look_in(guest: BareGuest, session: GuestSession) -> GuestState:
    """How far the job is, asked once, by a host that takes nothing and goes again."""
    host, attach_id = RawHost(await guest.connect()), secrets.randbits(32)
    async with host.stream:
        await host.stream.send_all(render_attach(attach_id, session.nonce, (0, 0), (0, 0)))
        while (hello := await host.hear(Hello)).attach_id != attach_id:
            pass  # what a host before us did not wait for
        return hello.state
