"""A cold boot under the jailer, for real: what runs, as whom, where, with which filters, and that nothing is left."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio

from nimbus.host import process
from tests.firecracker.bench import LIMIT_S, Bench, open_plan, open_run

pytestmark = pytest.mark.root


def read_threads(pid: int) -> dict[str, dict[str, str]]:
    return {
        task.name: dict(line.split(":\t", 1) for line in (task / "status").read_text().splitlines() if ":\t" in line)
        for task in Path(f"/proc/{pid}/task").iterdir()
    }


def read_cgroup(pid: int) -> str:
    return Path(f"/proc/{pid}/cgroup").read_text()


async def test_a_guest_runs_in_its_jail_and_ends_with_it(bench: Bench) -> None:
    with trio.fail_after(LIMIT_S):
        async with open_plan(bench) as (plan, boot):
            async with open_run(plan, boot, bench) as run:
                await run.wait_printed("nimbus-probe: tick")
                vmm = await run.machine.keeper.vmm_identity()
                await run.machine.keeper.kill("test")
                await run.over.wait()
            assert not process.is_alive(vmm)
            assert (run.ended[0].kind, run.ended[0].code, run.ended[0].reason) == ("signaled", 9, "kill")


async def test_every_thread_is_filtered_and_of_the_vms_own_uid(bench: Bench) -> None:
    async with open_plan(bench) as (plan, boot), open_run(plan, boot, bench) as run:
        vmm = await run.machine.keeper.vmm_identity()
        status = read_threads(vmm.pid)
        threads = await bench.vmm.vcpu_threads(run.machine)
        spaces = os.stat(f"/proc/{vmm.pid}/ns/net").st_ino
        groups = read_cgroup(vmm.pid)
        root = os.listdir(f"/proc/{vmm.pid}/root")
    assert {one["Seccomp"] for one in status.values()} == {"2"}
    assert {one["NoNewPrivs"] for one in status.values()} == {"1"}
    assert {one["Uid"] for one in status.values()} == {"\t".join([str(plan.slot.uid)] * 4)}
    assert {one["NSpid"].split()[-1] for one in status.values()} >= {"1"}
    assert [status[str(thread)]["Name"] for thread in threads] == ["fc_vcpu 0"]
    assert spaces != os.stat("/proc/self/ns/net").st_ino
    assert f"/nimbus/{plan.object}/vmm" in groups
    assert {"kernel", "initramfs", "rootfs", "overlay.img", "run", "dev"} <= set(root)
