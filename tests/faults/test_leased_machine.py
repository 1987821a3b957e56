"""A leased VM never outlives its lease: not a fence, not a partition, not its agent's death; and it harms nobody."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace

import pytest
import trio

from nimbus.cli.run import open_local_lease
from nimbus.host import process
from nimbus.host.inventory import Territory
from nimbus.host_agent.guest import OutputSink
from nimbus.host_agent.ledger import Ledger, OpenRecord
from nimbus.host_agent.lifecycle import run_machine
from nimbus.host_agent.plan import HostLayout
from nimbus.host_agent.reaper import ReapReport, reap
from nimbus.host_agent.ties import Ties
from nimbus.model.errors import Fenced, Unavailable
from nimbus.model.record import Record
from nimbus.model.vm import Claim, Ending
from nimbus.wire.leaseapi import HeldState, RenewRequest
from tests.faults.leased import NOBODY, Plane, serve
from tests.hosts import Collected, make_host, needs_root
from tests.oracle import open_territory, watch_leaks

pytestmark = [needs_root, pytest.mark.root]

LIMIT_S = 60.0
STEPS = (5, 30, 60, 90, 120, 150)  # from the first renewal to a running command


@pytest.fixture
def territory() -> Iterator[Territory]:
    with open_territory() as found, watch_leaks(found):
        yield found


def layout_of(territory: Territory) -> HostLayout:
    return HostLayout(state=territory.state_root, runtime=territory.runtime_dir, uid_base=territory.uid_base)


def _refuse(number: int) -> None:
    raise OSError(number, os.strerror(number))


def records(territory: Territory) -> list[Record]:
    ledger = Ledger(territory.state_root / "ledger")
    return [found for vm in ledger.vms() if (found := ledger.read(vm)) is not None]


@contextmanager
def leased_elsewhere(territory: Territory, ttl_s: float, at: int = 0) -> Iterator[subprocess.Popen[str]]:
    words = [territory.state_root, territory.runtime_dir, ttl_s, at]
    argv = [sys.executable, "-m", "tests.faults.leased", *(str(word) for word in words)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as agent:
        try:
            yield agent
        finally:
            agent.kill()


async def test_a_guest_that_crashes_is_reported_and_its_agent_lives_on(territory: Territory) -> None:
    plane = Plane(ttl_s=30)
    with trio.fail_after(LIMIT_S):
        await serve(territory, plane, "sh", "-c", "kill -KILL $PPID", log_url=NOBODY)
    assert [told.ending for told in plane.ends] == [Ending.GUEST_CRASHED]


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOSPC, errno.EAGAIN])
async def test_a_host_that_has_no_more_to_give_fails_the_one_vm_that_asked(territory: Territory, number: int) -> None:
    @asynccontextmanager
    async def refuse(_: OpenRecord) -> AsyncIterator[OutputSink]:
        await trio.lowlevel.checkpoint()
        async with trio.open_nursery():
            _refuse(number)
            yield Collected()

    host = make_host(territory, "fake")
    order = replace(host.order("true", sink=Collected()), ties=Ties(refuse))
    with trio.fail_after(LIMIT_S), open_local_lease() as lease:
        outcome = await run_machine(host.host, order, lease)
    assert (outcome.ending, outcome.clean) == (Ending.HOST_FAULT, True)
    assert os.strerror(number) in outcome.cause


async def test_a_lease_that_is_fenced_kills_its_vm_and_reports_nothing(territory: Territory) -> None:
    def fence_when_running(request: RenewRequest) -> None:
        if request.state is HeldState.RUNNING:
            raise Fenced("another has it")

    plane = Plane(30, fence_when_running)
    with trio.fail_after(LIMIT_S):
        await serve(territory, plane, "sleep", "1000")
    assert plane.ends == []
    assert records(territory) == []


async def test_a_partition_ends_the_vm_before_its_lease_may_be_handed_on(territory: Territory) -> None:
    def away_when_running(request: RenewRequest) -> None:
        if request.state is HeldState.RUNNING:
            raise Unavailable("no route")

    ttl_s = 6.0
    plane = Plane(ttl_s, away_when_running)
    with trio.fail_after(LIMIT_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, territory, plane, "sleep", "1000")
            await trio.to_thread.run_sync(_wait_no_vmm, territory)
            assert time.monotonic() - plane.agreed_at < ttl_s
    assert plane.ends == []


async def test_a_killed_agents_vm_is_ended_by_its_keeper_when_the_lease_is_over(territory: Territory) -> None:
    with leased_elsewhere(territory, ttl_s=6) as agent:
        assert agent.stdout is not None
        assert await trio.to_thread.run_sync(agent.stdout.readline) == "started\n"
    (record,) = records(territory)
    assert record.keeper is not None
    assert record.deadline_ns is not None

    early = await reap(layout_of(territory), living=False)
    assert early == ReapReport(alive=[str(record.vm)])

    with trio.fail_after(LIMIT_S):
        await trio.to_thread.run_sync(_wait_gone, record)
    assert time.clock_gettime_ns(time.CLOCK_BOOTTIME) - record.deadline_ns < 6e9
    assert (await reap(layout_of(territory), living=False)).reaped == [str(record.vm)]


def _wait_no_vmm(territory: Territory) -> None:
    """Return once there was a VM and its VMM is no more."""
    for wanted in (True, False):
        while any(Claim.VMM in record.claims for record in records(territory)) is not wanted:
            time.sleep(0.02)


def _wait_gone(record: Record) -> None:
    assert record.keeper is not None
    while process.is_alive(record.keeper):
        time.sleep(0.05)


async def test_the_next_agents_start_ends_a_killed_agents_vm_at_once(territory: Territory) -> None:
    with leased_elsewhere(territory, ttl_s=600) as agent:
        assert agent.stdout is not None
        assert await trio.to_thread.run_sync(agent.stdout.readline) == "started\n"
    (record,) = records(territory)
    report = await reap(layout_of(territory), living=True)
    assert report == ReapReport(reaped=[str(record.vm)])


@pytest.mark.slow
@pytest.mark.parametrize("at", STEPS)
async def test_an_agent_killed_at_any_step_of_a_leased_start_leaves_nothing_to_the_next(
    territory: Territory, at: int
) -> None:
    with leased_elsewhere(territory, ttl_s=600, at=at) as agent:
        await trio.to_thread.run_sync(agent.wait)
    report = await reap(layout_of(territory), living=True)
    assert (report.alive, report.stuck) == ([], [])
    assert records(territory) == []
