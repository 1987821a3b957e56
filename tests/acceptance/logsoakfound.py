"""How big a log soak is, what it left, and whether that is as it must be. Judges and renders; acts on nothing.

Called by logsoak.py and test_log_soak.py.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from tests.acceptance.logsoakfollow import Follower
from tests.acceptance.logsoaklines import Printed
from tests.acceptance.logsoakrelay import FAULTS
from tests.acceptance.logsoaksite import FAILED_INSERTS, REPEATED, STORED
from tests.acceptance.logsoakverdict import JobCheck

RSS_MAX_MIB = {"agent": 400, "pipeline": 1000}  # ten jobs' shippers, and the service; the engine has a limit of its own


@dataclass(frozen=True)
class SoakPlan:
    """How much, how often, how long."""

    lines: int
    jobs: int
    agents: int
    kills: int  # of each kind, at least
    seconds: float  # of killing, at least
    seed: int
    followers: int

    def printed(self) -> tuple[Printed, ...]:
        each, more = divmod(self.lines, self.jobs)
        return tuple(Printed(self.seed, 1 + number, each + (number < more)) for number in range(self.jobs))

    def wanted(self) -> dict[str, int]:
        """Kills by kind. An agent's death is an extra: it may be rarer."""
        return {"service": self.kills, "engine": self.kills, "agent": max(2, self.kills // 4)} | dict.fromkeys(
            FAULTS, self.kills
        )


@dataclass(frozen=True)
class Kill:
    """One of them, and what had been printed by then."""

    kind: str
    at_s: float
    lines: int


@dataclass
class Found:
    """What the soak left."""

    plan: SoakPlan
    kills: list[Kill] = field(default_factory=list)
    checks: list[JobCheck] = field(default_factory=list)
    followers: list[Follower] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)  # of processes and answers, and what took too long
    rows: dict[str, int] = field(default_factory=dict)
    counters: dict[str, int] = field(default_factory=dict)
    rss_mib: dict[str, int] = field(default_factory=dict)
    killing_s: float = 0.0
    took_s: float = 0.0

    @property
    def struck(self) -> Counter[str]:
        """Kills by kind, of those while lines were being printed."""
        return Counter(kill.kind for kill in self.kills if 0 < kill.lines < self.plan.lines)


def judge(found: Found) -> list[str]:
    """Everything that is not as it must be."""
    wrong = list(found.faults)
    for kind, wanted in found.plan.wanted().items():
        if found.struck[kind] < wanted:
            wrong.append(f"{kind} befell it {found.struck[kind]} times while lines were printed, not {wanted}")
    for check in (*found.checks, *(follower.check for follower in found.followers)):
        wrong += check.close()
    pages = [check for check in found.checks if check.reader == "pages"]
    if sum(check.rows for check in pages) != found.rows.get("table"):
        wrong.append(f"the table holds {found.rows.get('table')} rows, the pages {sum(check.rows for check in pages)}")
    for follower in found.followers:
        wrong += follower.faults
        if not follower.ended:
            wrong.append(f"{follower.path} was not told that it is complete")
    for kind, most in RSS_MAX_MIB.items():
        if found.rss_mib.get(kind, 0) > most:
            wrong.append(f"a process of kind {kind} grew to {found.rss_mib[kind]} MiB, above {most}")
    return wrong


def describe(found: Found) -> str:
    """The table of what was seen."""
    by_reader: dict[str, list[JobCheck]] = {}
    for check in (*found.checks, *(follower.check for follower in found.followers)):
        by_reader.setdefault(check.reader, []).append(check)
    delays = sorted(delay for follower in found.followers for delay in follower.delays_ms)
    told = [
        ("lines printed", f"{found.plan.lines} by {found.plan.jobs} jobs in {found.plan.agents} processes"),
        *(
            (f"lines seen, {reader}", f"{sum(c.lines for c in checks)} of {len(checks)} jobs in {sum(c.rows for c in checks)} rows, {sum(c.cuts for c in checks)} told in two")  # noqa: E501
            for reader, checks in by_reader.items()
        ),
        *((f"kills, {kind}", f"{found.struck[kind]}") for kind in found.plan.wanted()),
        ("killing, all", f"{found.killing_s:.0f} s, {found.took_s:.0f} s"),
        ("rows stored", f"about {found.counters.get(STORED, 0)}"),
        ("repeats dropped", f"at least {found.counters.get(REPEATED, 0)}"),
        ("inserts not certain", f"at least {found.counters.get(FAILED_INSERTS, 0)}"),
        ("followers' connections", f"{sum(f.connections for f in found.followers)}, resyncs {sum(f.resyncs for f in found.followers)}"),  # noqa: E501
        ("highest memory", ", ".join(f"{kind} {mib} MiB" for kind, mib in sorted(found.rss_mib.items()))),
    ]  # fmt: skip
    if delays:
        p50, p99 = delays[len(delays) // 2], delays[len(delays) * 99 // 100]
        told.append(("from spool to follower", f"p50 {p50} ms, p99 {p99} ms, outages included"))
    return "\n".join(f"{name:24} {value}" for name, value in told)
