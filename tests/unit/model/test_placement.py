"""Placement over hosts of any shape: whole cores, nobody's twice, one node where it fits, and no room wasted."""

from __future__ import annotations

from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nimbus.model.placement import Node, Placement, Topology, parse_cpus, place, render_cpus


def uniform(nodes: int, cores: int, threads: int = 1) -> Topology:
    """Numbered as Linux does: first threads of all cores, then their siblings."""
    total = nodes * cores
    return Topology(
        tuple(
            Node(node, tuple(tuple(core + total * t for t in range(threads)) for core in span))
            for node, span in ((n, range(n * cores, (n + 1) * cores)) for n in range(nodes))
        )
    )


@st.composite
def topologies(draw: st.DrawFn) -> Topology:
    """Nodes of unlike sizes, cores of one to four threads, CPU numbers in no order."""
    widths = draw(st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=6), min_size=1, max_size=4))
    numbers = draw(st.permutations(range(sum(map(sum, widths)))))
    nodes = []
    for index, cores in enumerate(widths):
        made = []
        for width in cores:
            made.append(tuple(sorted(numbers[:width])))
            numbers = numbers[width:]
        nodes.append(Node(index, tuple(made), draw(st.booleans())))
    return Topology(tuple(nodes))


def some_of(topology: Topology) -> st.SearchStrategy[frozenset[int]]:
    return st.frozensets(st.sampled_from(sorted(topology.cpus)))


requests = topologies().flatmap(
    lambda t: st.tuples(st.just(t), some_of(t), st.integers(1, 20), some_of(t).filter(lambda h: len(h) < 4))
)


@given(requests)
def test_a_vm_gets_whole_cores_that_are_neither_taken_nor_housekeeping(
    request: tuple[Topology, frozenset[int], int, frozenset[int]],
) -> None:
    topology, taken, cpus, housekeeping = request
    placed = place(topology, taken, cpus, housekeeping)
    if placed is not None:
        own = set(placed.cpus)
        assert not own & (taken | housekeeping)
        assert all(set(core) <= own or not set(core) & own for core in topology.cores)


@given(requests)
def test_each_vcpu_has_a_cpu_of_its_own(request: tuple[Topology, frozenset[int], int, frozenset[int]]) -> None:
    topology, taken, cpus, housekeeping = request
    placed = place(topology, taken, cpus, housekeeping)
    if placed is not None:
        assert len(set(placed.vcpus)) == cpus
        assert set(placed.vcpus) <= set(placed.cpus)
        touched = {core for core in topology.cores if set(core) & set(placed.vcpus)}
        assert set(chain.from_iterable(touched)) == set(placed.cpus)  # and no core without a vCPU


@given(requests)
def test_it_fits_exactly_where_enough_whole_cores_are_left(
    request: tuple[Topology, frozenset[int], int, frozenset[int]],
) -> None:
    topology, taken, cpus, housekeeping = request
    room = len(topology.without(taken | housekeeping).cpus)
    assert (place(topology, taken, cpus, housekeeping) is not None) == (room >= cpus)


@given(requests)
def test_it_lies_on_one_node_wherever_one_has_the_room(
    request: tuple[Topology, frozenset[int], int, frozenset[int]],
) -> None:
    topology, taken, cpus, housekeeping = request
    placed = place(topology, taken, cpus, housekeeping)
    left = topology.without(taken | housekeeping).nodes
    if placed is not None and any(node.width >= cpus for node in left):
        on = [node for node in topology.nodes if set(placed.cpus) & set(chain.from_iterable(node.cores))]
        assert len(on) == 1
        assert placed.mems == ((on[0].index,) if on[0].has_memory else ())


@given(requests)
def test_the_same_question_has_the_same_answer_in_whatever_order_it_is_put(
    request: tuple[Topology, frozenset[int], int, frozenset[int]],
) -> None:
    topology, taken, cpus, housekeeping = request
    turned = Topology(tuple(Node(n.index, n.cores[::-1], n.has_memory) for n in topology.nodes[::-1]))
    assert place(topology, taken, cpus, housekeeping) == place(turned, sorted(taken, reverse=True), cpus, housekeeping)


@given(topologies(), st.lists(st.integers(1, 6), max_size=12), st.randoms(use_true_random=False))
def test_vms_that_come_and_go_never_share_a_core_and_what_they_give_back_can_be_given_again(
    topology: Topology, sizes: list[int], order: object
) -> None:
    placed: list[Placement] = []
    for cpus in sizes:
        taken = set(chain.from_iterable(p.cpus for p in placed))
        found = place(topology, taken, cpus)
        if found is None:
            order.shuffle(placed)  # type: ignore[attr-defined]
            del placed[len(placed) // 2 :]
        else:
            placed.append(found)
        everything = list(chain.from_iterable(p.cpus for p in placed))
        assert len(everything) == len(set(everything))
    whole = place(topology, (), len(topology.cpus))
    assert whole is not None
    assert set(whole.cpus) == topology.cpus


def test_the_two_threads_of_a_core_carry_neighbouring_vcpus() -> None:
    placed = place(uniform(1, 4, threads=2), (), 4)
    assert placed == Placement(vcpus=(0, 4, 1, 5), cpus=(0, 1, 4, 5), mems=(0,))


def test_the_sibling_of_an_odd_vcpu_is_nobody_elses() -> None:
    host = uniform(1, 2, threads=2)
    first = place(host, (), 1)
    assert first == Placement(vcpus=(0,), cpus=(0, 2), mems=(0,))
    second = place(host, first.cpus, 2)
    assert second == Placement(vcpus=(1, 3), cpus=(1, 3), mems=(0,))


def test_small_vms_fill_the_fuller_node_so_that_a_large_one_still_fits() -> None:
    host = uniform(2, 4)
    placed = [p for p in [place(host, (0,), 1)] if p]
    assert placed[0].cpus == (1,)
    large = place(host, (0, *placed[0].cpus), 4)
    assert large is not None
    assert large.cpus == (4, 5, 6, 7)


def test_a_vm_larger_than_any_node_spans_as_few_as_it_can() -> None:
    host = uniform(4, 4)
    placed = place(host, (), 6)
    assert placed is not None
    assert placed.mems == (0, 1)
    assert placed.cpus == (0, 1, 2, 3, 4, 5)


def test_a_core_of_which_one_thread_keeps_house_is_given_to_nobody() -> None:
    host = uniform(1, 2, threads=2)
    placed = place(host, (), 2, housekeeping=(2,))
    assert placed is not None
    assert placed.cpus == (1, 3)
    assert place(host, (), 3, housekeeping=(2,)) is None


def test_a_node_without_memory_of_its_own_names_none() -> None:
    placed = place(Topology((Node(0, ((0,),), has_memory=False),)), (), 1)
    assert placed is not None
    assert placed.mems == ()


@given(st.frozensets(st.integers(0, 300)))
def test_a_list_of_cpus_reads_back_as_it_was_written(cpus: frozenset[int]) -> None:
    assert parse_cpus(render_cpus(cpus)) == cpus


def test_lists_of_cpus_are_written_as_the_kernel_writes_them() -> None:
    assert render_cpus({0, 1, 2, 3, 8, 10, 11}) == "0-3,8,10-11"
    assert render_cpus(()) == ""
    assert parse_cpus(" 0-1, 5\n") == {0, 1, 5}


@pytest.mark.parametrize("text", ["x", "3-1", "-1", "1-", "1-2-3", "0-8192"])
def test_what_is_no_list_of_cpus_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no"):
        parse_cpus(text)
