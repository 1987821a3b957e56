"""A machine that dies for memory, rehearsed without using any up: its ending, its cause, and who may not play it.

The kernel's own counters cannot be planted. The fake reads its guest's from a file of the VM, and the agent reads those
of the fake's cgroup from another; tests/vm shows the guest's for real.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from nimbus.cli.run import open_local_lease
from nimbus.host.cgroup import cgroup_dir
from nimbus.host_agent.life import Outcome
from nimbus.host_agent.lifecycle import run_machine
from nimbus.host_agent.plan import VmPlan
from nimbus.host_agent.usage import MEMORY_EVENTS
from nimbus.model.vm import Ending
from tests.contract.test_usage import SHAPE, find_plan
from tests.guests import count_boots
from tests.hosts import Collected, TestHost, make_host, needs_root
from tests.oracle import open_territory, watch_leaks

pytestmark = [needs_root, pytest.mark.root]

LIMIT_S = 90.0


@pytest.fixture(params=["fake"])
def host(request: pytest.FixtureRequest) -> Iterator[TestHost]:
    with open_territory() as territory:
        made = make_host(territory, request.param)
        with watch_leaks(territory):
            yield made


async def run_and_strike(host: TestHost, script: str, strike: Callable[[VmPlan], None]) -> Outcome:
    """Run `script`, and strike when it has said `up`."""
    out, ended = Collected(), list[Outcome]()
    with trio.fail_after(LIMIT_S), open_local_lease() as lease:
        async with trio.open_nursery() as nursery:

            async def run() -> None:
                ended.append(await run_machine(host.host, host.order("sh", "-c", script, sink=out, shape=SHAPE), lease))

            nursery.start_soon(run)
            await out.wait_for("up")
            strike(find_plan(host))
    count_boots(host.host.choice.vmm.name, ended[0].boots)
    assert ended[0].clean
    return ended[0]


def kill_vmm(plan: VmPlan) -> None:
    for pid in (cgroup_dir(plan.object) / "vmm" / "cgroup.procs").read_text().split():
        with suppress(ProcessLookupError):  # the first one's death takes the others along
            os.kill(int(pid), signal.SIGKILL)


def kill_with(events: str) -> Callable[[VmPlan], None]:
    """What the kernel does to a VMM for memory, and what it counts."""

    def strike(plan: VmPlan) -> None:
        (plan.paths.run / MEMORY_EVENTS).write_text(events)
        kill_vmm(plan)

    return strike


@pytest.mark.parametrize(
    ("end", "ending"),
    [("kill -KILL $$", Ending.OUT_OF_MEMORY), ("exit 137", Ending.OUT_OF_MEMORY), ("true", Ending.DONE)],
)
async def test_a_command_killed_when_its_guest_counts_a_kill_ran_out_of_memory(
    host: TestHost, tmp_path: Path, end: str, ending: Ending
) -> None:
    gate = tmp_path / "gate"

    def count_a_kill(plan: VmPlan) -> None:
        (plan.paths.run / "vmstat").write_text("oom_kill 1\n")
        gate.touch()

    outcome = await run_and_strike(host, f"echo up; while [ ! -e {gate} ]; do sleep 0.02; done; {end}", count_a_kill)

    assert outcome.ending is ending
    assert ("ran out of memory (128 MiB)" in outcome.cause) == (ending is Ending.OUT_OF_MEMORY)


async def test_a_vmm_killed_at_its_cgroups_limit_ran_out_of_memory(host: TestHost) -> None:
    killed = kill_with("low 0\nhigh 0\nmax 9\noom 1\noom_kill 2\noom_group_kill 1\n")

    outcome = await run_and_strike(host, "echo up; sleep 1000", killed)

    assert (outcome.ending, outcome.exit) == (Ending.OUT_OF_MEMORY, None)
    assert "ran over its memory (128 MiB" in outcome.cause


async def test_a_vmm_killed_because_its_host_ran_out_is_the_hosts_fault(host: TestHost) -> None:
    killed = kill_with("low 0\nhigh 0\nmax 0\noom 0\noom_kill 2\noom_group_kill 0\n")

    outcome = await run_and_strike(host, "echo up; sleep 1000", killed)

    assert (outcome.ending, outcome.exit) == (Ending.HOST_FAULT, None)
    assert "the host ran out of memory" in outcome.cause


async def test_a_vmm_killed_by_anybody_else_is_a_crash(host: TestHost) -> None:
    outcome = await run_and_strike(host, "echo up; sleep 1000", kill_vmm)

    assert outcome.ending is Ending.GUEST_CRASHED


@pytest.mark.vm
@pytest.mark.parametrize("host", ["qemu"], indirect=True)
async def test_counters_that_a_real_vmm_could_have_written_are_not_believed(host: TestHost) -> None:
    killed = kill_with("oom 1\noom_kill 2\noom_group_kill 1\n")

    outcome = await run_and_strike(host, "echo up; sleep 1000", killed)

    assert outcome.ending is Ending.GUEST_CRASHED
