"""CPUs taken host-wide: nobody's twice, whoever asks at the same moment, and given back by name alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from pathlib import Path

import pytest

from nimbus.host.cpus import HeldCpus, list_cpus, release_cpus, take_cpus
from nimbus.model.errors import HostFault
from nimbus.model.placement import Node, Placement, Topology, place

HOST = Topology((Node(0, tuple((cpu, cpu + 8) for cpu in range(8))),))


def choose(taken: frozenset[int], cpus: int = 2) -> Placement | None:
    return place(HOST, taken, cpus)


def test_what_one_takes_the_next_does_not_get(tmp_path: Path) -> None:
    assert take_cpus(tmp_path, "nb000-00000001", choose) == Placement((0, 8), (0, 8), (0,))
    assert take_cpus(tmp_path, "nb111-00000001", choose) == Placement((1, 9), (1, 9), (0,))
    assert list_cpus(tmp_path) == (
        HeldCpus("nb000-00000001", frozenset({0, 8})),
        HeldCpus("nb111-00000001", frozenset({1, 9})),
    )


def test_who_takes_again_has_what_it_had(tmp_path: Path) -> None:
    take_cpus(tmp_path, "nb000-00000001", choose)
    assert take_cpus(tmp_path, "nb000-00000001", choose) == Placement((0, 8), (0, 8), (0,))
    assert len(list_cpus(tmp_path)) == 1


def test_where_too_few_are_left_nothing_is_taken(tmp_path: Path) -> None:
    take_cpus(tmp_path, "nb000-00000001", partial(choose, cpus=12))
    assert take_cpus(tmp_path, "nb000-00000002", partial(choose, cpus=6)) is None
    assert len(list_cpus(tmp_path)) == 1


def test_what_was_given_back_can_be_taken_and_is_given_back_once_more_in_peace(tmp_path: Path) -> None:
    release_cpus(tmp_path, "nb000-00000001")
    take_cpus(tmp_path, "nb000-00000001", partial(choose, cpus=16))
    release_cpus(tmp_path, "nb000-00000001")
    release_cpus(tmp_path, "nb000-00000001")
    assert take_cpus(tmp_path, "nb000-00000002", partial(choose, cpus=16)) is not None


def test_of_many_who_ask_at_the_same_moment_no_two_get_the_same(tmp_path: Path) -> None:
    names = [f"nb000-{index:08x}" for index in range(12)]
    with ThreadPoolExecutor(12) as threads:
        found = list(threads.map(lambda name: take_cpus(tmp_path, name, choose), names))
    given = list(chain.from_iterable(placed.cpus for placed in found if placed))
    assert sorted(given) == list(range(16))
    assert found.count(None) == 4


def test_a_ticket_that_cannot_be_read_lets_nobody_take_what_may_be_anothers(tmp_path: Path) -> None:
    (tmp_path / "cpus").mkdir()
    (tmp_path / "cpus" / "nb000-00000001").write_text("all")
    with pytest.raises(HostFault, match="no list of CPUs"):
        take_cpus(tmp_path, "nb000-00000002", choose)
