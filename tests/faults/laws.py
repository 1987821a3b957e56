"""What must hold in every story of the lease machine, judged from what the control plane, the witness and hosts say.

Pure: values in, one sentence for each crime out. A lease may end without its job's own exit only where the story has
an excuse for it: a killed VM, a purge, an agent that was told to tear down, a boot that lost its agent, or a silence
longer than a lease bears. Called by world.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from nimbus.model.vm import Ending
from tests.faults.leasebook import FINISHED
from tests.faults.witness import Beat, find_double_runs

Json = dict[str, Any]
OWN = (Ending.DONE, Ending.FAILED)  # the job's own exits, as a gate can tell them
SLACK_S = 0.7  # between what the control plane hears and what an agent then does
AGENT_LEFT, AGENT_TORE_DOWN, VM_KILLED, PURGED, CUT = "left", "tore down", "vm killed", "purged", "cut"


@dataclass(frozen=True)
class Trouble:
    """What the story did to a host, or to one lease of it (machine 0: to all)."""

    kind: str
    at: float
    agent: str
    machine: int = 0
    fence: int = 0
    until: float = 0.0  # of a cut

    def meets(self, machine: int, lease: Json) -> bool:
        """Whether it happened to this lease, while it was held."""
        if self.agent != lease["agent"] or (self.machine and (self.machine, self.fence) != (machine, lease["fence"])):
            return False
        last = self.until if self.kind == CUT else self.at
        return bool(last >= lease["granted_at"] and (not lease["how"] or self.at <= lease["ended_at"]))


@dataclass(frozen=True)
class Hindrance:
    """A time in which an agent could not renew: it was away, frozen, cut off, or the machine under it stood still."""

    agent: str  # empty: all of them
    begin: float
    end: float
    adopts: bool = False  # it ends with a new start, which renews at once


@dataclass(frozen=True)
class Patience:
    """What a lease bears, in seconds, and what an agent needs to renew once nothing hinders it."""

    holder_s: float  # from a renewal to its holder's deadline
    renews_s: float  # within so long a free agent renews
    adopts_s: float  # one that has just started


@dataclass(frozen=True)
class Evidence:
    """All that is known at one moment; `told` is what the control plane answered before the hosts were looked at."""

    told: Json
    beats: Sequence[Beat]
    living: Sequence[tuple[int, int, int]]  # machine, fence and pid of each keeper
    gates: Mapping[int, int]  # machine -> the exit that its gate tells, once it is open
    troubles: Sequence[Trouble]
    hindrances: Sequence[Hindrance]
    patience: Patience


def find_crimes(seen: Evidence) -> list[str]:
    """All of them; none in a good story."""
    found = [*seen.told["wrong"], *seen.told["clashes"], *find_double_runs(list(seen.beats))]
    for request in seen.told["requests"]:
        number = request["number"]
        living = [(fence, pid) for machine, fence, pid in seen.living if machine == number]
        if len(living) > 1:
            found.append(f"machine {number} has {len(living)} living VMs: {living}")
        for lease in request["leases"]:
            found += _judge_lease(seen, number, lease, [pid for fence, pid in living if fence == lease["fence"]])
    return found


def _judge_lease(seen: Evidence, number: int, lease: Json, living: list[int]) -> list[str]:
    who, found = f"machine {number} fence {lease['fence']}", []
    if not lease["how"]:
        return []
    if living:
        found.append(f"{who}: keeper {living[0]} lives though its lease is {lease['how']}")
    beats = [beat for beat in seen.beats if (beat.machine, beat.fence) == (number, lease["fence"])]
    if beats and not lease["heard"]:
        found.append(f"{who}: its job ran though no renewal was ever answered")
    late = [beat for beat in beats if beat.at_ns / 1e9 > lease["ended_at"]]
    if late:
        late_s = max(beat.at_ns for beat in late) / 1e9 - lease["ended_at"]
        found.append(f"{who}: its job beat {late_s:.2f} s after its lease was {lease['how']}")
    if lease["how"] == FINISHED and lease["end"]["exit_code"] is not None:
        return found + _judge_exit(seen, number, lease, who, bool(beats))
    if find_excuse(seen, number, lease) is None:
        found.append(f"{who} cost its job the run without an excuse: {lease}")
    return found


def _judge_exit(seen: Evidence, number: int, lease: Json, who: str, has_run: bool) -> list[str]:
    """The exit that is told is the one that the job had."""
    end, code = lease["end"], seen.gates.get(number)
    if code is None or not has_run:
        return [f"{who} told an exit that its job never had: {end}"]
    if end["exit_code"] != code or end["ending"] != (Ending.FAILED if code else Ending.DONE):
        return [f"{who} told {end['ending']} {end['exit_code']}, and its job exited with {code}"]
    return []


def find_excuse(seen: Evidence, number: int, lease: Json) -> str | None:
    """Why it may have ended without its job's own exit; None where nothing allows that."""
    if lease["lost"]:
        return "it was taken away"
    for trouble in seen.troubles:
        booting = not lease["running_at"] or lease["running_at"] > trouble.at
        if trouble.meets(number, lease) and (booting or trouble.kind not in (AGENT_LEFT, CUT)):
            return trouble.kind
    if not lease["heard"]:
        return "its grant never arrived"
    return "silence" if _is_silenced(seen, lease) else None


def _is_silenced(seen: Evidence, lease: Json) -> bool:
    """Whether its agent did not renew for too long, and could not: a free one that is silent loses leases for nothing.

    The first renewal needs no excuse: a grant may be old when it arrives.
    """
    first, *heard = lease["heard"]
    bears_s = seen.patience.holder_s - SLACK_S
    if first - lease["granted_at"] > bears_s:
        return True
    silences = [before for before, after in pairwise([first, *heard, lease["ended_at"]]) if after - before > bears_s]
    return bool(silences) and not _was_free(seen, lease["agent"], silences[0])


def _was_free(seen: Evidence, agent: str, since: float) -> bool:
    """Whether nothing hindered it for long enough, between a renewal and its deadline."""
    patience, free_from, needs_s = seen.patience, since, seen.patience.renews_s
    for each in sorted(seen.hindrances, key=lambda one: one.begin):
        if each.agent in ("", agent) and each.end > free_from:
            if min(each.begin, since + patience.holder_s) - free_from > needs_s:
                return True
            free_from, needs_s = each.end, patience.adopts_s if each.adopts else patience.renews_s
    return since + patience.holder_s - free_from > needs_s


def find_torn_logs(told: Json) -> list[str]:
    """Of each job that came to its own exit: every line once and in order, to the last."""
    found = []
    for request in told["requests"]:
        for lease in request["leases"]:
            if lease["how"] != FINISHED or lease["end"]["exit_code"] is None:
                continue
            rows = told["rows"].get(f"{request['number']}-{lease['fence']}", {})
            numbers = sorted(map(int, rows))
            lines = [rows[str(number)] for number in numbers]
            wanted = [*(f"stdout beat {number}" for number in range(1, len(lines) - 1)), "stdout gate", "end"]
            if lines != wanted or numbers != list(range(numbers[0], numbers[0] + len(numbers))):
                found.append(f"machine {request['number']} fence {lease['fence']}: its log is torn: {lines[-5:]}")
    return found


def count_ends(seen: Evidence) -> Counter[str]:
    """How many leases ended in which way, for people who ask what the stories were about."""
    counted: Counter[str] = Counter()
    for request in seen.told["requests"]:
        for lease in request["leases"]:
            own = lease["how"] == FINISHED and lease["end"]["exit_code"] is not None
            excuse = None if own else find_excuse(seen, request["number"], lease)
            counted["with the job's own exit" if own else f"{lease['how']} ({excuse})"] += 1
    return counted
