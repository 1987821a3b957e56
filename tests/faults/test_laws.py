"""The laws of the lease machine see each crime that they name, and the model behind them keeps the protocol."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from nimbus.model.lease import LeaseKey, MachineState
from nimbus.model.vm import Ending
from nimbus.wire.leaseapi import EnrolRequest, FinishRequest, HeldState, RenewRequest
from tests.faults.laws import (
    AGENT_LEFT,
    CUT,
    VM_KILLED,
    Evidence,
    Hindrance,
    Patience,
    Trouble,
    find_crimes,
    find_excuse,
    find_torn_logs,
)
from tests.faults.leasebook import EXPIRED, FINISHED, GIVEN_UP, LeaseBook
from tests.faults.witness import Beat

Json = dict[str, Any]
END = {"ending": Ending.FAILED, "exit_code": 7, "signal": None}
CRASH = {"ending": Ending.GUEST_CRASHED, "exit_code": None, "signal": None}


def lease(fence: int = 1, **fields: Any) -> Json:
    """Held from second 10 to second 20 by agent a, running from 12, renewed each second."""
    told = {"fence": fence, "agent": "a", "granted_at": 10.0, "heard": [float(at) for at in range(11, 20)]}
    return told | {"running_at": 12.0, "lost": False, "ended_at": 20.0, "how": FINISHED, "end": END} | fields


def evidence(*leases: Json, **fields: Any) -> Evidence:
    told = {"requests": [{"number": 1, "leases": list(leases)}], "wrong": [], "clashes": [], "rows": {}}
    beats = [Beat(13_000_000_000, 1, 1, 5), Beat(19_000_000_000, 1, 1, 5)]
    return replace(Evidence(told, beats, [], {1: 7}, [], [], Patience(3.0, 2.4, 1.2)), **fields)


def test_a_job_that_ends_by_itself_is_no_crime() -> None:
    assert find_crimes(evidence(lease())) == []


def test_a_vm_and_a_job_that_outlive_their_lease_are_crimes() -> None:
    late = [Beat(13_000_000_000, 1, 1, 5), Beat(20_500_000_000, 1, 1, 5)]
    found = find_crimes(evidence(lease(), living=[(1, 1, 99)], beats=late))
    assert len(found) == 2
    assert "keeper 99 lives" in found[0]
    assert "beat 0.50 s after" in found[1]


def test_two_living_vms_of_one_request_are_a_crime() -> None:
    held = lease(2, how="", ended_at=0.0, end=None)
    assert any("2 living VMs" in each for each in find_crimes(evidence(lease(), held, living=[(1, 1, 8), (1, 2, 9)])))


@pytest.mark.parametrize("gates", [{}, {1: 0}, {1: 8}], ids=["never ended", "ended well", "ended otherwise"])
def test_an_exit_that_the_job_did_not_have_is_a_crime(gates: dict[int, int]) -> None:
    assert len(find_crimes(evidence(lease(), gates=gates))) == 1


def test_an_exit_of_a_job_that_never_ran_is_a_crime() -> None:
    assert len(find_crimes(evidence(lease(), beats=[]))) == 1


@pytest.mark.parametrize("how", [FINISHED, EXPIRED, GIVEN_UP])
def test_a_running_job_that_ends_without_its_exit_needs_an_excuse(how: str) -> None:
    ended = lease(how=how, end=CRASH)
    left = Trouble(AGENT_LEFT, 15.0, "a")
    assert len(find_crimes(evidence(ended))) == 1
    assert len(find_crimes(evidence(ended, troubles=[left]))) == 1  # an agent may leave at any time
    assert len(find_crimes(evidence(ended, troubles=[Trouble(VM_KILLED, 15.0, "a", 1, 2)]))) == 1  # another's
    assert find_crimes(evidence(ended, troubles=[Trouble(VM_KILLED, 15.0, "a", 1, 1)])) == []


def test_what_happened_while_it_booted_while_it_was_silent_or_as_it_was_taken_away_is_an_excuse() -> None:
    ended = lease(how=GIVEN_UP, end=None)
    booting = replace(evidence(), troubles=[Trouble(AGENT_LEFT, 11.0, "a")])
    assert find_excuse(booting, 1, ended) == AGENT_LEFT
    cut = replace(evidence(), troubles=[Trouble(CUT, 9.0, "a", until=11.0)])
    assert find_excuse(cut, 1, ended) == CUT
    assert find_excuse(evidence(), 1, {**ended, "lost": True}) == "it was taken away"
    assert find_excuse(replace(booting, troubles=[Trouble(AGENT_LEFT, 9.0, "a")]), 1, ended) is None  # before it


@pytest.mark.parametrize(
    ("hindrances", "excuse"),
    [
        ([], None),
        ([Hindrance("b", 13.0, 30.0)], None),  # another's
        ([Hindrance("a", 13.0, 16.0)], "silence"),
        ([Hindrance("", 12.5, 14.9)], "silence"),  # the machine itself stood still
        ([Hindrance("a", 12.5, 13.0), Hindrance("a", 13.5, 14.0)], "silence"),  # never free for long enough
        ([Hindrance("a", 12.1, 12.3)], None),
        ([Hindrance("a", 12.1, 13.5)], "silence"),  # it may wait for its next try
        ([Hindrance("a", 12.1, 13.5, adopts=True)], None),  # a new start does not
    ],
)
def test_an_agent_that_was_free_to_renew_has_no_excuse_for_its_silence(
    hindrances: list[Hindrance], excuse: str | None
) -> None:
    ended = lease(how=EXPIRED, end=None, heard=[11.0, 12.0], ended_at=16.0)
    assert find_excuse(evidence(hindrances=hindrances), 1, ended) == excuse


def test_a_grant_that_never_arrived_is_no_crime_but_a_run_without_a_renewal_is() -> None:
    ended = lease(how=EXPIRED, end=None, heard=[], running_at=0.0, ended_at=20.0)
    assert find_crimes(evidence(ended, beats=[])) == []
    assert len(find_crimes(evidence(ended))) == 1


def test_a_line_that_is_missing_twice_or_late_tears_a_log() -> None:
    whole = {"1": "stdout beat 1", "2": "stdout beat 2", "3": "stdout gate", "4": "end"}
    told = evidence(lease()).told
    assert find_torn_logs({**told, "rows": {"1-1": whole}}) == []
    for torn in ({}, {**whole, "1": "stdout beat 2"}, {k: v for k, v in whole.items() if k != "2"}):
        assert len(find_torn_logs({**told, "rows": {"1-1": torn}})) == 1


# --- the model --------------------------------------------------------------------------------------------------


def open_book() -> tuple[LeaseBook, LeaseKey]:
    """One request, leased to agent a at second 10 for 4 s."""
    book = LeaseBook(4.0)
    book.submit(2)
    granted = book.grant("a", 10.0)
    assert granted is not None
    return book, LeaseKey(2, granted[1].lease_id, granted[1].fence)


def finish(book: LeaseBook, key: LeaseKey, code: int, now: float, agent: str = "a") -> MachineState | None:
    ending = Ending.FAILED if code else Ending.DONE
    return book.finish(
        agent, FinishRequest(key, ending, code), {"ending": ending, "exit_code": code, "signal": None}, now
    )


def test_a_lease_is_held_as_long_as_it_is_renewed_and_given_to_nobody_else_meanwhile() -> None:
    book, key = open_book()
    assert book.renew("a", RenewRequest(key, HeldState.RUNNING), 13.0) is not None
    assert book.grant("b", 16.9) is None
    granted = book.grant("b", 17.0)
    assert granted is not None
    assert granted[1].fence == 2
    assert book.renew("a", RenewRequest(key, HeldState.RUNNING), 17.1) is None
    assert finish(book, key, 0, 17.2) is None
    assert book.wrong == []


def test_one_end_is_accepted_and_another_one_is_a_crime() -> None:
    book, key = open_book()
    assert finish(book, key, 7, 11.0) is MachineState.FAILED
    assert finish(book, key, 7, 12.0) is MachineState.FAILED
    assert book.wrong == []
    finish(book, key, 0, 13.0)
    assert len(book.wrong) == 2


def test_who_speaks_for_a_lease_of_another_is_a_criminal() -> None:
    book, key = open_book()
    assert finish(book, key, 0, 11.0, agent="b") is None
    assert book.renew("a", RenewRequest(replace(key, fence=2), HeldState.BOOTING), 11.0) is None
    assert len(book.wrong) == 2


def test_a_lease_that_was_taken_away_is_nobodys_before_its_time() -> None:
    book, key = open_book()
    assert book.lose(2, 11.0) == 1
    assert book.renew("a", RenewRequest(key, HeldState.RUNNING), 12.0) is None
    assert book.grant("b", 13.9) is None
    assert book.grant("b", 14.0) is not None


def test_an_agent_that_starts_gives_up_what_it_does_not_name_once() -> None:
    book, key = open_book()
    book.enrol("a", EnrolRequest("1", "boot", 1, 1, held=(key,), start=5), 11.0)
    assert book.grant("b", 11.0) is None
    book.enrol("a", EnrolRequest("1", "boot", 1, 1, held=(), start=5), 11.5)  # a late copy
    assert book.grant("b", 11.5) is None
    book.enrol("a", EnrolRequest("1", "boot", 1, 1, held=(), start=6), 12.0)
    assert book.grant("b", 12.0) is not None
