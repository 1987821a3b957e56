"""Which request suits which host, and who is called for it: values only."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from nimbus.control_plane.queue.seats import AWAKE, Offer, Request, Room, find_largest, plan_offer, suits
from nimbus.model.labels import Arch
from nimbus.wire.leaseapi import LeaseRequest

OFFER = Offer("x64", frozenset({"nimbus", "self-hosted", "linux", "x64"}), 4, 4096, 10_000)
REQUEST = Request(1, 0, "x64", frozenset({"nimbus"}), 2, 1024, 2048, None)
LABELS = st.frozensets(st.sampled_from(["nimbus", "gpu", "linux"]))
OFFERS = st.builds(
    Offer,
    st.sampled_from(["x64", "arm64"]),
    LABELS,
    st.integers(0, 5),
    st.integers(0, 5),
    st.none() | st.integers(0, 5),
)
REQUESTS = st.builds(
    Request,
    st.integers(1, 9),
    st.just(0),
    st.sampled_from(["x64", "arm64"]),
    st.none() | LABELS,
    st.integers(1, 5),
    st.integers(1, 5),
    st.integers(1, 5),
    st.none(),
)


def test_a_request_suits_who_has_all_that_it_needs() -> None:
    assert suits(REQUEST, OFFER)
    assert suits(replace(REQUEST, cpus=4, mem_mib=4096, disk_mib=10_000), OFFER)


def test_one_thing_too_little_is_enough_to_be_passed_over() -> None:
    lacking = [
        replace(REQUEST, arch="arm64"),
        replace(REQUEST, cpus=5),
        replace(REQUEST, mem_mib=4097),
        replace(REQUEST, disk_mib=10_001),
        replace(REQUEST, host_labels=frozenset({"nimbus", "gpu"})),
    ]
    assert not any(suits(request, OFFER) for request in lacking)


def test_what_an_agent_does_not_count_or_name_keeps_nothing_away() -> None:
    assert suits(replace(REQUEST, disk_mib=2**40), replace(OFFER, disk_mib=None))
    assert suits(replace(REQUEST, host_labels=frozenset({"gpu"})), replace(OFFER, labels=frozenset()))
    assert suits(replace(REQUEST, host_labels=None), OFFER)


def test_a_poll_offers_its_labels_in_lower_case_with_those_of_every_host_and_nothing_without_a_slot() -> None:
    polled = LeaseRequest(20.0, 4, 4096, 1, ("Nimbus",), 10_000, Arch.X64)
    assert plan_offer(polled) == OFFER
    assert not suits(REQUEST, plan_offer(replace(polled, free_slots=0)))


@given(st.lists(OFFERS, max_size=8), st.lists(REQUESTS, max_size=8))
def test_the_largest_offers_suit_whatever_any_of_all_suits_and_nothing_else(
    offers: list[Offer], requests: list[Request]
) -> None:
    largest = find_largest(offers)
    assert set(largest) <= set(offers)
    for request in requests:
        assert any(suits(request, each) for each in largest) == any(suits(request, each) for each in offers)


def test_hosts_of_one_kind_come_down_to_the_largest() -> None:
    assert find_largest([replace(OFFER, cpus=each) for each in (1, 2, 3, 4)] * 100) == [OFFER]


@given(st.lists(OFFERS, max_size=8), st.lists(REQUESTS, max_size=8, unique_by=lambda each: each.machine_id))
def test_nobody_is_called_twice_or_for_what_does_not_suit(offers: list[Offer], requests: list[Request]) -> None:
    room = Room()
    for number, offer in enumerate(offers):
        room.enter(f"agent-{number}", offer)
    calls = room.match(requests, patience_s=1.0)
    assert len(set(calls.values())) == len(calls)
    assert all(suits(request, called.offer) for request, called in calls.items())
    left = [each for each in room if each not in calls.values()]
    unmet = [each for each in requests if each not in calls]
    assert not any(suits(request, each.offer) for request in unmet for each in left)


def test_who_was_called_longest_ago_is_called_first() -> None:
    room = Room()
    one, two = room.enter("one", OFFER), room.enter("two", OFFER)
    room.call(one, 1, rings=0)
    room.answer(one, None, rings=0)
    assert list(room.match([replace(REQUEST, machine_id=2)], 1.0).values()) == [two]


def test_who_got_nothing_of_a_request_is_not_called_for_it_before_others_had_their_turn() -> None:
    room = Room()
    only = room.enter("only", OFFER)
    room.call(only, REQUEST.machine_id, rings=0)
    room.answer(only, None, rings=0)
    assert room.match([replace(REQUEST, overdue_s=0.1)], patience_s=1.0) == {}
    late = replace(REQUEST, overdue_s=1.0)
    assert room.match([late], patience_s=1.0) == {late: only}
    other = replace(REQUEST, machine_id=2, overdue_s=0.1)
    assert room.match([other], patience_s=1.0) == {other: only}


def test_a_request_whose_agent_leased_another_or_left_is_for_the_next_at_once() -> None:
    room = Room()
    busy, gone = room.enter("busy", OFFER), room.enter("gone", OFFER)
    room.call(busy, 1, rings=0)
    room.answer(busy, granted=7, rings=0)
    room.call(gone, 2, rings=0)
    assert room.leave(gone)
    room.call(gone, 3, rings=0)  # chosen while it was leaving
    assert room.take_returned() == {1, 2, 3}
    assert room.take_returned() == set()


def test_a_barred_agent_is_not_called() -> None:
    room = Room()
    room.enter("barred", OFFER)
    assert room.bar(frozenset({"barred"}))
    assert not room.bar(frozenset({"barred"}))
    assert room.find_largest() == []
    assert room.match([REQUEST], 1.0) == {}


def test_no_more_are_woken_at_once_than_the_database_can_answer() -> None:
    room = Room()
    requests = [replace(REQUEST, machine_id=number) for number in range(1, 2 * AWAKE)]
    for request in requests:
        room.enter(f"agent-{request.machine_id}", OFFER)
    calls = room.match(requests, 1.0)
    assert len(calls) == AWAKE
    for request, called in calls.items():
        room.call(called, request.machine_id, rings=0)
    assert room.places == 0
    assert room.match(requests, 1.0) == {}


def test_an_empty_queue_is_believed_until_the_next_ring_and_only_for_its_time() -> None:
    room = Room()
    assert not room.is_quiet(rings=0, now_s=0.0)
    room.keep_quiet(rings=3, until_s=10.0)
    assert room.is_quiet(rings=3, now_s=9.9)
    assert not room.is_quiet(rings=4, now_s=9.9)
    assert not room.is_quiet(rings=3, now_s=10.0)
