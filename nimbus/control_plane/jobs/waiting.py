"""Why a job waits: a code for programs, and one sentence that names who must act. The first reason that applies.

What is told of an org is told to its own callers only: the words hold nothing of another org but how many of all
others' machines go first, and of hosts no more than that none would do, or which one makes room. Decides nothing:
demand.py and leases.py do. Called by jobs.py, jobwait.py and orgs.py.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from nimbus.control_plane.services import JobRules
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


class WaitCode(enum.StrEnum):
    """What keeps a job, for programs. The sentence beside it is for people and may change."""

    GATE = "gate"  # the protection rules of its environment
    LABELS = "labels"  # they cannot be served
    GIVEN_UP = "given_up"  # GitHub has failed it by now
    GITHUB = "github"  # it refuses us something
    NOT_INSTALLED = "not_installed"  # the GitHub App
    RATE_LIMIT = "rate_limit"  # its org asks for too many jobs at once
    RUNNERS_TAKEN = "runners_taken"  # by jobs of other labels
    DEMAND = "demand"  # a machine is about to be asked for
    STARTING = "starting"  # its machine is
    ASSIGNMENT = "assignment"  # its runner is registered, and GitHub must assign it
    PAUSED = "paused"  # nothing is granted for now
    BARRED = "barred"  # a limit of its org below what it needs: no machine's end makes room
    CAP = "cap"  # its org holds, or will hold before its turn, what it may
    NO_HOST = "no_host"  # none would take it
    HOSTS_HELD = "hosts_held"  # those that would are cordoned, drained or too old
    MAKING_ROOM = "making_room"  # a host takes nothing else until it has room for it
    TURN = "turn"  # a free host, when its turn comes


_Reason = tuple[WaitCode, str]


@dataclass(frozen=True)
class Wait:
    """Why one job waits, and where it stands in the queue; None where its machine does not stand there."""

    code: WaitCode
    words: str
    place: int | None = None  # in its org's queue, from 1
    length: int | None = None  # of that
    ahead: int | None = None  # machines of the whole queue that go before it


@dataclass(frozen=True)
class Host:
    """What a kind of host gives. `labels` None: its agent has not asked for work yet; empty: it takes any."""

    arch: str
    labels: frozenset[str] | None
    cpus: int
    mem_mib: int
    held: bool = False  # it is granted nothing: cordoned, or it drains
    barred: bool = False  # neither: its release is too old


def parse_host(row: Row) -> Host:
    """Pure: a host from its row."""
    labels = None if row["labels"] is None else frozenset(row["labels"])
    return Host(row["arch"], labels, row["cpus"], row["mem_mib"], row["held"], row["barred"])


async def explain_waiting(transaction: Transaction, job_ids: Sequence[int], rules: JobRules) -> Mapping[int, Wait]:
    """The reason for each of these jobs that waits; the others are left out."""
    if not job_ids:
        return {}
    hosts = [parse_host(row) for row in await transaction.fetch(_SQL["known_hosts"], KNOWN_S)]
    return {row["job_id"]: judge_wait(row, hosts, rules) for row in await find_facts(transaction, job_ids)}


async def find_facts(transaction: Transaction, job_ids: Sequence[int]) -> Sequence[Row]:
    """What may keep each of these jobs; none of one that does not wait."""
    return await transaction.fetch(_SQL["waiting_facts"], list(job_ids))


def judge_wait(row: Row, hosts: Iterable[Host], rules: JobRules) -> Wait:
    """Pure: what the job waits for."""
    found = _find_obstacle(row) or _find_step(row, rules) or _find_shortage(row, list(hosts)) or _tell_turn(row)
    return Wait(*found, row["place"], row["length"], row["ahead"])


def _find_obstacle(row: Row) -> _Reason | None:
    """What no host of ours could help with."""
    if row["state"] == JobState.WAITING:
        return WaitCode.GATE, _AT_A_GATE
    if row["refusal"] is not None:
        return WaitCode.LABELS, f"the author of its workflow, who must change its labels: {row['refusal']}"
    if row["given_up"]:
        return WaitCode.GIVEN_UP, _GIVEN_UP
    if row["problem"] is not None:
        words = explain_problem(row["problem"], row["login"], row["problem_scope"], row["retry_at"])
        return WaitCode.GITHUB, words
    if row["unserved"]:
        return WaitCode.NOT_INSTALLED, explain(ProblemKind.NOT_INSTALLED, row["login"])
    return None


def _find_step(row: Row, rules: JobRules) -> _Reason | None:
    """Where its machine stands, unless that is the queue."""
    if row["machine_state"] is None:
        return _explain_missing(row, rules)
    if row["machine_state"] == MachineState.LEASED:
        return WaitCode.STARTING, "nobody: its machine is starting"
    if row["machine_state"] == MachineState.RUNNING:
        return WaitCode.ASSIGNMENT, "GitHub, which has a runner for it, to assign it"
    return None


def _find_shortage(row: Row, hosts: list[Host]) -> _Reason | None:
    """What keeps a machine in the queue beside whose turn it is."""
    shape = parse_shape(Fields(row["shape"], "stored shape"))
    bar = _find_bar(row, shape)
    if bar is not None:
        return WaitCode.BARRED, bar
    if row["paused_until"] is not None:
        until = f"{row['paused_until']:%H:%M:%S} UTC"
        return WaitCode.PAUSED, f"nobody: nothing is granted until {until}, because the database or its clock changed"
    lack = find_lack(row, shape, hosts)
    if lack is not None:
        return WaitCode.NO_HOST, lack
    hold = _find_hold(select_fitting(row, shape, hosts))
    if hold is not None:
        return WaitCode.HOSTS_HELD, hold
    cap = _find_cap(row, shape)
    return None if cap is None else (WaitCode.CAP, cap)


def explain_problem(kind: str, login: str, scope: str, retry_at: datetime | None) -> str:
    """Pure: what GitHub refuses, who must act, and when it is tried again."""
    words = explain(ProblemKind(kind), login, scope or None)
    return words if retry_at is None else f"{words} (tried again at {retry_at:%H:%M:%S} UTC)"


def _explain_missing(row: Row, rules: JobRules) -> _Reason:
    """No machine stands for it."""
    if row["limited_until"] is not None:
        often = f"{row['login']} asks for more than {rules.rate_limit} jobs in {rules.rate_interval_s:g} s"
        return WaitCode.RATE_LIMIT, f"{often}: its turn comes at {row['limited_until']:%H:%M:%S} UTC"
    if row["wasted"] and row["wasted"] > rules.stolen_limit * row["robbed_jobs"]:
        words = (
            f"the authors of other workflows of {row['login']}, whose jobs took {row['wasted']} runners of its labels "
            "within an hour: they must ask for labels of their own, and no more are made for now (NIMBUS_STOLEN_LIMIT)"
        )
        return WaitCode.RUNNERS_TAKEN, words
    # at once, or when no late event can tell any more that one served it
    return WaitCode.DEMAND, "nobody: a machine is asked for soon"


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
    if row["held_back"]:
        return f"{login} will hold all that it may before its turn: {_tell_place(row)}; {ends}"
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
    if not select_fitting(row, shape, offering):
        return f"the operator: no host that may take it has {shape.cpus} CPUs and {shape.mem_mib} MiB of memory"
    return None


def select_fitting(row: Row, shape: Shape, hosts: Iterable[Host]) -> list[Host]:
    """Pure: the hosts that could take the machine if they were free."""
    wanted = frozenset() if row["machine_kind"] == MachineKind.COMMAND else frozenset(row["host_labels"])
    return [
        host
        for host in hosts
        if host.arch == row["arch"]
        and (not host.labels or wanted <= host.labels)
        and host.cpus >= shape.cpus
        and host.mem_mib >= shape.mem_mib
    ]


def _find_hold(fitting: list[Host]) -> str | None:
    """Why none of them is granted anything."""
    if not fitting or any(not host.held and not host.barred for host in fitting):
        return None
    every = "the operator: every host that may take it"
    if all(host.barred for host in fitting):
        return f"{every} runs a release that is too old (NIMBUS_AGENT_MIN_VERSION): one must be upgraded"
    old = " or runs a release that is too old" if any(host.barred for host in fitting) else ""
    return f"{every} is cordoned or drains{old}: one must be given back (nimbus hosts uncordon)"


def _tell_turn(row: Row) -> _Reason:
    if row["reserved_for"] is not None:
        words = f"room on host {row['reserved_for']}, which takes nothing else until it has enough"
        return WaitCode.MAKING_ROOM, f"{words}: {_tell_place(row)}"
    others = max(0, row["ahead"] - (row["place"] - 1))
    before = f", and {others} of other organisations go first" if others else ""
    return WaitCode.TURN, f"a free host: {_tell_place(row)}{before}"


def _tell_place(row: Row) -> str:
    return f"place {row['place']} of {row['length']} in the queue of {row['login']}"
