"""Machines that wait for jobs: each serves one job at most, is nobody's when its agent dies, and makes room."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from ipaddress import IPv4Network

import pytest
import trio

from nimbus.host import cgroup
from nimbus.host.inventory import Territory
from nimbus.host.netns import netns_path
from nimbus.host_agent.life import Outcome
from nimbus.host_agent.plan import HostLayout
from nimbus.host_agent.pool.reserve import Reserve
from nimbus.host_agent.pool.sizes import PoolPolicy, parse_pool
from nimbus.host_agent.reaper import reap
from nimbus.model.vm import Ending, Shape
from tests.hosts import Collected, make_host
from tests.oracle import leak_oracle
from tests.vm.snapshots import CloneHost, open_clone_host

pytestmark = [pytest.mark.vm, pytest.mark.root]
__all__ = ["leak_oracle"]

LIMIT_S = 120.0


@dataclass(frozen=True)
class PoolHost:
    """A host whose pool is kept filled."""

    clones: CloneHost
    reserve: Reserve

    async def wait_filled(self, number: int) -> None:
        with trio.fail_after(LIMIT_S):
            while len(self.reserve.waiting) < number:  # noqa: ASYNC110 - nothing but a look tells it
                await trio.sleep(0.02)

    async def run(self, script: str) -> tuple[Outcome, Collected]:
        return await self.clones.run(script)


def own_slots(layout: HostLayout, number: int) -> HostLayout:
    """So many slots that no neighbour on this host takes or leaves: its own folder of them, and its own addresses."""
    subnet = IPv4Network(f"10.{100 + int(layout.root_id, 16) % 100}.0.0/16")
    return replace(layout, runtime=layout.state / "run", slot_limit=number, subnet=subnet)


@asynccontextmanager
async def open_pool(
    territory: Territory, sizes: str, *, ttl_s: float = 3600.0, free_slots: int | None = None
) -> AsyncIterator[PoolHost]:
    async with open_clone_host(territory) as clones:
        host = clones.test.host
        if free_slots is not None:
            host = replace(host, layout=own_slots(host.layout, free_slots))
        reserve = Reserve(host, clones.templates, PoolPolicy(parse_pool(sizes), ttl_s=ttl_s))
        pooled = replace(clones, test=replace(clones.test, host=replace(host, reserve=reserve)))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reserve.run)
            yield PoolHost(pooled, reserve)
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("kind", ["built", "prespawned", "warm"])
async def test_a_waiting_machine_serves_one_job_and_another_takes_its_place(leak_oracle: Territory, kind: str) -> None:
    async with open_pool(leak_oracle, f"1x256 {kind}=1") as host:
        used = []
        for _ in range(2):
            await host.wait_filled(1)
            waiting = host.reserve.waiting[0]
            outcome, out = await host.run("cat /etc/machine-id")
            assert (outcome.ending, outcome.boots, outcome.clean) == (Ending.DONE, 1, True), outcome.cause
            assert outcome.vm == waiting.plan.vm
            assert "claim" in outcome.phases_ms
            used.append((outcome.vm, out.stdout))
        assert len({vm for vm, _ in used}) == len({told for _, told in used}) == 2


async def test_a_job_of_another_shape_takes_none_of_them(leak_oracle: Territory) -> None:
    async with open_pool(leak_oracle, "1x256 prespawned=1") as host:
        await host.wait_filled(1)
        waiting = host.reserve.waiting[0]
        outcome, _ = await host.clones.run("true", Shape(mem_mib=320))
        assert outcome.ending is Ending.DONE
        assert outcome.vm != waiting.plan.vm
        assert list(host.reserve.waiting) == [waiting]


async def test_two_jobs_at_once_never_share_the_one_that_waits(leak_oracle: Territory) -> None:
    async with open_pool(leak_oracle, "1x256 warm=1") as host:
        await host.wait_filled(1)
        ended: list[Outcome] = []

        async def run_one() -> None:
            outcome, _ = await host.run("sleep 1")
            ended.append(outcome)

        async with trio.open_nursery() as jobs:
            jobs.start_soon(run_one)
            jobs.start_soon(run_one)
        assert [outcome.ending for outcome in ended] == [Ending.DONE, Ending.DONE]
        assert len({outcome.vm for outcome in ended}) == 2


async def test_a_machine_that_dies_while_it_waits_is_cleared_away_and_replaced(leak_oracle: Territory) -> None:
    async with open_pool(leak_oracle, "1x256 warm=1") as host:
        await host.wait_filled(1)
        first = host.reserve.waiting[0]
        cgroup.kill_cgroup(first.plan.object, "vmm")
        with trio.fail_after(LIMIT_S):
            await first.gone.wait()
        await host.wait_filled(1)
        assert host.reserve.waiting[0].plan.vm != first.plan.vm


async def test_a_machine_that_died_a_moment_before_its_job_came_costs_a_cold_boot(leak_oracle: Territory) -> None:
    async with open_pool(leak_oracle, "1x256 warm=1") as host:
        await host.wait_filled(1)
        first = host.reserve.waiting[0]
        cgroup.kill_cgroup(first.plan.object)  # its keeper too; nothing was told yet when the job comes
        outcome, out = await host.run("echo ran")
        assert (outcome.ending, out.stdout, outcome.clean) == (Ending.DONE, "ran\n", True), outcome.cause
        assert host.clones.templates.store.find(host.clones.template.digest) is not None  # it is not to blame


async def test_a_machine_whose_tap_went_away_is_a_host_fault_and_blames_no_template(leak_oracle: Territory) -> None:
    async with open_pool(leak_oracle, "1x256 built=1") as host:
        await host.wait_filled(1)
        net = host.reserve.waiting[0].plan.net
        remove = ["nsenter", f"--net={netns_path(net.name)}", "ip", "link", "delete", net.tap]
        await trio.run_process(remove)
        outcome, _ = await host.run("echo never")
        assert outcome.ending is Ending.HOST_FAULT
        assert outcome.clean
        assert net.tap in outcome.cause
        assert host.clones.templates.store.find(host.clones.template.digest) is not None


async def test_what_waits_too_long_is_made_anew(leak_oracle: Territory) -> None:
    async with open_pool(leak_oracle, "1x256 built=1", ttl_s=0.5) as host:
        await host.wait_filled(1)
        first = host.reserve.waiting[0]
        with trio.fail_after(LIMIT_S):
            await first.gone.wait()
        await host.wait_filled(1)
        assert host.reserve.waiting[0].plan.vm != first.plan.vm


async def test_a_job_without_a_slot_gets_that_of_a_machine_that_waits(leak_oracle: Territory) -> None:
    async with open_pool(leak_oracle, "1x256 built=1", free_slots=1) as host:
        await host.wait_filled(1)
        first = host.reserve.waiting[0]
        outcome, _ = await host.clones.run("true", Shape(mem_mib=320))
        assert first.gone.is_set()
        assert outcome.vm != first.plan.vm


_FILLER = """
import sys, trio
from pathlib import Path
from nimbus.host.inventory import Territory
from nimbus.host.netns import netns_path
from tests.vm.test_pool import open_pool

async def main():
    async with open_pool(Territory(Path(sys.argv[1]), Path(sys.argv[2])), "1x256 built=1 prespawned=1 warm=1") as host:
        await host.wait_filled(3)
        print("filled", flush=True)
        await trio.sleep_forever()

trio.run(main)
"""


async def test_a_pool_whose_agent_is_killed_dies_with_it_and_is_swept_up(leak_oracle: Territory) -> None:
    argv = [sys.executable, "-c", _FILLER, str(leak_oracle.state_root), str(leak_oracle.runtime_dir)]
    filler = await trio.lowlevel.open_process(argv, stdout=subprocess.PIPE)
    assert filler.stdout is not None
    told = b""
    with trio.fail_after(LIMIT_S):
        while b"filled" not in told:
            chunk = await filler.stdout.receive_some()
            assert chunk, "the pool's process ended"
            told += chunk
    filler.send_signal(signal.SIGKILL)
    await filler.wait()
    with trio.fail_after(10):  # nobody has touched them: their keepers end them
        while any(map(cgroup.is_populated, cgroup.list_cgroups(leak_oracle.prefix))):  # noqa: ASYNC110 - likewise
            await trio.sleep(0.02)
    report = await reap(make_host(leak_oracle, "qemu").host.layout, living=False)
    assert len(report.reaped) == 3
    assert not report.stuck
