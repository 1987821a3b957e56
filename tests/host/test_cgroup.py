"""The cgroup leaf of a VM on a real kernel: made, killed, waited for and removed, whatever lives in it."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nimbus.host.cgroup import (
    Limits,
    cgroup_dir,
    cgroup_mount,
    ensure_leaf,
    is_populated,
    kill_cgroup,
    list_cgroups,
    missing_controllers,
    read_usage,
    remove_cgroup,
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


def test_each_controller_is_set_or_named_as_not_limited(name: str) -> None:
    degraded = ensure_leaf(name, LIMITS)
    usable = (cgroup_mount() / "cgroup.controllers").read_text().split()
    for controller, knob in (("cpu", "cpu.max"), ("memory", "memory.max"), ("pids", "pids.max")):
        limited = (cgroup_dir(name) / "vmm" / knob).exists()
        named = any(sentence.startswith(f"{controller} is not limited") for sentence in degraded)
        assert limited != named
        assert limited <= (controller in usable)


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


def test_use_is_read_where_it_is_counted_and_none_elsewhere(name: str) -> None:
    ensure_leaf(name, LIMITS)
    usage = read_usage(name)
    assert (usage.memory_peak_bytes is None) == (not Path(cgroup_dir(name) / "vmm" / "memory.peak").exists())
    assert usage.cpu_us is not None
    assert usage.cpu_us >= 0


def test_names_are_listed_by_prefix_only(name: str) -> None:
    ensure_leaf(name, LIMITS)
    assert list_cgroups(name) == (name,)
    assert name not in list_cgroups("nb000-")


def test_a_name_that_is_not_ours_is_refused() -> None:
    with pytest.raises(HostFault, match="no object name"):
        remove_cgroup("../../../etc", LIMIT_S)


def test_a_controller_that_is_missing_is_one_whose_limit_is_not_kept(name: str) -> None:
    degraded = ensure_leaf(name, LIMITS)
    assert {sentence.split()[0] for sentence in degraded} >= set(missing_controllers())
