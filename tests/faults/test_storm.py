"""A short storm over real processes; and its judge, which must see each thing that may not be."""

from __future__ import annotations

import random
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.faults.aftermath import render_table, summarize
from tests.faults.marks import Run, listening_witness, read_runs
from tests.faults.raging import StormOrder
from tests.faults.reckoning import AGENT_AWAY, BEFORE_ITS_START, ONE_AWAY, PLANE, PLANE_AWAY, Evidence, Outage, reckon
from tests.faults.storm import run_storm
from tests.faults.victims import plan_absences
from tests.faults.workload import JobPlan, command_of, plan_jobs
from tests.hosts import needs_root

Json = dict[str, Any]
S_NS = 1_000_000_000
TTL_S = 20.0


def step(at_s: float, event: str, fence: int, states: tuple[str | None, str], by: str | None = "agent") -> Json:
    agent = "north" if fence else None
    return {
        "id": int(at_s * 10) + 1,
        "at_ms": int(at_s * 1000),
        "machine_id": 5,
        "event": event,
        "state_from": states[0],
        "state_to": states[1],
        "fence": fence,
        "agent_id": agent,
        "told_by": by,
        "cause": None,
    }


QUEUED = step(0, "queue", 0, (None, "queued"), None)
ONCE = [
    QUEUED,
    step(1, "lease", 1, ("queued", "leased")),
    step(2, "start", 1, ("leased", "running")),
    step(6, "finish_ok", 1, ("running", "done")),
]
AGAIN = [
    QUEUED,
    step(1, "lease", 1, ("queued", "leased")),
    step(2, "start", 1, ("leased", "running")),
    step(30, "expire", 1, ("running", "queued"), "clock"),
    step(31, "lease", 2, ("queued", "leased")),
    step(32, "start", 2, ("leased", "running")),
    step(36, "finish_ok", 2, ("running", "done")),
]


def run(number: int, first_s: float, last_s: float, *, ended: bool) -> Run:
    return Run(1, number, (int(first_s * S_NS), int(last_s * S_NS)), ended)


def evidence(steps: list[Json], *runs: Run, outages: tuple[Outage, ...] = (), **job: Any) -> Evidence:
    fence = max(step["fence"] for step in steps)
    machine = {"machine_id": 5, "fence": fence, "exit_code": 0}
    row = {"job_id": 9, "state": "completed", "conclusion": "success", "cause": None, "machines": [machine], **job}
    return Evidence([JobPlan(1, 4.0)], {1: row}, steps, {1: runs}, outages, {}, TTL_S)


TALKER = JobPlan(1, 0.4, talks=True)
WELL = evidence(ONCE, run(70, 2, 5.9, ended=True))


def test_a_job_that_ran_once_to_its_end_is_good() -> None:
    told = reckon(WELL)
    assert (told.wrong, told.lost, told.doubles, dict(told.attempts)) == ([], [], [], {1: 1})


@pytest.mark.parametrize(
    ("bad", "what"),
    [
        (replace(WELL, runs={1: [run(70, 2, 5, ended=False)]}), "without having come to its end"),
        (replace(WELL, runs={}), "without having come to its end"),
        (evidence(ONCE[:-1], run(70, 2, 5.9, ended=True)), "0 accepted ends"),
        (evidence(ONCE + ONCE[-1:], run(70, 2, 5.9, ended=True)), "2 accepted ends"),
        (evidence(ONCE, run(70, 2, 5.9, ended=True), conclusion="failure"), "not success"),
        (evidence(ONCE, run(70, 0.5, 5.9, ended=True)), "before any grant"),
        (replace(WELL, jobs={}), "0 machine requests"),
        (evidence(AGAIN, run(70, 2, 20, ended=False), run(71, 32, 35, ended=True)), "run again without need"),
        (evidence(AGAIN, run(70, 2, 6, ended=True), run(71, 32, 35, ended=True)), "came to its end 2 times"),
    ],
)
def test_what_may_not_be_is_told(bad: Evidence, what: str) -> None:
    assert any(what in line for line in reckon(bad).wrong)


def test_two_runs_that_overlap_or_share_a_fence_are_double_runs() -> None:
    overlapping = evidence(AGAIN, run(70, 2, 33, ended=False), run(71, 32, 35, ended=True))
    sharing = evidence(ONCE, run(70, 2, 3, ended=False), run(71, 4, 5.9, ended=True))
    assert [len(reckon(each).doubles) for each in (overlapping, sharing)] == [1, 1]


def test_a_second_fence_is_explained_by_an_absence_longer_than_a_lease_whoever_was_away() -> None:
    runs = (run(70, 2, 6, ended=True), run(71, 32, 35, ended=True))
    for reason, outages in (
        (AGENT_AWAY, (Outage("north", 5, 29),)),
        (PLANE_AWAY, (Outage(PLANE, 5, 29),)),
        (ONE_AWAY, (Outage(PLANE, 5, 10), Outage("north", 9, 14))),
    ):
        told = reckon(evidence(AGAIN, *runs, outages=outages))
        assert (told.wrong, told.doubles, told.reasons, told.run_again) == ([], [], {reason: 1}, {reason: 1})
    elsewhere = reckon(evidence(AGAIN, *runs, outages=(Outage("south", 5, 29),)))
    assert elsewhere.wrong != []


def test_a_second_fence_is_explained_by_a_death_before_the_job_had_begun() -> None:
    steps = [QUEUED, AGAIN[1], step(3, "expire", 1, ("leased", "queued")), *AGAIN[4:]]
    told = reckon(evidence(steps, run(71, 32, 35, ended=True), outages=(Outage("north", 1.5, 2.5),)))
    assert (told.wrong, dict(told.reasons)) == ([], {BEFORE_ITS_START: 1})


@pytest.mark.parametrize(
    "outputs",
    [
        {1: ["line 0", "line 1", "line 3"]},
        {1: ["line 0", "line 1", "line 1", "line 2", "line 3"]},
        {1: ["line 0"], 2: ["line 0", "line 1"]},
        {1: ["line 0", "line 2"], 2: ["line 0", "line 1", "line 2", "line 3"]},
    ],
)
def test_a_missing_line_and_one_that_is_stored_twice_are_told(outputs: dict[int, list[str]]) -> None:
    told = reckon(replace(WELL, plans=[TALKER], outputs={1: outputs}))
    assert [line for line in told.wrong if "of 4 lines stored" in line]


def test_a_whole_output_is_good_and_so_is_the_beginning_of_a_run_that_others_ended() -> None:
    told = reckon(replace(WELL, plans=[TALKER], outputs={1: {1: TALKER.output[:2], 2: TALKER.output}}))
    assert (told.wrong, told.whole_outputs) == ([], 1)


def test_a_guest_that_knocks_is_written_down_with_its_end(tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    with listening_witness(marks) as port:
        for _ in range(2):
            with socket.create_connection(("127.0.0.1", port)) as guest:
                guest.sendall(b"7\nbeat\nend\n")
                guest.shutdown(socket.SHUT_WR)
                assert guest.recv(1) == b""
    first, second = read_runs(marks)[7]
    assert (first.ended, len(first.beats_ns)) == (True, 3)
    assert first.run != second.run


def test_the_same_seed_plans_the_same_jobs_and_absences_and_one_in_eight_outlasts_a_lease() -> None:
    plans = [plan_jobs(100, 12.0, random.Random(3)) for _ in range(2)]
    assert plans[0] == plans[1]
    assert {plan.conclusion for plan in plans[0]} == {"success", "failure", "timed_out", "cancelled"}
    absences = plan_absences(8, TTL_S, random.Random(3))
    assert (len(absences), sum(away > TTL_S for away in absences)) == (8, 1)


def test_a_deaf_job_in_a_guest_stays_deaf_and_its_status_is_its_own(tmp_path: Path) -> None:
    line = command_of(JobPlan(1, 1.0, exit_code=3, deaf=True), "qemu", tmp_path)[2]
    assert line.startswith("trap '' TERM")
    assert line.endswith("exit 3")


@needs_root
@pytest.mark.root
@pytest.mark.services
@pytest.mark.slow
def test_eight_jobs_end_once_though_two_agents_and_the_control_plane_are_killed_twice_each(tmp_path: Path) -> None:
    found = run_storm(StormOrder(jobs=8, backend="fake", every_s=2.5, kills=2, seed=2), tmp_path)
    table = "\n".join([*render_table(found), summarize(found)])
    print(f"\n{table}")  # noqa: T201 - it is the evidence
    assert found.good, table
    assert all(victim.kills >= 2 for victim in found.storm.victims)
    assert summarize(found).endswith("0 lost, 0 double runs, 0 leaks")
