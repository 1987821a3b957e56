"""The tables of the ground floor hold what the design says, and nothing moves outside them."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nimbus.model.errors import IllegalTransition, Refused
from nimbus.model.ids import VmId, check_ifname, object_name, parse_object_name, state_root_id
from nimbus.model.job import RANK, JobState, merge
from nimbus.model.lease import TERMINAL, TRANSITIONS, LeasePolicy, MachineEvent, MachineState, advance
from nimbus.model.scope import parse_scope
from nimbus.model.vm import Command, ExitReason, GuestExit, Shape


@given(st.lists(st.sampled_from(MachineEvent), max_size=30))
def test_a_machine_request_never_leaves_a_terminal_state(events: list[MachineEvent]) -> None:
    state = MachineState.QUEUED
    for event in events:
        try:
            following = advance(state, event)
        except IllegalTransition:
            continue
        assert state not in TERMINAL
        state = following


def test_every_state_that_is_not_terminal_can_be_left() -> None:
    assert {state for state, _ in TRANSITIONS} == set(MachineState) - TERMINAL


@given(st.permutations(list(JobState)))
def test_a_jobs_rank_never_falls_whatever_order_the_forge_tells_it_in(told: list[JobState]) -> None:
    known: JobState | None = None
    ranks = []
    for state in told:
        known = merge(known, state)
        ranks.append(RANK[known])
    assert ranks == sorted(ranks)


def test_a_name_fits_an_interface_and_leads_back_to_its_vm() -> None:
    name = object_name(state_root_id("/var/lib/nimbus"), VmId("0a1b2c3d"))
    assert len(name) <= 15
    assert parse_object_name(name) == (state_root_id("/var/lib/nimbus/"), VmId("0a1b2c3d"))


@pytest.mark.parametrize("name", ["", "x" * 16, "a/b", "a b", "ü" * 8])
def test_a_name_that_the_kernel_would_cut_or_reject_is_refused(name: str) -> None:
    with pytest.raises(Refused):
        check_ifname(name)


@pytest.mark.parametrize("name", ["eth0", "nb123-0a1b2c3", "nb12-0a1b2c3d", "nbxyz-0a1b2c3d", "nb123-0a1b2c3d4"])
def test_a_strangers_name_is_nobodys_vm(name: str) -> None:
    assert parse_object_name(name) is None


@pytest.mark.parametrize(
    "text",
    [
        "read_write",
        "pull:org-",
        "pull:org-01",
        "PULL:org-1",
        "pull:org-1 ",
        "pull:org-1/x",
        "push:org--1",
        "pull:org-\uff11",
    ],
)
def test_any_other_spelling_of_a_scope_is_refused(text: str) -> None:
    with pytest.raises(Refused):
        parse_scope(text)


def test_one_orgs_scope_is_not_anothers_that_begins_alike() -> None:
    assert parse_scope("pull:org-1") != parse_scope("pull:org-12")


@given(st.floats(1, 1e5), st.integers(0, 1 << 60))
def test_a_holder_gives_up_before_the_lease_can_be_handed_on(ttl_s: float, sent_ns: int) -> None:
    deadline = LeasePolicy().deadline_ns(sent_ns, ttl_s)
    assert sent_ns < deadline < sent_ns + ttl_s * 1e9


@pytest.mark.parametrize(
    ("told", "status"),
    [
        (GuestExit(7, None), 7),
        (GuestExit(None, 9), 137),
        (GuestExit(None, 15, ExitReason.TIMEOUT), 124),
        (GuestExit(127, None, ExitReason.NOT_STARTED), 127),
    ],
)
def test_a_guests_exit_is_one_number_as_a_shell_gives_it(told: GuestExit, status: int) -> None:
    assert told.status == status


@pytest.mark.parametrize(
    "build",
    [
        lambda: Shape(cpus=0),
        lambda: Shape(mem_mib=32),
        lambda: Shape(disk_mib=1),
        lambda: Command(()),
        lambda: Command(("",)),
        lambda: Command(("a\0b",)),
        lambda: Command(("a",), {"A=B": "c"}),
        lambda: Command(("a",), timeout_s=0),
        lambda: Command(("a",), timeout_s=float("nan")),
    ],
)
def test_what_cannot_boot_or_run_is_refused_at_the_door(build) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(Refused):
        build()


def test_the_table_has_no_step_for_every_pair() -> None:
    pairs = set(itertools.product(MachineState, MachineEvent))
    assert pairs - set(TRANSITIONS)
