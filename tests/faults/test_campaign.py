"""A fixed part of the campaign of `make faults`: what fails leaks nothing, runs nothing twice, hurts no neighbour.

One campaign in a process of its own runs them all; each test looks at one verdict.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.faults.campaign import Trace, choose_faults, plan_faults, summarize
from tests.faults.case import Verdict
from tests.faults.representative import REPRESENTATIVE
from tests.faults.strike import Fault, Kind
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


def test_faults_are_chosen_by_word_kind_and_turn() -> None:
    faults = [Fault("a", Kind.ERROR), Fault("b", Kind.ERROR), Fault("b", Kind.DELAY), Fault("bc", Kind.ERROR)]
    assert choose_faults(faults, ["b"], [Kind.ERROR], 1) == [faults[1], faults[3]]
    assert choose_faults(faults, [], [Kind.ERROR], 2) == [faults[0], faults[3]]


def test_a_pair_counts_once_and_only_if_it_fired() -> None:
    verdicts = [
        Verdict("a error", fired="main"),
        Verdict("a error (agent starts)", fired="main"),
        Verdict("b error"),
        Verdict("c error", fired="thread", leaks=["netns: x", "links: x"], doubles=["twice"], hurt=["gone"]),
    ]
    assert summarize(verdicts) == "faults: 2 injected, 1 leaks, 1 double runs, 1 neighbours hurt"
    assert [verdict.good for verdict in verdicts] == [True, True, False, False]
