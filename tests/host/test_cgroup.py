"""The cgroup leaf of a VM on a real kernel: made, killed, waited for and removed, whatever lives in it."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nimbus.host.blockdevice import find_disk
from nimbus.host.cgroup import (
    LIMIT_FILES,
    IoLimit,
    Limits,
    cgroup_dir,
    ensure_leaf,
    has_controller,
    is_populated,
    kill_cgroup,
    list_cgroups,
    list_threads,
    missing_controllers,
    read_limits,
    remove_cgroup,
    render_limits,
    wait_empty,
)
from nimbus.model.errors import HostFault
from nimbus.model.ids import new_vm_id

pytestmark = pytest.mark.root

LIMITS = Limits(cpus=1, mem_mib=64, pids=16)
LIMIT_S = 5.0


@pytest.fixture
def name() -> Iterator[str]:
    name = f"nbfff-{new_vm_id()}"
    yield name
    remove_cgroup(name, LIMIT_S)
    assert list_cgroups(name) == ()


def start_in(name: str, leaf: str, script: str) -> subprocess.Popen[bytes]:
    """A shell that joins the leaf by itself before it runs the script."""
    procs = cgroup_dir(name) / leaf / "cgroup.procs"
    process = subprocess.Popen(
        ["sh", "-c", f"echo $$ > {procs}; echo in; {script}"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"in\n"
    return process


def end(process: subprocess.Popen[bytes]) -> int:
    with process:
        return process.wait(LIMIT_S)


def test_a_leaf_has_a_place_for_the_keeper_and_one_for_the_vmm(name: str) -> None:
    ensure_leaf(name, LIMITS)
    ensure_leaf(name, LIMITS)
    assert (cgroup_dir(name) / "keeper" / "cgroup.procs").exists()
    assert (cgroup_dir(name) / "vmm" / "cgroup.procs").exists()


def test_each_limit_is_held_by_the_kernel_or_named_as_missing(name: str) -> None:
    wanted = everything()
    degraded = ensure_leaf(name, wanted)
    held = read_limits(name)
    for controller, knobs in render_limits(wanted).items():
        sentence = degraded.get(controller)
        if sentence is None:
            assert {knob: reads_as(controller, value, held[knob]) for knob, value in knobs.items()} == knobs
        else:
            assert sentence.startswith(f"{controller} is not limited: ")
            assert set(knobs) & {knob for knob, value in held.items() if value is not None} == set()


def everything() -> Limits:
    """Every limit that there is, on the first CPU and node of this host and the disk below its /tmp, if any."""
    disk = find_disk(Path("/tmp"))
    io = IoLimit(disk, bytes_per_s=64 << 20, operations_per_s=2000) if disk else None
    cpu = min(os.sched_getaffinity(0))
    return Limits(cpus=1, mem_mib=64, pids=16, cpuset=(cpu,), mems=(0,), io=io)


def reads_as(controller: str, written: str, held: str | None) -> str | None:
    """The kernel tells the four limits of a disk in an order of its own."""
    same = controller == "io" and held is not None and sorted(written.split()) == sorted(held.split())
    return written if same else held


def test_only_what_a_vm_is_to_be_kept_from_is_written() -> None:
    assert set(render_limits(LIMITS)) == {"cpu", "memory", "pids"}
    assert next(iter(render_limits(everything()))) == "cpuset"


def test_the_disk_of_an_io_limit_is_named_with_what_is_limited_only() -> None:
    slow = Limits(cpus=1, mem_mib=64, pids=16, io=IoLimit("8:0", operations_per_s=500))
    assert render_limits(slow)["io"] == {"io.max": "8:0 riops=500 wiops=500"}


def test_cpus_that_the_host_has_not_are_no_fence(name: str) -> None:
    degraded = ensure_leaf(name, Limits(cpus=1, mem_mib=64, pids=16, cpuset=(8191,), mems=(0,)))
    assert degraded["cpuset"].startswith("cpuset is not limited: ")


def test_nothing_is_held_where_there_is_no_cgroup(name: str) -> None:
    assert read_limits(name) == dict.fromkeys(LIMIT_FILES)
    assert list_threads(name) == frozenset()


def test_the_threads_of_a_vmm_are_those_that_the_kernel_lists_in_its_leaf(name: str) -> None:
    ensure_leaf(name, LIMITS)
    keeper, vmm = start_in(name, "keeper", "sleep 600"), start_in(name, "vmm", "sleep 600")
    assert vmm.pid in list_threads(name)
    assert keeper.pid not in list_threads(name)
    kill_cgroup(name)
    assert (end(keeper), end(vmm)) == (-9, -9)


def test_killing_the_vmm_spares_its_keeper(name: str) -> None:
    ensure_leaf(name, LIMITS)
    keeper, vmm = start_in(name, "keeper", "sleep 600"), start_in(name, "vmm", "sleep 600")
    kill_cgroup(name, "vmm")
    assert wait_empty(name, LIMIT_S, "vmm")
    assert end(vmm) == -9
    assert is_populated(name, "keeper")
    kill_cgroup(name)
    assert end(keeper) == -9


def test_grandchildren_die_with_the_rest(name: str) -> None:
    ensure_leaf(name, LIMITS)
    shell = start_in(name, "vmm", "for n in 1 2 3; do (setsid sleep 600 &); done; sleep 600")
    kill_cgroup(name)
    assert wait_empty(name, LIMIT_S)
    assert end(shell) == -9


def test_a_cgroup_that_forks_all_the_time_is_removed_all_the_same(name: str) -> None:
    ensure_leaf(name, LIMITS)
    shell = start_in(name, "vmm", "while :; do sleep 0.01 & done")
    remove_cgroup(name, LIMIT_S)
    assert end(shell) == -9
    assert not cgroup_dir(name).exists()


def test_waiting_for_a_cgroup_that_stays_busy_ends_at_its_limit(name: str) -> None:
    ensure_leaf(name, LIMITS)
    process = start_in(name, "vmm", "sleep 600")
    started = time.monotonic()
    assert wait_empty(name, 0.05) is False
    assert time.monotonic() - started < LIMIT_S
    kill_cgroup(name)
    assert end(process) == -9


def test_the_end_of_the_last_process_wakes_the_waiter_at_once(name: str) -> None:
    ensure_leaf(name, LIMITS)
    process = start_in(name, "vmm", "sleep 0.2")
    started = time.monotonic()
    assert wait_empty(name, 60.0)
    assert time.monotonic() - started < LIMIT_S
    assert end(process) == 0


def test_what_is_absent_is_empty_killed_and_removed(name: str) -> None:
    kill_cgroup(name)
    assert not is_populated(name)
    assert wait_empty(name, 0)
    remove_cgroup(name, LIMIT_S)


def test_a_half_made_cgroup_with_more_below_it_is_removed(name: str) -> None:
    (cgroup_dir(name) / "vmm" / "made by the VMM" / "deeper").mkdir(parents=True)
    remove_cgroup(name, LIMIT_S)
    assert not cgroup_dir(name).exists()


def test_names_are_listed_by_prefix_only(name: str) -> None:
    ensure_leaf(name, LIMITS)
    assert list_cgroups(name) == (name,)
    assert name not in list_cgroups("nb000-")


def test_a_name_that_is_not_ours_is_refused() -> None:
    with pytest.raises(HostFault, match="no object name"):
        remove_cgroup("../../../etc", LIMIT_S)


def test_a_controller_that_is_missing_is_one_whose_limit_is_not_kept(name: str) -> None:
    assert set(ensure_leaf(name, LIMITS)) >= set(missing_controllers())
    assert missing_controllers() == tuple(name for name in ("cpu", "memory", "pids") if not has_controller(name))
