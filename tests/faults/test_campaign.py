"""A fixed part of the campaign of `make faults`: what fails leaks nothing, runs nothing twice, hurts no neighbour.

One campaign in a process of its own runs them all; each test looks at one verdict.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from tests.faults.campaign import Trace, choose_faults, is_usual, plan_faults, plan_way, summarize, thin
from tests.faults.case import Verdict
from tests.faults.representative import FOUND, REPRESENTATIVE
from tests.faults.strike import BEGIN, CALL_KINDS, CLAIM, Fault, Kind
from tests.faults.ways import Way
from tests.hosts import needs_root

LIMIT_S = 900.0


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Verdict]:
    folder = tmp_path_factory.mktemp("campaign")
    argv = [sys.executable, "-m", "tests.faults.campaign", "--part", "--folder", str(folder)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    lines = [line for file in folder.glob("results*.jsonl") for line in file.read_text().splitlines()]
    found = {verdict.fault: verdict for verdict in (Verdict(**json.loads(line)) for line in lines)}
    assert found, done.stdout + done.stderr
    return found


@needs_root
@pytest.mark.root
@pytest.mark.slow
@pytest.mark.parametrize("fault", REPRESENTATIVE)
def test_a_fault_leaks_nothing_runs_nothing_twice_and_hurts_no_neighbour(
    verdicts: dict[str, Verdict], fault: str
) -> None:
    verdict = verdicts[fault]
    assert verdict.fired, "it never happened"
    assert (verdict.wrong, verdict.leaks, verdict.doubles, verdict.hurt) == ([], [], [], [])


def test_every_operation_meets_every_kind_that_it_can() -> None:
    trace = Trace(
        seen={"a.sync": 3, "a.asks": 1, "a.fails": 1},
        at_start={"a.sync": 1},
        returned=["a.sync", "a.asks"],
        is_async={"a.sync": False, "a.asks": True, "a.fails": False},
    )
    planned = [fault for fault in plan_faults(trace) if fault.operation.startswith("a.")]
    assert Fault("a.sync", Kind.HANG, nth=2) in planned
    assert Fault("a.sync", Kind.ERROR, nth=1, at_start=True) in planned
    assert {fault.kind for fault in planned if fault.operation == "a.asks"}.isdisjoint({Kind.HANG})
    assert {fault.kind for fault in planned if fault.operation == "a.fails"}.isdisjoint({Kind.PARTIAL, Kind.KILL_AFTER})


def test_faults_are_chosen_by_word_and_kind() -> None:
    faults = [Fault("a", Kind.ERROR), Fault("b", Kind.ERROR), Fault("b", Kind.DELAY), Fault("bc", Kind.ERROR)]
    assert choose_faults(faults, ["b"], [Kind.ERROR]) == [faults[1], faults[3]]
    assert choose_faults(faults, [], [Kind.DELAY]) == [faults[2]]


def test_of_all_pairs_each_operation_fails_and_every_service_and_every_old_bug_is_met() -> None:
    assert is_usual(Fault("host.nft.apply_ruleset", Kind.ERROR))
    assert all(is_usual(Fault("renew_running", kind)) for kind in Kind)
    assert all(is_usual(Fault(name, Kind(kind), at_start=bool(rest))) for name, kind, *rest in map(str.split, FOUND))
    kinds = [kind for number in range(300) for kind in CALL_KINDS if is_usual(Fault(f"an.operation{number}", kind))]
    assert set(kinds) == set(CALL_KINDS)
    assert len(kinds) < 300 * len(CALL_KINDS) * 0.7


def test_what_a_machine_of_the_pool_meets_is_struck_in_its_making_and_again_once_a_job_has_claimed_it() -> None:
    trace = Trace(
        seen={"a.starts": 1, "a.makes": 1, "a.both": 3},
        at_start={"a.starts": 1},
        returned=["a.makes", "a.both"],
        is_async=dict.fromkeys(("a.starts", "a.makes", "a.both"), False),
        at_claim={"a.starts": 1, "a.makes": 1, "a.both": 2},
    )
    planned = plan_way(trace, Way.WARM)
    moments = {(fault.operation, fault.after) for fault in planned}
    assert moments == {("a.makes", BEGIN), ("a.both", BEGIN), ("a.both", CLAIM)}
    assert str(Fault("a.both", Kind.ERROR, way=Way.WARM, after=CLAIM)) == "pool-warm a.both error (claimed)"
    assert choose_faults(planned, ["pool"], [Kind.ERROR]) == [one for one in planned if one.kind is Kind.ERROR]


def test_on_a_second_way_what_is_new_there_is_struck_as_on_the_first_and_the_rest_sparsely() -> None:
    names = [f"an.operation{number}" for number in range(300)]
    first = [Fault(name, kind) for name in names for kind in CALL_KINDS]
    second = [replace(fault, way=Way.BOOT, after=BEGIN) for fault in first]
    new = [replace(fault, operation=f"new.{fault.operation}") for fault in second]
    chosen = thin([*first, *second, *new])
    of_new = [fault for fault in chosen if fault in new]
    again = [fault for fault in chosen if fault in second]
    assert {fault.operation for fault in of_new if fault.kind is Kind.ERROR} == {f"new.{name}" for name in names}
    assert 20 < len(again) < 120
    assert len({fault.operation for fault in again}) == len(again)
    assert {fault.kind for fault in again} == set(CALL_KINDS)


def test_what_never_fails_is_only_killed_or_held_up() -> None:
    name = "host_agent.pool.reserve.Reserve.claim"
    trace = Trace(seen={name: 1}, at_start={}, returned=[name], is_async={name: False}, at_claim={name: 0})
    kinds = {fault.kind for fault in plan_way(trace, Way.WARM)}
    assert kinds == {Kind.HANG, Kind.DELAY, Kind.KILL_BEFORE, Kind.KILL_AFTER}


def test_a_pair_counts_once_and_only_if_it_fired() -> None:
    verdicts = [
        Verdict("a error", fired="main"),
        Verdict("a error (agent starts)", fired="main"),
        Verdict("b error"),
        Verdict("c error", fired="thread", leaks=["netns: x", "links: x"], doubles=["twice"], hurt=["gone"]),
    ]
    assert summarize(verdicts) == "faults: 2 injected, 1 leaks, 1 double runs, 1 neighbours hurt"
    assert [verdict.good for verdict in verdicts] == [True, True, False, False]
