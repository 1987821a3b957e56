"""A guest waits for its host without napping: whoever comes late is answered at once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import trio

from nimbus.host_agent.guest import look_at_guest
from nimbus.model.vm import GuestExit
from nimbus.rootfs.tree import file
from tests.hosts import require_guest
from tests.native.guest_double import Host, shell
from tests.vm.altered_guest import alter_initramfs, compile_init
from tests.vm.bare_guest import new_session, open_bare_guest

pytestmark = [pytest.mark.vm, pytest.mark.slow]
LIMIT_S = 120
AN_HOUR_MS = 3_600_000


@pytest.fixture(autouse=True)
def _guest() -> None:
    require_guest()


async def test_each_late_host_wakes_a_guest_that_looks_of_itself_only_once_an_hour(tmp_path: Path) -> None:
    init = compile_init(tmp_path, f"WAKE_MS={AN_HOUR_MS}")
    initramfs = alter_initramfs(tmp_path, [file("init", init, 0o755)])
    host = Host()

    async with open_bare_guest(tmp_path, network=False, initramfs=initramfs) as guest:
        with trio.fail_after(LIMIT_S):
            hellos = [await look_at_guest(guest.connect) for _ in range(20)]
            await host.run(replace(new_session(shell("exit 3")), net=None), guest.connect)
            await guest.process.wait()

    assert len(hellos) == 20
    assert host.saved == [GuestExit(3, None)]
