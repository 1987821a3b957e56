"""A real guest with CPUs of its own: each vCPU's thread stands where it was put, and a person can see it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Network
from pathlib import Path

import pytest
import trio

from nimbus.cli.run import open_local_lease
from nimbus.cli.vmpage import render
from nimbus.host.cpus import list_cpus
from nimbus.host.inventory import Territory
from nimbus.host.topology import allowed_cpus, read_topology
from nimbus.host_agent.ledger import Ledger
from nimbus.host_agent.lifecycle import run_machine
from nimbus.host_agent.pinning import read_threads
from nimbus.host_agent.placing import Places
from nimbus.host_agent.sight.inspection import inspect
from nimbus.host_agent.sight.standing import look
from nimbus.model.placement import render_cpus
from nimbus.model.vm import Ending, Shape
from tests.guests import count_boots
from tests.hosts import Collected, TestHost, make_host, needs_root
from tests.oracle import open_territory, watch_leaks

pytestmark = [needs_root, pytest.mark.root, pytest.mark.vm]

LIMIT_S = 120.0


@pytest.fixture
def host(tmp_path: Path) -> Iterator[TestHost]:
    """A host that gives all its cores to VMs. What is taken of it stands in a folder of the test's own, or neighbours'
    VMs with CPUs of their own would leave it none; so its uids and addresses must not be theirs either.
    """
    cores = read_topology(allowed_cpus())
    if len(cores.cpus) < 2:
        pytest.skip("two vCPUs need two CPUs of their own, and this host has one")
    with open_territory() as common:
        territory = Territory(common.state_root, tmp_path, uid_base=270_000)
        made = make_host(territory, "qemu")
        layout = replace(made.host.layout, subnet=IPv4Network("172.29.77.0/24"))
        with watch_leaks(territory):
            yield replace(made, host=replace(made.host, layout=layout, places=Places(cores, must=True)))


async def test_each_vcpu_of_a_real_guest_has_its_cpu_and_the_next_guest_gets_it_again(host: TestHost) -> None:
    for _ in range(2):
        out = Collected()
        order = host.order("sh", "-c", "nproc; echo ready; exec sleep 600", sink=out, shape=Shape(cpus=2))
        with trio.fail_after(LIMIT_S), open_local_lease() as lease:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(look_and_stop, host, out, lease.stop)
                outcome = await run_machine(host.host, order, lease)
        count_boots("qemu", outcome.boots)
        assert out.stdout == "2\nready\n"
        assert (outcome.ending, outcome.clean) == (Ending.CANCELLED, True)
        assert list_cpus(host.territory.runtime_dir) == ()


async def look_and_stop(host: TestHost, out: Collected, stop: trio.Event) -> None:
    await out.wait_for("ready")
    (ticket,) = list_cpus(host.territory.runtime_dir)
    threads = read_threads(ticket.owner)
    vcpus = {int(named[1]): place for place in threads if (named := re.fullmatch(r"CPU (\d+)/TCG", place.name))}
    assert sorted(vcpus) == [0, 1]
    assert all(os.sched_getaffinity(place.tid) == place.cpus for place in vcpus.values())
    assert {len(place.cpus) for place in vcpus.values()} == {1}
    assert vcpus[0].cpus | vcpus[1].cpus == ticket.cpus
    assert {place.cpus for place in threads if place not in vcpus.values()} == {ticket.cpus}
    await check_page(host, ticket.cpus, {number: place.tid for number, place in vcpus.items()})
    stop.set()


async def check_page(host: TestHost, cpus: frozenset[int], tids: dict[int, int]) -> None:
    """`nimbus vms inspect` shows what was asked beside what the kernel holds."""
    (sight,) = look(Ledger(host.host.layout.ledger))
    facts = await inspect(host.host.layout, sight)
    assert (facts["cpus"]["own"], facts["cpus"]["other_threads"]) == (render_cpus(cpus), render_cpus(cpus))
    assert [(fact["vcpu"], fact["thread"]) for fact in facts["cpus"]["vcpus"]] == sorted(tids.items())
    assert [fact["asked"] for fact in facts["cpus"]["vcpus"]] == [fact["held"] for fact in facts["cpus"]["vcpus"]]
    assert {fact["file"] for fact in facts["limits"]} >= {"cpuset.cpus", "cpu.max", "memory.max", "pids.max"}
    assert not any("vCPU" in sentence for sentence in facts["degradations"])
    page = "\n".join(render(facts))
    assert f"vcpu 0, asked {min(cpus)}, held {min(cpus)}, thread {tids[0]}" in page
