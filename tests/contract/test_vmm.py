"""What every VMM backend promises, shown on the fake, on our own Firecracker under our own jailer, and on QEMU."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial

import pytest
import trio

from nimbus.cli.run import open_local_lease
from nimbus.host_agent.guest import OutputSink
from nimbus.host_agent.ledger import OpenRecord
from nimbus.host_agent.life import Outcome
from nimbus.host_agent.lifecycle import Order, run_machine
from nimbus.host_agent.ties import Ties
from nimbus.host_agent.vmm.choice import choose_vmm
from nimbus.model.errors import HostFault, Refused
from nimbus.model.vm import Ending, ExitReason, GuestExit
from tests.guests import count_boots
from tests.hosts import Collected, TestHost, make_host, needs_root
from tests.oracle import open_territory, watch_leaks

pytestmark = [needs_root, pytest.mark.root]

BACKENDS = ["fake", "fake_firecracker", pytest.param("qemu", marks=pytest.mark.vm)]
LIMIT_S = 90.0


@pytest.fixture(params=BACKENDS)
def host(request: pytest.FixtureRequest) -> Iterator[TestHost]:
    """A host with each backend in turn; whatever a test leaves behind fails it."""
    with open_territory() as territory:
        made = make_host(territory, request.param)
        with watch_leaks(territory):
            yield made


async def run(host: TestHost, order: Order) -> Outcome:
    with trio.fail_after(LIMIT_S), open_local_lease() as lease:
        outcome = await run_machine(host.host, order, lease)
    count_boots(host.host.choice.vmm.name, outcome.boots)
    return outcome


async def test_a_command_that_ends_well_is_done(host: TestHost) -> None:
    out = Collected()
    outcome = await run(host, host.order("sh", "-c", "echo out; echo err >&2", sink=out))
    assert (outcome.ending, outcome.exit, outcome.clean) == (Ending.DONE, GuestExit(0, None), True)
    assert (out.stdout, out.stderr) == ("out\n", "err\n")


async def test_a_commands_status_and_signal_are_told_apart(host: TestHost) -> None:
    seven = await run(host, host.order("sh", "-c", "exit 7", sink=Collected()))
    killed = await run(host, host.order("sh", "-c", "kill -KILL $$", sink=Collected()))
    assert seven.exit == GuestExit(7, None)
    assert killed.exit == GuestExit(None, signal.SIGKILL)
    assert {seven.ending, killed.ending} == {Ending.FAILED}


async def test_a_command_that_does_not_exist_is_127(host: TestHost) -> None:
    outcome = await run(host, host.order("/no/such/program", sink=Collected()))
    assert outcome.exit is not None
    assert (outcome.exit.code, outcome.exit.reason) == (127, ExitReason.NOT_STARTED)


async def test_environment_folder_and_arguments_arrive_as_they_were_given(host: TestHost) -> None:
    out, odd = Collected(), "a b\n'\"$HOME\\ ü"
    order = host.order(
        "sh", "-c", 'printf "%s|%s|%s" "$1" "$WHO" "$PWD"', "sh", odd, sink=out, env={"WHO": odd}, cwd="/tmp"
    )
    await run(host, order)
    assert out.stdout == f"{odd}|{odd}|/tmp"


async def test_a_command_beyond_its_time_is_ended_and_said_to_be(host: TestHost) -> None:
    order = host.order("sleep", "1000", sink=Collected(), timeout_s=1, grace_s=1)
    outcome = await run(host, order)
    assert outcome.ending is Ending.TIMED_OUT
    assert outcome.exit is not None
    assert outcome.exit.status == 124


async def test_a_polite_stop_reaches_the_command(host: TestHost) -> None:
    out = Collected()
    script = "trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.1; done"
    order = host.order("sh", "-c", script, sink=out, grace_s=20)
    with trio.fail_after(LIMIT_S), open_local_lease() as lease:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(_stop_when_ready, out, lease.stop))
            outcome = await run_machine(host.host, order, lease)
    count_boots(host.host.choice.vmm.name, outcome.boots)
    assert outcome.ending is Ending.CANCELLED
    assert out.stdout == "ready\nbye\n"


async def _stop_when_ready(out: Collected, stop: trio.Event) -> None:
    await out.wait_for("ready")
    stop.set()


async def test_megabytes_of_output_arrive_whole(host: TestHost) -> None:
    out = Collected()
    await run(host, host.order("sh", "-c", "head -c 20000000 /dev/zero | tr '\\0' x", sink=out))
    assert len(out.streams["stdout"]) == 20_000_000
    assert out.streams["stdout"].strip(b"x") == b""


async def test_a_vmm_that_dies_under_its_job_is_a_crash_and_leaves_nothing(host: TestHost) -> None:
    out = Collected()
    order = host.order("sh", "-c", "echo up; sleep 1000", sink=out)
    with trio.fail_after(LIMIT_S), open_local_lease() as lease:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_kill_vmm_when_up, host, out)
            outcome = await run_machine(host.host, order, lease)
    assert outcome.ending is Ending.GUEST_CRASHED
    assert outcome.clean
    assert "signaled 9" in outcome.cause


async def _kill_vmm_when_up(host: TestHost, out: Collected) -> None:
    await out.wait_for("up")
    for pid in vmm_pids(host):
        with suppress(ProcessLookupError):  # the first one's death takes the others along
            os.kill(pid, signal.SIGKILL)


def vmm_pids(host: TestHost) -> list[int]:
    """The processes in the VMM's leaf cgroup of each VM of this host."""
    from nimbus.host import cgroup

    found = []
    for name in cgroup.list_cgroups(host.territory.prefix):
        found += [int(pid) for pid in (cgroup.cgroup_dir(name) / "vmm" / "cgroup.procs").read_text().split()]
    return found


async def test_the_vmm_has_ended_before_the_output_sink_is_closed(host: TestHost) -> None:
    out, alive = Collected(), [-1]

    @asynccontextmanager
    async def open_sink(_: OpenRecord) -> AsyncIterator[OutputSink]:
        yield out
        alive[:] = vmm_pids(host)
        await trio.lowlevel.checkpoint()

    outcome = await run(host, replace(host.order("true", sink=out), ties=Ties(open_sink)))
    assert outcome.ending is Ending.DONE
    assert alive == []


async def test_cancelling_a_run_tears_it_down(host: TestHost) -> None:
    out = Collected()
    order = host.order("sh", "-c", "echo up; sleep 1000", sink=out)
    with trio.fail_after(LIMIT_S), open_local_lease() as lease:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_when_up, out, nursery.cancel_scope)
            await run_machine(host.host, order, lease)


async def _cancel_when_up(out: Collected, scope: trio.CancelScope) -> None:
    await out.wait_for("up")
    scope.cancel()


def test_auto_takes_a_real_vmm_and_says_what_emulation_is_worth() -> None:
    choice = choose_vmm("auto", "tcg")
    assert choice.vmm.name == "qemu"
    assert "not a security boundary" in choice.label


@pytest.mark.parametrize(("name", "accel"), [("xen", "tcg"), ("", "tcg"), ("auto", "hvf"), ("qemu", "KVM")])
def test_an_unknown_backend_or_accelerator_is_refused(name: str, accel: str) -> None:
    with pytest.raises((Refused, HostFault)):
        choose_vmm(name, accel)
