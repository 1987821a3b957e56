"""What a storm on the control planes came to: every job's one end, as job, machine, and the job's own marks tell it.

Reads the rows once, then judges purely: a sentence for each thing that may not be. Called by test_control_storm.py.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nimbus.model.lease import TERMINAL
from tests.acceptance.controlload import Load, Planned
from tests.acceptance.controlstorm import Site

Row = dict[str, Any]
_JOBS = """SELECT json_agg(j) FROM
    (SELECT job_id, org_id, idempotency_key, state, conclusion, priority FROM jobs) j"""
_MACHINES = """SELECT json_agg(m) FROM
    (SELECT machine_id, job_id, state, exit_code, runner_name, runner_id, deadline FROM machines) m"""
_MACHINE_STEPS = """SELECT json_agg(s) FROM
    (SELECT e.machine_id, m.job_id, e.event, e.state_from, e.state_to, e.fence, e.told_by, e.cause,
         extract(epoch FROM e.at)::float8 AS at
     FROM machine_events e JOIN machines m USING (machine_id) ORDER BY e.event_id) s"""
_JOB_STEPS = """SELECT json_agg(s) FROM
    (SELECT job_id, state_from, state_to, conclusion FROM job_events ORDER BY event_id) s"""


@dataclass(frozen=True)
class Story:
    """One job as everybody tells it."""

    plan: Planned
    jobs: Sequence[Row]
    machines: Sequence[Row]
    machine_steps: Sequence[Row]
    job_steps: Sequence[Row]
    marks: Sequence[str]


@dataclass
class Found:
    """What was left when every job had ended."""

    stories: list[Story]
    strangers: list[Row]  # jobs that nobody ordered
    held: list[Row]  # machines with a lease or a registration

    @property
    def steps(self) -> Counter[str]:
        return Counter(step["event"] for story in self.stories for step in story.machine_steps)

    def waits_s(self) -> list[float]:
        """From each job's first place in the queue to its first lease, the shortest first."""
        waits = []
        for story in self.stories:
            at = {step["event"]: step["at"] for step in reversed(story.machine_steps)}
            if "lease" in at:
                waits.append(at["lease"] - at["queue"])
        return sorted(waits)


def gather(site: Site, load: Load) -> Found:
    """All rows, sorted by job."""
    by_key: dict[str, list[Row]] = defaultdict(list)
    for job in site.ask_database(_JOBS):
        by_key[str(job["idempotency_key"])].append(job)
    machines, machine_steps, job_steps = (
        _by_job(site.ask_database(query)) for query in (_MACHINES, _MACHINE_STEPS, _JOB_STEPS)
    )
    stories = []
    for plan in load.plans:
        jobs = by_key.pop(plan.key, [])
        job_id = load.job_ids[plan.number]
        marks = load.marks / str(plan.number)
        lines = marks.read_text().split() if marks.exists() else []
        stories.append(Story(plan, jobs, machines[job_id], machine_steps[job_id], job_steps[job_id], lines))
    held = [
        row for rows in machines.values() for row in rows if row["deadline"] or row["runner_name"] or row["runner_id"]
    ]
    return Found(stories, [job for jobs in by_key.values() for job in jobs], held)


def _by_job(rows: Sequence[Row]) -> dict[int, list[Row]]:
    found: dict[int, list[Row]] = defaultdict(list)
    for row in rows:
        found[row["job_id"]].append(row)
    return found


def judge(found: Found) -> list[str]:
    """Everything that is not as it must be."""
    wrong = [f"nobody ordered {job}" for job in found.strangers] + [f"still held: {row}" for row in found.held]
    for story in found.stories:
        wrong += [f"{story.plan}: {what}: {_show(story)}" for what in _judge_story(story)]
    return wrong


def _judge_story(story: Story) -> list[str]:
    if len(story.jobs) != 1 or len(story.machines) != 1:
        return [f"{len(story.jobs)} jobs and {len(story.machines)} machine requests"]
    return [*_judge_end(story), *_judge_fences(story.machine_steps), *_judge_job(story), *_judge_marks(story)]


def _judge_end(story: Story) -> list[str]:
    [job], [machine], plan = story.jobs, story.machines, story.plan
    wrong = []
    if (job["state"], job["conclusion"]) != ("completed", plan.conclusion):
        wrong.append(f"it is {job['state']} {job['conclusion']}")
    if (job["org_id"], job["priority"]) != (plan.org, plan.priority):
        wrong.append(f"it is of org {job['org_id']} with priority {job['priority']}")
    if plan.cancelled_after_s is None and machine["exit_code"] != plan.exit_code:
        wrong.append(f"exit status {machine['exit_code']}")
    return wrong


def _judge_fences(steps: Sequence[Row]) -> list[str]:
    """One grant for each fence, one end for each grant, one end of all."""
    wrong = []
    grants = [step["fence"] for step in steps if step["event"] == "lease"]
    ends = [step for step in steps if step["state_to"] in TERMINAL]
    given_back = [step["fence"] for step in steps if step["event"] == "expire"]
    if grants != list(range(1, len(grants) + 1)):
        wrong.append(f"grants under fences {grants}")
    if len(ends) != 1 or steps[-1] is not ends[0]:
        wrong.append(f"{len(ends)} ends")
    if given_back not in (grants[:-1], grants):  # the last is given back where it was cancelled in the queue then
        wrong.append(f"fences {given_back} of {grants} came to nothing")
    if any(before["fence"] > after["fence"] for before, after in itertools.pairwise(steps)):
        wrong.append("fences do not only grow")
    return wrong


def _judge_job(story: Story) -> list[str]:
    """Its events tell the same as its machine's."""
    wrong = []
    ends = [step for step in story.job_steps if step["state_to"] == "completed"]
    if len(ends) != 1 or story.job_steps[-1] is not ends[0] or ends[0]["conclusion"] != story.plan.conclusion:
        wrong.append(f"the job's ends are {ends}")
    if any(before["state_to"] != after["state_from"] for before, after in itertools.pairwise(story.job_steps)):
        wrong.append("its events do not follow from each other")
    starts = sum(step["event"] == "start" for step in story.machine_steps)
    begun = sum(step["state_to"] == "in_progress" for step in story.job_steps)
    if starts != begun:
        wrong.append(f"its machine started {starts} times and the job began {begun} times")
    return wrong


def _judge_marks(story: Story) -> list[str]:
    """What the job itself wrote: no plane's death makes it run twice, because one of two is always there."""
    begun, ended = story.marks.count("begun"), story.marks.count("ended")
    if story.plan.cancelled_after_s is not None:
        return [] if begun <= 1 and ended == 0 else [f"cancelled, it began {begun} times and ended {ended} times"]
    return [] if begun == ended == 1 else [f"it began {begun} times and ended {ended} times"]


def _show(story: Story) -> str:
    steps = story.machine_steps
    words = [
        f"+{s['at'] - steps[0]['at']:.1f} {s['event']}#{s['fence']} {s['told_by']} {s['cause'] or ''}" for s in steps
    ]
    return "; ".join(words)


def describe(found: Found, load: Load) -> str:
    """The figures, for whoever reads the test's output."""
    waits = found.waits_s()
    again = [step["cause"] for story in found.stories for step in story.machine_steps if step["event"] == "expire"]
    ends = Counter(story.plan.conclusion for story in found.stories)
    return (
        f"{len(found.stories)} jobs: {dict(ends)}; leases {found.steps['lease']}, of which came to nothing {len(again)}"
        f" {dict(Counter(again))}; wait p50 {waits[len(waits) // 2]:.2f} s, p99 {waits[len(waits) * 99 // 100]:.2f} s;"
        f" answers {dict(sorted(load.answers.items()))}"
    )
