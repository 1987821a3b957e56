"""What a storm came to: every job's one end, every fence's reason, every run that the witness saw. Pure.

A job that needed a second fence must have a reason that the storm knows of: its machine was not up when its agent
died, or its holder could not renew for longer than a lease lasts. Anything else is a bug. Called by storm.py.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from nimbus.model.lease import TERMINAL, LeasePolicy
from tests.faults.marks import Run, find_fence, to_beats
from tests.faults.witness import find_double_runs
from tests.faults.workload import JobPlan

Json = dict[str, Any]
PLANE = "control plane"
REPLY_S = 1.0  # of a busy machine
RETRY_S = 3.0  # a renewal that failed is tried again after this at the latest, whoever came back in between

BEFORE_ITS_START = "its agent died before the job had begun"
BEFORE_ITS_RECORD = "its agent died between the grant and the record"
BEFORE_ITS_REPLY = "the control plane died between the grant and its reply"
AGENT_AWAY = "its agent was away for longer than a lease lasts"
PLANE_AWAY = "the control plane was away for longer than a lease lasts"
ONE_AWAY = "one or the other was away for longer than a lease lasts"
_AWAY = frozenset({AGENT_AWAY, PLANE_AWAY, ONE_AWAY})


@dataclass(frozen=True)
class Outage:
    """From the SIGKILL of a process until the next one was ready, in Unix seconds."""

    name: str
    from_s: float
    to_s: float


@dataclass(frozen=True)
class Evidence:
    """All that was seen, by whom it was seen."""

    plans: Sequence[JobPlan]
    jobs: Mapping[int, Json]  # by the plan's number: the API's view at the end
    steps: Sequence[Json]  # the trace, each with its cause
    runs: Mapping[int, Sequence[Run]]
    outages: Sequence[Outage]
    outputs: Mapping[int, Mapping[int, Sequence[str]]]  # by job and fence, as the pipeline has it
    ttl_s: float


@dataclass
class Reckoning:
    """The verdict. `wrong` holds a sentence for each thing that may not be; no sentence, no fault."""

    wrong: list[str] = field(default_factory=list)
    lost: list[int] = field(default_factory=list)  # jobs without one accepted end, or with another than theirs
    doubles: list[str] = field(default_factory=list)
    endings: Counter[str] = field(default_factory=Counter)
    attempts: Counter[int] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)  # of each fence beyond the first
    silences_s: list[float] = field(default_factory=list)  # of those that nobody could renew
    run_again: Counter[str] = field(default_factory=Counter)  # runs that came to their end, which nobody heard in time
    whole_outputs: int = 0


def reckon(seen: Evidence) -> Reckoning:
    """Judge all of it."""
    told = Reckoning()
    by_machine: dict[int, list[Json]] = defaultdict(list)
    for step in seen.steps:
        by_machine[step["machine_id"]].append(step)
    for plan in seen.plans:
        job = seen.jobs.get(plan.number, {})
        machines = job.get("machines", [])
        if len(machines) != 1:
            told.lost.append(plan.number)
            told.wrong.append(f"job {plan.number} has {len(machines)} machine requests")
            continue
        steps = by_machine[machines[0]["machine_id"]]
        _judge_end(told, plan, job, steps)
        reasons = _explain_fences(told, seen, plan, steps)
        _judge_runs(told, seen, plan, steps, reasons)
        _judge_output(told, seen, plan)
    return told


def _judge_end(told: Reckoning, plan: JobPlan, job: Json, steps: Sequence[Json]) -> None:
    """One accepted end, of the newest fence, and the one that the job's own doing asks for."""
    machine = job["machines"][0]
    told.endings[str(job.get("conclusion") or job["state"])] += 1
    told.attempts[machine["fence"]] += 1
    wrong = []
    ends = [step for step in steps if step["state_to"] in TERMINAL]
    fences = [step["fence"] for step in steps if step["event"] == "lease"]
    if len(ends) != 1 or steps[-1] is not ends[0]:
        wrong.append(f"{len(ends)} accepted ends: {_show(steps)}")
    if fences != list(range(1, len(fences) + 1)) or any(a["fence"] > b["fence"] for a, b in itertools.pairwise(steps)):
        wrong.append(f"fences do not only grow: {_show(steps)}")
    if job.get("conclusion") != plan.conclusion:
        wrong.append(f"ended {job['state']} {job.get('conclusion')} ({job.get('cause')}), not {plan.conclusion}")
    elif plan.ends_by_itself and machine["exit_code"] != plan.exit_code:
        wrong.append(f"exit {machine['exit_code']}, not {plan.exit_code}")
    if wrong:
        told.lost.append(plan.number)
        told.wrong += [f"job {plan.number}: {what}" for what in wrong]


def _explain_fences(told: Reckoning, seen: Evidence, plan: JobPlan, steps: Sequence[Json]) -> dict[int, str]:
    """Why each fence but the last was not the last."""
    reasons: dict[int, str] = {}
    for end in (step for step in steps if step["event"] == "expire"):
        own = [step for step in steps if step["fence"] == end["fence"]]
        reason = _find_reason(seen, own)
        if reason in _AWAY:
            told.silences_s.append(_longest_silence_s(seen, own, {PLANE, own[0]["agent_id"]}))
        if reason is None:
            told.wrong.append(f"job {plan.number} was run again without need: {_show(own)}")
        told.reasons[reason or "NO REASON"] += 1
        reasons[end["fence"]] = reason or ""
    return reasons


def _find_reason(seen: Evidence, own: Sequence[Json]) -> str | None:
    granted, end = own[0], own[-1]
    started = any(step["event"] == "start" for step in own)
    agent = granted["agent_id"]
    deaths = [out for out in seen.outages if out.name == agent and _within(out.from_s, granted, end)]
    if not started and deaths and end["told_by"] != "clock":  # its next life told it, at once
        return BEFORE_ITS_RECORD if end["told_by"] == "enrolment" else BEFORE_ITS_START
    for names, reason in (({agent}, AGENT_AWAY), ({PLANE}, PLANE_AWAY), ({agent, PLANE}, ONE_AWAY)):
        if _longest_silence_s(seen, own, names) >= _least_silence_s(seen.ttl_s):
            return reason
    if not started and end["told_by"] == "clock" and _died_at(seen, PLANE, granted):
        return BEFORE_ITS_REPLY
    return None


def _died_at(seen: Evidence, name: str, step: Json) -> bool:
    """Whether this process was killed in the moment of this step."""
    return any(0 <= out.from_s - step["at_ms"] / 1000 <= REPLY_S for out in seen.outages if out.name == name)


def _within(at_s: float, granted: Json, end: Json) -> bool:
    return bool(granted["at_ms"] / 1000 - RETRY_S <= at_s <= end["at_ms"] / 1000)


def _least_silence_s(ttl_s: float) -> float:
    """The last renewal before an outage may be as old as the pause between two, and one more on its way then."""
    policy = LeasePolicy(ttl_s=ttl_s)
    return ttl_s - policy.margin_of(ttl_s) - ttl_s / 3 - REPLY_S


def _longest_silence_s(seen: Evidence, own: Sequence[Json], names: Set[str]) -> float:
    """How long these were not all there under this fence, without a moment for a renewal in between."""
    first_s, last_s = own[0]["at_ms"] / 1000, own[-1]["at_ms"] / 1000
    mine = sorted(
        (max(out.from_s, first_s), min(out.to_s, last_s))
        for out in seen.outages
        if out.name in names and out.from_s < last_s and out.to_s > first_s
    )
    longest_s, start_s, until_s = 0.0, 0.0, float("-inf")
    for from_s, to_s in mine:
        if from_s > until_s + RETRY_S:
            start_s = from_s
        until_s = max(until_s, to_s)
        longest_s = max(longest_s, until_s - start_s)
    return longest_s


def _judge_runs(
    told: Reckoning, seen: Evidence, plan: JobPlan, steps: Sequence[Json], reasons: Mapping[int, str]
) -> None:
    """What the witness saw: one run at a time, each under a fence of its own, and one end."""
    runs = seen.runs.get(plan.number, ())
    granted_ms = {step["fence"]: step["at_ms"] for step in steps if step["event"] == "lease"}
    told.doubles += [f"job {plan.number}: {what}" for what in find_double_runs(to_beats(runs, granted_ms))]
    told.wrong += [f"job {plan.number} ran before any grant" for run in runs if not find_fence(run, granted_ms)]
    ended = [run for run in runs if run.ended]
    if not plan.ends_by_itself:
        told.wrong += [f"job {plan.number} came to its own end and should not have"] if ended else []
    elif not ended or ended[-1] is not runs[-1]:
        told.wrong.append(f"job {plan.number} is {plan.conclusion} without having come to its end: {_show(steps)}")
    elif len(ended) > 1 and all(reasons[find_fence(run, granted_ms)] in _AWAY for run in ended[:-1]):
        told.run_again += Counter(reasons[find_fence(run, granted_ms)] for run in ended[:-1])
    elif len(ended) > 1:
        told.wrong.append(f"job {plan.number} came to its end {len(ended)} times: {_show(steps)}")


def _judge_output(told: Reckoning, seen: Evidence, plan: JobPlan) -> None:
    """Whole where the job came to its end; of a run that was ended by others, its beginning without a gap."""
    if not plan.talks or plan.number not in seen.outputs:
        return
    outputs = seen.outputs[plan.number]
    for fence, output in outputs.items():
        whole = plan.ends_by_itself and fence == max(outputs)
        if list(output) != (plan.output if whole else plan.output[: len(output)]):
            told.wrong.append(f"job {plan.number} under fence {fence}: {describe_difference(output, plan)}")
        elif whole:
            told.whole_outputs += 1


def describe_difference(output: Sequence[str], plan: JobPlan) -> str:
    """Pure: what is missing, what is there twice, in few words."""
    missing = [line for line in plan.output if line not in output]
    twice = [line for line, count in Counter(output).items() if count > 1]
    strange = [line for line in output if line not in plan.output]
    odd = f"missing {missing[:5]}, twice {twice[:5]}, strange {strange[:5]}"
    return f"{len(output)} of {len(plan.output)} lines stored, {odd}"


def render_vm_lines(seen: Evidence) -> list[Json]:
    """Pure: the witness's word as the model reads it: a VM lived at least as long as its job beat."""
    lines = []
    for plan in seen.plans:
        machines = seen.jobs.get(plan.number, {}).get("machines", [])
        grants = [step for step in seen.steps if machines and step["machine_id"] == machines[0]["machine_id"]]
        leases = {step["fence"]: step for step in grants if step["event"] == "lease"}
        for run in seen.runs.get(plan.number, ()):
            fence = find_fence(run, {number: step["at_ms"] for number, step in leases.items()})
            for event, at_ns in (("vm_started", run.first_ns), ("vm_dead", run.last_ns)):
                if fence:
                    own = {"machine_id": leases[fence]["machine_id"], "agent_id": leases[fence]["agent_id"]}
                    lines.append({"event": event, "fence": fence, "at_ms": at_ns // 1_000_000, **own})
    return lines


def _show(steps: Sequence[Json]) -> str:
    """A machine request's story in one line."""
    began = steps[0]["at_ms"] if steps else 0
    words = [
        f"+{(s['at_ms'] - began) / 1000:.1f} {s['event']}#{s['fence']} {s['agent_id'] or ''} by {s['told_by']}"
        + (f" ({s['cause']})" if s.get("cause") else "")
        for s in steps
    ]
    return "; ".join(words)
