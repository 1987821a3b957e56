"""Machines at their limits, with a neighbour beside them: the kernel that kills them also counts why.

The fake's guest is a process of the VM's own cgroup, so its job eats what a VMM would.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from nimbus.cli.run import open_local_lease
from nimbus.host.cgroup import PARENT, cgroup_mount
from nimbus.host_agent.life import Outcome
from nimbus.host_agent.lifecycle import run_machine
from nimbus.model.vm import Ending, GuestExit, Shape
from tests.controllers.guest.leaf import LIMIT_S
from tests.guests import count_boots
from tests.hosts import Collected, TestHost, make_host
from tests.oracle import open_territory, watch_leaks

pytestmark = pytest.mark.root

SHAPE = Shape(mem_mib=128, disk_mib=128)
EAT = "tail /dev/zero"
MIB = 1 << 20


@pytest.fixture
def host() -> Iterator[TestHost]:
    with open_territory() as territory:
        made = make_host(territory, "fake")
        with watch_leaks(territory):
            yield made


async def run_beside(
    host: TestHost, gate: Path, script: str, before: Callable[[], object] = bool
) -> tuple[Outcome, Outcome]:
    """How a job that does `script` ended, and how its neighbour did, which is there all the while."""
    ended: dict[str, Outcome] = {}
    outs = {"job": Collected(), "neighbour": Collected()}
    await trio.to_thread.run_sync(gate.mkdir)
    wait = "while [ ! -e {} ]; do sleep 0.05; done"

    async def run(who: str, text: str) -> None:
        order = host.order("sh", "-c", f"echo up; {text}", sink=outs[who], shape=SHAPE, grace_s=1)
        with open_local_lease() as lease:
            ended[who] = await run_machine(host.host, order, lease)
        count_boots("fake", ended[who].boots)

    async def run_job() -> None:
        await run("job", f"{wait.format(gate / 'job')}; {script}")
        (gate / "neighbour").touch()

    with trio.fail_after(3 * LIMIT_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run, "neighbour", f"{wait.format(gate / 'neighbour')}; echo alive")
            nursery.start_soon(run_job)
            for out in outs.values():
                await out.wait_for("up")
            before()
            (gate / "job").touch()
    assert "alive" in outs["neighbour"].stdout
    assert all(outcome.clean for outcome in ended.values())
    return ended["job"], ended["neighbour"]


async def test_a_vm_beyond_its_memory_ran_out_of_it_and_its_neighbour_goes_on(host: TestHost, tmp_path: Path) -> None:
    job, neighbour = await run_beside(host, tmp_path / "gate", EAT)

    assert (job.ending, job.exit) == (Ending.OUT_OF_MEMORY, None)
    assert "ran over its memory (128 MiB" in job.cause
    assert (neighbour.ending, neighbour.exit) == (Ending.DONE, GuestExit(0, None))


async def test_a_vm_killed_because_all_vms_together_have_no_more_is_the_hosts_fault(
    host: TestHost, tmp_path: Path
) -> None:
    slice_of_all = cgroup_mount() / PARENT / "memory.max"

    def take_away() -> None:
        held = int((cgroup_mount() / PARENT / "memory.current").read_text())
        slice_of_all.write_text(str(held + 48 * MIB))

    try:
        job, neighbour = await run_beside(host, tmp_path / "gate", EAT, take_away)
    finally:
        slice_of_all.write_text("max")

    assert (job.ending, job.exit) == (Ending.HOST_FAULT, None)
    assert "the host ran out of memory" in job.cause
    assert neighbour.ending is Ending.DONE


async def test_a_fork_bomb_ends_at_its_vms_limit_and_its_neighbour_goes_on(host: TestHost, tmp_path: Path) -> None:
    job, neighbour = await run_beside(host, tmp_path / "gate", "while sleep 600 & do :; done")

    assert job.ending is Ending.FAILED
    assert job.exit is not None
    assert job.exit.code == 2  # dash's, that cannot fork
    assert neighbour.ending is Ending.DONE


async def test_a_host_that_must_limit_its_vms_runs_them_here(host: TestHost) -> None:
    strict = replace(host, host=replace(host.host, layout=replace(host.host.layout, require_limits=True)))

    with trio.fail_after(LIMIT_S), open_local_lease() as lease:
        outcome = await run_machine(strict.host, strict.order("true", sink=Collected(), shape=SHAPE), lease)

    assert outcome.ending is Ending.DONE


def call_nimbus(host: TestHost, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NIMBUS_")}
    environment |= {
        "NIMBUS_STATE_DIR": str(host.territory.state_root),
        "NIMBUS_VMM": "fake",
        "NIMBUS_REQUIRE_LIMITS": "true",
    }
    argv = [sys.executable, "-m", "nimbus", *arguments]
    return subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=3 * LIMIT_S, check=False)


def test_nimbus_run_takes_the_setting_that_every_vm_must_be_limited(host: TestHost) -> None:
    done = call_nimbus(host, "run", "--", "cat", "/proc/self/cgroup")

    assert done.returncode == 0, done.stderr
    assert f"0::/{PARENT}/" in done.stdout


def test_the_doctor_is_content_with_every_controller(host: TestHost) -> None:
    done = call_nimbus(host, "doctor", "--json")

    found = {finding["name"]: finding for finding in json.loads(done.stdout)}
    assert done.returncode == 0, done.stdout
    for controller in ("cpu", "cpuset", "io", "memory", "pids"):
        assert found[f"cgroup-{controller}"]["verdict"] == "ok"
        assert "handed down" in found[f"cgroup-{controller}"]["detail"]
    assert found["reflink"]["verdict"] == "ok"
    assert [finding for finding in found.values() if finding["verdict"] == "broken"] == []
