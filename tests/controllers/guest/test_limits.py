"""What a limit of a VM's cgroup does to processes that go beyond it: the kernel is the judge."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import pytest

from nimbus.host.blockdevice import find_disk
from nimbus.host.cgroup import (
    IoLimit,
    Limits,
    cgroup_dir,
    ensure_leaf,
    is_populated,
    kill_cgroup,
    missing_controllers,
    read_limits,
    render_limits,
    wait_empty,
)
from tests.controllers.guest.leaf import LIMIT_S, end, find_controllers, read_count, read_file, start_in, wait_until

pytestmark = pytest.mark.root

LIMITS = Limits(cpus=1, mem_mib=64, pids=16)
MIB = 1 << 20
WINDOW_S = 3.0  # thirty periods of the kernel's CPU accounting
BUSY = "for n in 1 2 3 4; do while :; do :; done & done; wait"


def test_this_kernel_has_every_controller() -> None:
    assert {"cpu", "cpuset", "io", "memory", "pids"} <= find_controllers()
    assert missing_controllers() == ()


def test_every_limit_is_held_as_it_was_asked_for(name: str) -> None:
    disk = find_disk(Path("/tmp"))
    assert disk is not None
    io = IoLimit(disk, bytes_per_s=64 * MIB, operations_per_s=2000)
    wanted = Limits(cpus=3, mem_mib=96, pids=77, cpuset=(4, 5, 6, 7), mems=(1,), io=io)

    degraded = ensure_leaf(name, wanted)

    held = read_limits(name)
    assert degraded == {}
    assert (held["cpu.max"], held["memory.max"], held["pids.max"]) == ("300000 100000", str(96 * MIB), "77")
    assert (held["memory.oom.group"], held["memory.swap.max"]) == ("1", "0")
    assert (held["cpuset.cpus.effective"], held["cpuset.mems.effective"]) == ("4-7", "1")
    assert sorted(str(held["io.max"]).split()) == sorted(render_limits(wanted)["io"]["io.max"].split())


def use_cpu(name: str, cpus: int) -> float:
    """How many CPUs four busy processes got where the limit is `cpus`."""
    assert ensure_leaf(name, Limits(cpus=cpus, mem_mib=64, pids=16)) == {}
    busy = start_in(name, "vmm", BUSY)
    wait_until(lambda: read_count(name, "cpu.stat", "nr_periods") > 0)
    used_us, began = read_count(name, "cpu.stat", "usage_usec"), time.monotonic()
    time.sleep(WINDOW_S)  # what is measured, and nothing that settles
    used_us, took_s = read_count(name, "cpu.stat", "usage_usec") - used_us, time.monotonic() - began
    kill_cgroup(name, "vmm")
    assert wait_empty(name, LIMIT_S, "vmm")
    end(busy)
    return used_us / 1e6 / took_s


def test_busy_processes_get_no_more_cpus_than_the_vm_has(name: str) -> None:
    one = use_cpu(name, 1)
    throttled = read_count(name, "cpu.stat", "nr_throttled")
    two = use_cpu(name, 2)

    assert one < 1.2  # a period's worth may be used at either end of the window
    assert throttled > 0
    assert one < two < 2.3


def test_a_process_beyond_the_memory_dies_with_its_whole_leaf_and_nobody_else(name: str) -> None:
    ensure_leaf(name, LIMITS)
    keeper, other = start_in(name, "keeper", "sleep 600"), start_in(name, "vmm", "sleep 600")

    hog = start_in(name, "vmm", "exec tail /dev/zero")

    assert end(hog)[0] == -9
    assert end(other)[0] == -9
    assert is_populated(name, "keeper")
    assert read_count(name, "memory.events", "oom") > 0
    assert read_count(name, "memory.events", "oom_group_kill") == 1
    assert int(read_file(name, "memory.peak")) <= LIMITS.mem_mib * MIB
    kill_cgroup(name)
    end(keeper)


def test_files_in_memory_count_as_much_as_memory(name: str) -> None:
    ensure_leaf(name, LIMITS)
    writer = start_in(name, "vmm", "exec dd if=/dev/zero of=/dev/shm/nimbus-hog bs=1M count=200")
    try:
        assert end(writer)[0] == -9
    finally:
        Path("/dev/shm/nimbus-hog").unlink()


def test_a_process_too_many_is_refused_and_the_others_live(name: str) -> None:
    ensure_leaf(name, LIMITS)

    bomb = start_in(name, "vmm", "for n in $(seq 64); do sleep 600 & done; echo all")

    with bomb:
        assert bomb.stdout is not None
        assert b"annot fork" in bomb.stdout.readline()
        assert bomb.wait(LIMIT_S) == 2  # dash's
        assert read_count(name, "pids.events", "max") > 0
        assert 0 < int(read_file(name, "pids.current")) <= LIMITS.pids
        assert is_populated(name, "vmm")
        kill_cgroup(name)


def test_a_process_runs_on_the_vms_cpus_and_cannot_leave_them(name: str) -> None:
    assert ensure_leaf(name, Limits(cpus=2, mem_mib=64, pids=16, cpuset=(6, 7), mems=(1,))) == {}

    told = start_in(name, "vmm", "grep -E '^(Cpus|Mems)_allowed_list' /proc/self/status; taskset -c 0 true; echo $?")

    status, said = end(told)
    assert status == 0
    assert "Cpus_allowed_list:\t6-7\n" in said
    assert "Mems_allowed_list:\t1\n" in said
    assert "failed to set" in said
    assert said.endswith("\n1\n")


@pytest.mark.parametrize("node", [0, 1])
def test_the_memory_of_a_vm_comes_from_its_node(name: str, node: int) -> None:
    assert ensure_leaf(name, Limits(cpus=1, mem_mib=96, pids=16, cpuset=(4 * node,), mems=(node,))) == {}

    eater = start_in(
        name,
        "vmm",
        "exec python3 -c 'import time; held = b\"x\" * (32 << 20); print(len(held), flush=True); time.sleep(600)'",
    )

    assert eater.stdout is not None
    assert eater.stdout.readline() == b"%d\n" % (32 * MIB)
    anonymous = next(line for line in read_file(name, "memory.numa_stat").splitlines() if line.startswith("anon "))
    held = {int(found): int(size) for found, size in re.findall(r"N(\d+)=(\d+)", anonymous)}
    assert held[node] >= 32 * MIB
    assert held[1 - node] < 4 * MIB  # the shell's own, from before it came in
    kill_cgroup(name)
    end(eater)


@pytest.mark.parametrize(
    ("limit", "blocks"),
    [({"bytes_per_s": MIB}, "bs=256k count=16"), ({"operations_per_s": 5}, "bs=4k count=20")],
    ids=["bytes", "operations"],
)
def test_a_vm_writes_no_faster_than_its_disk_limit(name: str, limit: dict[str, int], blocks: str) -> None:
    disk = find_disk(Path("/tmp"))
    assert disk is not None
    assert ensure_leaf(name, Limits(cpus=1, mem_mib=64, pids=16, io=IoLimit(disk, **limit))) == {}
    target = f"/tmp/nimbus-io-{os.getpid()}"
    began = time.monotonic()

    # Four seconds' worth by the limit; without it some milliseconds.
    writer = start_in(name, "vmm", f"exec dd if=/dev/zero of={target} {blocks} oflag=direct")

    try:
        status, said = end(writer)
        assert (status, "copied" in said) == (0, True)
        assert time.monotonic() - began > 2
        assert f"{disk} " in read_file(name, "io.stat")
    finally:
        Path(target).unlink()


def test_who_is_not_root_cannot_raise_his_limits(name: str) -> None:
    ensure_leaf(name, LIMITS)
    folder = cgroup_dir(name)
    raises = f"for file in cpu.max memory.max pids.max; do echo max >{folder}/vmm/$file && echo raised; done"
    leaves = f"echo $$ >{folder}/keeper/cgroup.procs && echo left"

    nobody = start_in(
        name, "vmm", f"exec setpriv --reuid=65534 --regid=65534 --clear-groups sh -c '{raises}; {leaves}'"
    )

    _, said = end(nobody)
    assert said.count("ermission denied") == 4
    assert "raised" not in said
    assert "left" not in said
