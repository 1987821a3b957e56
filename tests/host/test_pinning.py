"""Threads of a process in a VM's cgroup, pinned and read back; a stranger's are never touched."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from nimbus.host.cgroup import Limits, cgroup_dir, ensure_leaf, remove_cgroup
from nimbus.host_agent.pinning import PinFailed, pin_vcpus, read_threads
from nimbus.host_agent.plan import HostLayout, VmPlan, plan_vm
from nimbus.host_agent.sight.bounds import describe_cpus, find_degradations
from nimbus.model.ids import new_vm_id
from nimbus.model.placement import Placement, render_cpus
from nimbus.model.vm import Shape, Slot

pytestmark = pytest.mark.root

CPUS = sorted(os.sched_getaffinity(0))
LIMIT_S = 5.0

# Two vCPUs, named as QEMU names them, and a worker beside the main thread. It tells their ids, then makes one more
# thread for each line it reads.
VMM = """
import os, sys, threading
open(sys.argv[1], "w").write(str(os.getpid()))
ids, gate, told = [], threading.Event(), threading.Semaphore(0)
def run():
    ids.append(threading.get_native_id()); told.release(); gate.wait()
def start():
    threading.Thread(target=run, daemon=True).start(); told.acquire()
for _ in range(3): start()
for number, name in enumerate(("CPU 0/TCG", "CPU 1/TCG")):
    open(f"/proc/self/task/{ids[number]}/comm", "w").write(name)
print(*ids, flush=True)
for _ in sys.stdin:
    start(); print(ids[-1], flush=True)
"""


@dataclass(frozen=True)
class Vmm:
    """A process that stands in for a VMM."""

    plan: VmPlan
    process: subprocess.Popen[str]
    vcpus: tuple[int, ...]
    worker: int

    def make_thread(self) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def end(self) -> None:
        self.process.kill()
        self.process.wait(LIMIT_S)


@contextmanager
def open_vmm(placement: Placement | None) -> Iterator[Vmm]:
    layout = HostLayout(state=Path("/nowhere"), runtime=Path("/nowhere"))
    plan = plan_vm(
        layout, new_vm_id(), shape=Shape(cpus=2), image="none", backend="fake", accel="none",
        slot=Slot(0, 200_000, 200_000, 3), placement=placement,
    )  # fmt: skip
    ensure_leaf(plan.object, Limits(cpus=2, mem_mib=256, pids=64))
    procs = cgroup_dir(plan.object) / "vmm" / "cgroup.procs"
    try:
        argv = [sys.executable, "-c", VMM, str(procs)]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            first, second, worker = map(int, process.stdout.readline().split())
            yield Vmm(plan, process, (first, second), worker)
            process.kill()
    finally:
        remove_cgroup(plan.object, LIMIT_S)


# On one CPU both vCPUs share it; the kernel does not mind, and neither does the test.
PLACED = Placement(vcpus=(CPUS[-1], CPUS[0]), cpus=(CPUS[0], CPUS[-1]), mems=(0,))


@pytest.fixture
def vmm() -> Iterator[Vmm]:
    with open_vmm(PLACED) as opened:
        yield opened


def test_each_vcpu_runs_on_its_own_cpu_and_all_else_on_the_vms(vmm: Vmm) -> None:
    before = os.sched_getaffinity(0)
    pin_vcpus(vmm.vcpus, vmm.plan)
    assert [os.sched_getaffinity(thread) for thread in vmm.vcpus] == [{CPUS[-1]}, {CPUS[0]}]
    assert os.sched_getaffinity(vmm.worker) == set(PLACED.cpus)
    assert os.sched_getaffinity(vmm.process.pid) == set(PLACED.cpus)
    assert os.sched_getaffinity(0) == before


def test_a_thread_that_is_made_later_stays_on_the_vms_cpus(vmm: Vmm) -> None:
    alone = replace(vmm.plan, placement=Placement(vcpus=(CPUS[0], CPUS[0]), cpus=(CPUS[0],), mems=(0,)))
    pin_vcpus(vmm.vcpus, alone)
    assert os.sched_getaffinity(vmm.make_thread()) == {CPUS[0]}


def test_pinning_twice_changes_nothing(vmm: Vmm) -> None:
    pin_vcpus(vmm.vcpus, vmm.plan)
    first = read_threads(vmm.plan.object)
    pin_vcpus(vmm.vcpus, vmm.plan)
    assert read_threads(vmm.plan.object) == first
    assert {place.tid for place in first} == {vmm.process.pid, *vmm.vcpus, vmm.worker}


def test_a_thread_that_is_a_strangers_is_never_touched(vmm: Vmm) -> None:
    with pytest.raises(PinFailed, match="not in the cgroup"):
        pin_vcpus((vmm.vcpus[0], os.getpid()), vmm.plan)
    assert os.sched_getaffinity(0) == set(CPUS)
    assert os.sched_getaffinity(vmm.vcpus[0]) == set(CPUS)


def test_one_thread_is_not_two_vcpus(vmm: Vmm) -> None:
    with pytest.raises(PinFailed, match="one thread for two vCPUs"):
        pin_vcpus((vmm.vcpus[0], vmm.vcpus[0]), vmm.plan)


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_threads_for_the_vcpus_are_no_pinning(vmm: Vmm, count: int) -> None:
    with pytest.raises(PinFailed, match=f"has {count} vCPU threads"):
        pin_vcpus(vmm.vcpus[:count], vmm.plan)


def test_a_cpu_that_is_not_there_is_named(vmm: Vmm) -> None:
    plan = replace(vmm.plan, placement=replace(PLACED, vcpus=(CPUS[0], 8191)))
    with pytest.raises(PinFailed, match="CPUs 8191: they are offline, or outside its cpuset"):
        pin_vcpus(vmm.vcpus, plan)


def test_a_vcpu_that_strays_is_told_to_whoever_looks(vmm: Vmm) -> None:
    pin_vcpus(vmm.vcpus, vmm.plan)
    layout = HostLayout(state=Path("/nowhere"), runtime=Path("/nowhere"))
    assert find_strayed(layout, vmm.plan) == []
    os.sched_setaffinity(vmm.vcpus[1], CPUS)
    strayed = [f"vCPU 1 may run on CPUs {render_cpus(CPUS)} in place of {CPUS[0]}"]
    assert find_strayed(layout, vmm.plan) == (strayed if len(CPUS) > 1 else [])


def find_strayed(layout: HostLayout, plan: VmPlan) -> list[str]:
    """Without the limits that this host cannot set at all."""
    return [sentence for sentence in find_degradations(layout, plan) if "is not limited" not in sentence]


def test_what_is_shown_names_each_vcpu_and_where_all_else_runs(vmm: Vmm) -> None:
    pin_vcpus(vmm.vcpus, vmm.plan)
    assert describe_cpus(vmm.plan) == {
        "own": render_cpus(PLACED.cpus),
        "nodes": "0",
        "shared": False,
        "vcpus": [
            {"vcpu": 0, "asked": str(CPUS[-1]), "held": str(CPUS[-1]), "thread": vmm.vcpus[0]},
            {"vcpu": 1, "asked": str(CPUS[0]), "held": str(CPUS[0]), "thread": vmm.vcpus[1]},
        ],
        "other_threads": render_cpus(PLACED.cpus),
    }


def test_a_vmm_that_has_ended_is_told_as_one(vmm: Vmm) -> None:
    vmm.end()
    with pytest.raises(PinFailed, match="ended before it was pinned"):
        pin_vcpus(vmm.vcpus, vmm.plan)
    assert read_threads(vmm.plan.object) == ()
