"""Guests restored from one memory, under a bare QEMU: each is a machine of its own before its job starts."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import trio

from nimbus.host_agent.guest import GuestHello, look_at_guest
from nimbus.host_agent.guesttalk import connect_patiently
from nimbus.model.vm import GuestExit
from nimbus.wire.guestlink import GuestState
from tests.hosts import require_guest
from tests.native.guest_double import Host, shell
from tests.vm.bare_guest import new_session, open_bare_guest

pytestmark = [pytest.mark.vm, pytest.mark.slow]
LIMIT_S = 180
CLONES = 3
LONG_AGO = ("-rtc", "base=2020-01-01T00:00:00")  # when the template was made, by its own clock
IDENTITY = """
date +%s
cat /etc/machine-id /proc/sys/kernel/random/boot_id /proc/sys/kernel/random/uuid
head -c 32 /dev/urandom | sha256sum
mkdir /tmp/proc && unshare -m -p -f -r mount -t proc proc /tmp/proc && echo a new proc
"""


@pytest.fixture(autouse=True)
def _guest() -> None:
    require_guest()


async def save_template(folder: Path) -> GuestHello:
    """`state` and `overlay.img` of a guest that waits for its host. It ran when it was saved, so its clones run."""
    monitor = folder / "monitor.sock"
    more = (*LONG_AGO, "-monitor", f"unix:{monitor},server=on,wait=off")
    async with open_bare_guest(folder, network=False, more=more) as guest:
        hello = await look_at_guest(guest.connect)
        async with await connect_patiently(partial(trio.open_unix_socket, str(monitor))) as stream:
            await stream.send_all(f'migrate "exec:cat > {folder}/state"\nquit\n'.encode())
            while await stream.receive_some():  # its prompts, until it has gone
                pass
        await guest.process.wait()
    return hello


async def run_clone(template: Path, folder: Path, host: Host) -> None:
    await trio.to_thread.run_sync(partial(shutil.copyfile, template / "overlay.img", folder / "overlay.img"))
    more = (*LONG_AGO, "-incoming", f"exec:cat {template}/state")
    async with open_bare_guest(folder, network=False, more=more) as guest:
        session = replace(new_session(shell(IDENTITY)), net=None, must_prepare=True)
        await host.run(session, guest.connect)
        await guest.process.wait()


async def test_clones_of_one_guest_share_no_identity_and_know_the_time(tmp_path: Path) -> None:
    template = tmp_path / "template"
    template.mkdir()
    hosts = [Host() for _ in range(CLONES)]

    with trio.fail_after(LIMIT_S):
        hello = await save_template(template)
        before = int(time.time())
        async with trio.open_nursery() as nursery:
            for number, host in enumerate(hosts):
                (tmp_path / str(number)).mkdir()
                nursery.start_soon(run_clone, template, tmp_path / str(number), host)
    after = int(time.time())

    assert (hello.state, hello.prepared) == (GuestState.IDLE, False)
    assert [host.saved for host in hosts] == [[GuestExit(0, None)]] * CLONES
    assert all(event.prepared for host in hosts for event in host.events if isinstance(event, GuestHello))
    clocks, *identities = zip(*(host.sink.out.splitlines() for host in hosts), strict=True)
    assert all(before <= int(clock) <= after for clock in clocks)
    *unique, procs = identities
    assert [len(set(values)) for values in unique] == [CLONES] * 4
    assert set(procs) == {"a new proc"}
