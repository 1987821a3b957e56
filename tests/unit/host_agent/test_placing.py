"""What becomes of a wish for CPUs: kept, refused with its reason, or left with its reason where it may be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from nimbus.host import cpus
from nimbus.host_agent.placing import AUTO_CORES_MIN, Pinning, Places, Wish, parse_housekeeping, plan_places
from nimbus.model.errors import HostFault, Refused
from nimbus.model.placement import Node, Placement, Topology

ON = Wish(Pinning.ON)
SMT = Topology((Node(0, tuple((cpu, cpu + 4) for cpu in range(4))),))
SMALL = Topology((Node(0, ((0,), (1,))),))


def plan(wish: Wish, topology: Topology = SMT, *, may_pin: bool = True) -> Places:
    return plan_places(wish, topology, may_pin=may_pin)


def test_a_host_with_cores_enough_gives_all_but_its_first_to_vms() -> None:
    places = plan(Wish())
    assert (places.cpus, places.core_width, places.must) == (6, 2, False)
    assert places.housekeeping == {0, 4}


def test_an_operator_says_which_cpus_keep_house() -> None:
    assert plan(Wish(housekeeping=frozenset({3}))).cpus == 6  # and its sibling is nobody's
    assert plan(Wish(housekeeping=frozenset())).cpus == 8


def test_a_small_host_is_not_halved_unless_that_is_demanded() -> None:
    places = plan(Wish(), SMALL)
    assert (places.cpus, places.core_width) == (None, 0)
    assert f"below {AUTO_CORES_MIN}" in places.why
    assert plan(ON, SMALL).cpus == 1
    assert plan(replace(ON, housekeeping=frozenset()), SMALL).cpus == 2


@pytest.mark.parametrize(
    ("wish", "topology", "may_pin", "why"),
    [
        (Wish(overcommit=2), SMT, True, "NIMBUS_AGENT_CPU_OVERCOMMIT is 2"),
        (Wish(), SMT, False, "CAP_SYS_NICE"),
        (Wish(housekeeping=frozenset({0, 1, 2, 3})), SMT, True, "no core is left"),
        (Wish(), Topology(()), True, "no core is left"),
    ],
)
def test_what_stands_against_it_is_told_by_auto_and_refused_by_on(
    wish: Wish, topology: Topology, may_pin: bool, why: str
) -> None:
    assert why in plan(wish, topology, may_pin=may_pin).why
    with pytest.raises(HostFault, match=f"NIMBUS_CPU_PINNING is on, and .*{why}"):
        plan(replace(wish, pinning=Pinning.ON), topology, may_pin=may_pin)


def test_housekeeping_cpus_that_are_not_there_are_refused() -> None:
    with pytest.raises(Refused, match="NIMBUS_HOUSEKEEPING_CPUS: 8-9 is not online"):
        plan(Wish(housekeeping=frozenset({0, 8, 9})))


@pytest.mark.parametrize(
    ("text", "cpus"), [("", None), (" ", None), ("none", frozenset()), ("0-1,8", frozenset({0, 1, 8}))]
)
def test_housekeeping_cpus_are_a_list_or_none_at_all(text: str, cpus: frozenset[int] | None) -> None:
    assert parse_housekeeping(text) == cpus


def test_what_is_no_list_of_housekeeping_cpus_is_refused() -> None:
    with pytest.raises(Refused, match="NIMBUS_HOUSEKEEPING_CPUS: 'two'"):
        parse_housekeeping("two")


def test_vms_share_a_host_that_places_none(tmp_path: Path) -> None:
    assert Places().take(tmp_path, "nb000-00000001", 64) is None
    assert cpus.list_cpus(tmp_path) == ()


def test_a_vm_that_finds_no_core_shares_what_others_leave(tmp_path: Path) -> None:
    places = Places(SMT.without({0}))
    assert places.take(tmp_path, "nb000-00000001", 5) == Placement((1, 5, 2, 6, 3), (1, 2, 3, 5, 6, 7), (0,))
    assert not places.has_room(tmp_path, 1)
    assert places.take(tmp_path, "nb000-00000002", 1) is None


def test_there_is_always_room_where_vms_share(tmp_path: Path) -> None:
    assert Places().has_room(tmp_path, 64)


def test_a_vm_that_must_have_its_own_cores_and_finds_none_is_refused(tmp_path: Path) -> None:
    places = Places(SMT.without({0}), must=True)
    places.take(tmp_path, "nb000-00000001", 6)
    with pytest.raises(HostFault, match="NIMBUS_CPU_PINNING=on"):
        places.take(tmp_path, "nb000-00000002", 1)
