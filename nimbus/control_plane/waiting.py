"""Why a job waits, in one sentence that names who must act; the first reason that applies.

What is told of an org is told to its own callers only: the words hold nothing of another org, and of hosts no more
than that none would do. Decides nothing: demand.py and leases.py do. Called by jobs.py and orgs.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from nimbus.model.forge import ProblemKind, explain
from nimbus.model.job import JobState
from nimbus.model.lease import MachineState
from nimbus.model.vm import Shape
from nimbus.runtime.postgres import Row, Transaction, load_queries
from nimbus.wire.fields import Fields
from nimbus.wire.leaseapi import MachineKind
from nimbus.wire.vmjson import parse_shape

_SQL = load_queries("nimbus.control_plane", "queries", "waiting.sql")
KNOWN_S = 300.0  # a host that was not heard of for so long is not counted on
_AT_A_GATE = "the protection rules of its environment: a reviewer named there must approve it on GitHub"
_GIVEN_UP = "nothing any more: GitHub gives up a job that was queued for a day, so its author must run it again"


@dataclass(frozen=True)
class Host:
    """What a kind of host gives. `labels` None: its agent has not asked for work yet; empty: it takes any."""

    arch: str
    labels: frozenset[str] | None
    cpus: int
    mem_mib: int


async def explain_waiting(transaction: Transaction, job_ids: Sequence[int], stolen_limit: int) -> Mapping[int, str]:
    """The reason for each of these jobs that waits; the others are left out."""
    if not job_ids:
        return {}
    hosts = [
        Host(row["arch"], None if row["labels"] is None else frozenset(row["labels"]), row["cpus"], row["mem_mib"])
        for row in await transaction.fetch(_SQL["known_hosts"], KNOWN_S)
    ]
    rows = await transaction.fetch(_SQL["waiting_facts"], list(job_ids))
    return {row["job_id"]: judge_wait(row, hosts, stolen_limit) for row in rows}


def judge_wait(row: Row, hosts: Iterable[Host], stolen_limit: int) -> str:
    """Pure: what the job waits for."""
    outside = _find_obstacle(row)
    if outside is not None:
        return outside
    if row["machine_state"] is None:
        return _explain_missing(row, stolen_limit)
    if row["machine_state"] == MachineState.LEASED:
        return "nobody: its machine is starting"
    if row["machine_state"] == MachineState.RUNNING:
        return "GitHub, which has a runner for it, to assign it"
    shape = parse_shape(Fields(row["shape"], "stored shape"))
    return _find_bar(row, shape) or _find_cap(row, shape) or find_lack(row, shape, list(hosts)) or _tell_place(row)


def _find_obstacle(row: Row) -> str | None:
    """What no host of ours could help with."""
    if row["state"] == JobState.WAITING:
        return _AT_A_GATE
    if row["refusal"] is not None:
        return f"the author of its workflow, who must change its labels: {row['refusal']}"
    if row["given_up"]:
        return _GIVEN_UP
    if row["problem"] is not None:
        return explain_problem(row["problem"], row["login"], row["problem_scope"], row["retry_at"])
    return explain(ProblemKind.NOT_INSTALLED, row["login"]) if row["unserved"] else None


def explain_problem(kind: str, login: str, scope: str, retry_at: datetime | None) -> str:
    """Pure: what GitHub refuses, who must act, and when it is tried again."""
    words = explain(ProblemKind(kind), login, scope or None)
    return words if retry_at is None else f"{words} (tried again at {retry_at:%H:%M:%S} UTC)"


def _explain_missing(row: Row, stolen_limit: int) -> str:
    """No machine stands for it."""
    if row["wasted"] and row["wasted"] > stolen_limit * row["robbed_jobs"]:
        return (
            f"the authors of other workflows of {row['login']}, whose jobs took {row['wasted']} runners of its labels "
            "within an hour: they must ask for labels of their own, and no more are made for now (NIMBUS_STOLEN_LIMIT)"
        )
    return "nobody: a machine is asked for soon"  # at once, or when no late event can tell any more that one served it


def _find_bar(row: Row, shape: Shape) -> str | None:
    """A limit that no machine's end makes room below."""
    login = row["login"]
    if row["max_machines"] == 0:
        return f"the operator: {login} may have no machine now, until its limit is raised (nimbus orgs limit)"
    if row["alias_max"] == 0:
        return f"the operator: {login} may have no machine for label {row['alias']} now (nimbus orgs label set)"
    if row["max_cpus"] is not None and shape.cpus > row["max_cpus"]:
        return (
            f"its author or the operator: it needs {shape.cpus} CPUs and {login} may use {row['max_cpus']} in all, so "
            "its labels must ask for fewer or the limit must be raised (nimbus orgs limit)"
        )
    return None


def _find_cap(row: Row, shape: Shape) -> str | None:
    login, ends = row["login"], "it goes on when one ends, or the operator raises the limit (nimbus orgs limit)"
    if row["max_machines"] is not None and row["held_machines"] >= row["max_machines"]:
        return f"{login} has {row['held_machines']} machines of the {row['max_machines']} that it may have: {ends}"
    if row["max_cpus"] is not None and row["held_cpus"] + shape.cpus > row["max_cpus"]:
        return f"{login} uses {row['held_cpus']} of its {row['max_cpus']} CPUs, and this needs {shape.cpus}: {ends}"
    if row["alias_max"] is not None and row["alias_held"] >= row["alias_max"]:
        return f"{login} has {row['alias_held']} machines of the {row['alias_max']} for label {row['alias']}: {ends}"
    return None


def find_lack(row: Row, shape: Shape, hosts: list[Host]) -> str | None:
    """Pure: what no host has that the machine needs; None where one would do."""
    if not hosts:
        return "the operator: no host has been heard of lately, so one must be started (nimbus agent run)"
    of_arch = [host for host in hosts if host.arch == row["arch"]]
    if not of_arch:
        return f"the operator: no host here is {row['arch']}"
    wanted = frozenset() if row["machine_kind"] == MachineKind.COMMAND else frozenset(row["host_labels"])
    offering = [host for host in of_arch if not host.labels or wanted <= host.labels]
    if not offering:
        lacking = sorted(wanted - frozenset().union(*(host.labels or () for host in of_arch))) or sorted(wanted)
        return f"the operator: no {row['arch']} host offers {', '.join(lacking)} (NIMBUS_JOB_LABELS of its agent)"
    if not any(host.cpus >= shape.cpus and host.mem_mib >= shape.mem_mib for host in offering):
        return f"the operator: no host that may take it has {shape.cpus} CPUs and {shape.mem_mib} MiB of memory"
    return None


def _tell_place(row: Row) -> str:
    return f"a free host: place {row['place']} of {row['length']} in the queue of {row['login']}"
