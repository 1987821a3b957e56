"""Cores and nodes of hosts of every kind, read from a sysfs of our own making, and of this very host."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nimbus.host.topology import allowed_cpus, read_topology
from nimbus.model.errors import HostFault
from nimbus.model.placement import Node, Topology
from tests.unit.host.fake_sysfs import Machine


def read(machine: Machine, root: Path, allowed: frozenset[int] | None = None) -> Topology:
    return read_topology(machine.cpus if allowed is None else allowed, machine.build(root))


@pytest.mark.parametrize("nodes", [1, 2, 4])
@pytest.mark.parametrize("threads", [1, 2])
def test_every_core_is_found_on_its_node_with_all_its_threads(nodes: int, threads: int, tmp_path: Path) -> None:
    machine = Machine(nodes=nodes, cores=4, threads=threads)
    found = read(machine, tmp_path)
    assert [node.index for node in found.nodes] == list(range(nodes))
    assert found.cpus == machine.cpus
    assert found.core_width == threads
    assert {frozenset(core) for core in found.cores} == {machine.core_of(cpu) for cpu in machine.cpus}
    assert all(machine.node_of(cpu) == node.index for node in found.nodes for core in node.cores for cpu in core)


def test_an_offline_cpu_is_no_part_of_its_core(tmp_path: Path) -> None:
    found = read(Machine(cores=2, threads=2, offline=(3,)), tmp_path)
    assert found == Topology((Node(0, ((0, 2), (1,))),))


def test_a_node_whose_cpus_are_all_offline_is_left_out(tmp_path: Path) -> None:
    found = read(Machine(nodes=2, cores=2, offline=(2, 3)), tmp_path)
    assert [node.index for node in found.nodes] == [0]


def test_a_node_that_is_only_memory_is_left_out(tmp_path: Path) -> None:
    found = read(Machine(nodes=2, memory_only=1), tmp_path)
    assert [node.index for node in found.nodes] == [0, 1]


def test_a_node_without_memory_is_known_as_one(tmp_path: Path) -> None:
    found = read(Machine(nodes=2, without_memory=(1,)), tmp_path)
    assert [node.has_memory for node in found.nodes] == [True, False]


def test_a_host_without_a_node_folder_has_one_node(tmp_path: Path) -> None:
    found = read(Machine(nodes=2, cores=2, has_node_folder=False), tmp_path)
    assert found == Topology((Node(0, ((0,), (1,), (2,), (3,))),))


def test_a_cpu_that_tells_no_siblings_is_a_core_of_its_own(tmp_path: Path) -> None:
    found = read(Machine(cores=2, threads=2, has_topology=False), tmp_path)
    assert found.cores == ((0,), (1,), (2,), (3,))


def test_a_core_with_a_thread_that_is_not_ours_to_use_is_nobodys_own(tmp_path: Path) -> None:
    found = read(Machine(cores=3, threads=2), tmp_path, allowed=frozenset({0, 1, 2, 4, 5}))
    assert found.cores == ((1, 4), (2, 5))


def test_a_sysfs_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(HostFault, match="is sysfs mounted"):
        read_topology(frozenset({0}), tmp_path)


def test_a_file_that_holds_no_list_is_named(tmp_path: Path) -> None:
    root = Machine().build(tmp_path)
    (root / "cpu" / "online").write_text("all of them\n")
    with pytest.raises(HostFault, match="online"):
        read_topology(frozenset({0}), root)


def test_this_hosts_own_cores_are_made_of_the_cpus_that_we_may_use() -> None:
    found = read_topology(allowed_cpus())
    assert found.cpus
    assert found.cpus <= os.sched_getaffinity(0)
