"""A fixed part of the campaign of `make faults`: what fails leaks nothing, runs nothing twice, hurts no neighbour.

One campaign in a process of its own runs them all; each test looks at one verdict.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.faults.campaign import Trace, choose_faults, is_usual, plan_faults, summarize
from tests.faults.case import Verdict
from tests.faults.representative import FOUND, REPRESENTATIVE
from tests.faults.strike import CALL_KINDS, Fault, Kind
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


def test_a_pair_counts_once_and_only_if_it_fired() -> None:
    verdicts = [
        Verdict("a error", fired="main"),
        Verdict("a error (agent starts)", fired="main"),
        Verdict("b error"),
        Verdict("c error", fired="thread", leaks=["netns: x", "links: x"], doubles=["twice"], hurt=["gone"]),
    ]
    assert summarize(verdicts) == "faults: 2 injected, 1 leaks, 1 double runs, 1 neighbours hurt"
    assert [verdict.good for verdict in verdicts] == [True, True, False, False]
