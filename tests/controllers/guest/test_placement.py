"""Cores, nodes and cpusets of a host with two nodes of two cores of two threads, as the kernel keeps them.

The fake VMM has no vCPUs and gets no CPUs of its own: these are real tickets and a real cgroup around a shell.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from nimbus.host.cgroup import ensure_leaf, read_limits, remove_cgroup
from nimbus.host.cpus import release_cpus
from nimbus.host.topology import allowed_cpus, read_topology
from nimbus.host_agent.claims import plan_limits
from nimbus.host_agent.placing import Pinning, Wish, read_places
from nimbus.model.errors import HostFault
from nimbus.model.ids import new_vm_id
from nimbus.model.placement import Node, Topology
from nimbus.model.vm import Shape
from tests.controllers.guest.leaf import LIMIT_S, end, start_in

pytestmark = pytest.mark.root

HERE = Topology((Node(0, ((0, 1), (2, 3))), Node(1, ((4, 5), (6, 7)))))
TELL = "grep -E '^(Cpus|Mems)_allowed_list' /proc/self/status"


@pytest.fixture
def names() -> Iterator[list[str]]:
    """Three VMs that are none but for their cgroups."""
    names = [f"nbfff-{new_vm_id()}" for _ in range(3)]
    yield names
    for name in names:
        remove_cgroup(name, LIMIT_S)


def test_nodes_cores_and_threads_are_read_as_they_are() -> None:
    assert read_topology(allowed_cpus()) == HERE


def test_the_first_core_is_kept_for_the_host_and_cores_of_ones_own_need_no_wish_here() -> None:
    found = read_places(Wish())
    assert found.cores == HERE.without({0, 1})
    assert found.housekeeping == {0, 1}


def tell_place(runtime: Path, name: str, cpus: int) -> tuple[str, str]:
    """Give a VM its CPUs; the CPUs and nodes on which a process of its cgroup finds itself."""
    shape = Shape(cpus=cpus, mem_mib=128, disk_mib=128)
    placement = read_places(Wish(Pinning.ON)).take(runtime, name, cpus)
    assert ensure_leaf(name, plan_limits(shape, placement)) == {}
    _, said = end(start_in(name, "vmm", TELL))
    on, near = (line.partition("\t")[2] for line in said.splitlines())
    held = read_limits(name)
    assert (held["cpuset.cpus.effective"], held["cpuset.mems.effective"]) == (on, near)
    return on, near


def test_vms_beside_each_other_share_no_core_and_take_memory_where_they_run(names: list[str], tmp_path: Path) -> None:
    found = sorted(tell_place(tmp_path, name, 2) for name in names)
    assert found == [("2-3", "0"), ("4-5", "1"), ("6-7", "1")]


def test_a_vm_of_one_cpu_has_its_whole_core(names: list[str], tmp_path: Path) -> None:
    assert tell_place(tmp_path, names[0], 1)[0] in {"2-3", "4-5", "6-7"}


def test_a_vm_too_large_for_a_node_spans_both_and_a_next_one_finds_none_until_it_has_gone(
    names: list[str], tmp_path: Path
) -> None:
    assert tell_place(tmp_path, names[0], 6) == ("2-7", "0-1")
    with pytest.raises(HostFault, match="not enough whole cores"):
        tell_place(tmp_path, names[1], 1)
    release_cpus(tmp_path, names[0])
    assert tell_place(tmp_path, names[1], 4) == ("4-7", "1")
