"""GitHub's own list of runners against ours: machines that go on without a runner, and runners without a machine.

The third signal of a machine's death, after GitHub's event and its guest's silence. Nobody is believed at once: the
list lags behind what happens (facts, pain 8), so what it shows must stand in two lists and in a fresh look at that
one runner. Only names of this deployment are ours, and what is busy or online is never touched. forge.py sweeps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import structlog

from nimbus.control_plane.demand.poll_rules import pace
from nimbus.control_plane.duties import Duty, DutyTerms, sweep_duty
from nimbus.control_plane.github.client import Deletion
from nimbus.control_plane.orgs.problems import Place, Task, end_problem, keep_problem, meets_every_call
from nimbus.control_plane.runners.registrations import Registrar, let_machine_go, scope_of
from nimbus.control_plane.services import MACHINES
from nimbus.model.forge import ForgeTrouble
from nimbus.runtime.postgres import Row, Transaction, load_queries
from nimbus.wire.githubrest import RunnerSeen

log = structlog.get_logger()
_SQL = load_queries("nimbus.control_plane", "queries", "roster.sql")

DUTY = "runners"
STRIKES = 2
STRIKES_IN_PROGRESS = 4  # of a runner whose job runs, as we know: what ended it may still be told
RECENT_S = 6 * 3600.0  # scopes in which a machine ended since then are looked at, too
UNLISTED = "GitHub no longer lists its runner"


@dataclass(frozen=True)
class Machine:
    """One live machine whose runner ought to be in the list. `ripe`: it was registered a while ago."""

    machine_id: int
    name: str
    in_progress: bool
    ripe: bool


@dataclass(frozen=True)
class Sight:
    """One scope, looked at from both sides. What we know was read before GitHub was asked."""

    prefix: str
    now_s: float
    machines: tuple[Machine, ...]
    listed: tuple[RunnerSeen, ...]
    ended_s: Mapping[str, float] = field(default_factory=dict)  # for how long the machine behind a name is over
    live: frozenset[str] = frozenset()  # names under which a machine may be running right now, registered or not yet


@dataclass(frozen=True)
class Strikes:
    """What the earlier lists of a scope have shown: it goes from round to round in the duty's notes."""

    missing: Mapping[str, int] = field(default_factory=dict)  # how often in a row
    stray: Mapping[str, tuple[int, float]] = field(default_factory=dict)  # and since when

    def render(self) -> dict[str, Any]:
        return {"missing": dict(self.missing), "stray": {name: list(each) for name, each in self.stray.items()}}

    @classmethod
    def parse(cls, notes: Mapping[str, Any]) -> Strikes:
        stray = {name: (int(count), float(since)) for name, (count, since) in notes.get("stray", {}).items()}
        return cls({name: int(count) for name, count in notes.get("missing", {}).items()}, stray)


@dataclass(frozen=True)
class Judgement:
    """What one more list comes to, before the fresh look."""

    strikes: Strikes
    gone: tuple[Machine, ...]
    zombies: tuple[RunnerSeen, ...]


def judge_sight(sight: Sight, before: Strikes, zombie_age_s: float) -> Judgement:
    """Pure. A name that was seen again, or is no longer in question, begins anew."""
    listed = {runner.name.lower() for runner in sight.listed}
    missing: dict[str, int] = {}
    gone = []
    for machine in sight.machines:
        if not machine.ripe or machine.name in listed:
            continue
        missing[machine.name] = before.missing.get(machine.name, 0) + 1
        if missing[machine.name] >= (STRIKES_IN_PROGRESS if machine.in_progress else STRIKES):
            gone.append(machine)
    stray: dict[str, tuple[int, float]] = {}
    zombies = []
    for runner in sight.listed:
        name = runner.name.lower()
        if not is_stray(runner, sight):
            continue
        count, since_s = before.stray.get(name, (0, sight.now_s))
        stray[name] = (count + 1, since_s)
        age_s = max(sight.now_s - since_s, sight.ended_s.get(name, 0.0))
        if count + 1 >= STRIKES and age_s >= zombie_age_s:
            zombies.append(runner)
    return Judgement(Strikes(missing, stray), tuple(gone), tuple(zombies))


def is_stray(runner: RunnerSeen, sight: Sight) -> bool:
    """Ours by its name, and neither at work nor of a machine that lives."""
    name = runner.name.lower()
    return name.startswith(sight.prefix) and not runner.online and not runner.busy and name not in sight.live


# --- the sweep -----------------------------------------------------------------------------------------------------


async def check_rosters(registrar: Registrar, duty: Duty) -> None:
    """One round over every scope that has, or recently had, machines. One installation's trouble is no other's."""
    services, rules = registrar.services, registrar.rules
    scopes = await services.database.run(_scopes, max(RECENT_S, 3 * rules.zombie_age_s))
    known = duty.notes.get("scopes", {})
    notes: dict[str, Any] = {}
    refused: set[int] = set()
    for row in scopes:
        place = registrar.place(row)
        if place is None:
            continue
        key = f"{place.installation_id}/{place.owner}/{place.repo or ''}"
        notes[key] = before = dict(known.get(key, {"listed_s": 0.0}))
        if place.installation_id in refused or not _is_due(registrar, place, row, before["listed_s"]):
            continue
        await duty.keep()
        try:
            strikes = await _check_roster(registrar, duty, place, row, Strikes.parse(before))
        except ForgeTrouble as trouble:
            await keep_problem(services, place, trouble.problem)
            if meets_every_call(trouble.problem):
                refused.add(place.installation_id)
        else:
            notes[key] = {"listed_s": row["now_s"], **strikes.render()}
    duty.notes = {**duty.notes, "scopes": notes}


def _is_due(registrar: Registrar, place: Place, scope: Row, listed_s: float) -> bool:
    """Later where there is nothing but zombies to find, and those must be old; and where the quota runs low."""
    rules = registrar.rules
    slower = pace(registrar.github.quota(place.installation_id), rules.reserve)
    if slower is None:
        return False
    every_s = 0.0 if scope["live"] else rules.zombie_age_s
    if slower > 1:
        every_s = max(every_s, (slower - 0.5) * rules.sweep_s)  # rounds come a little late, never early
    return not 0 <= scope["now_s"] - listed_s < every_s  # a list that is yet to come: the clock was set back


async def _check_roster(registrar: Registrar, duty: Duty, place: Place, scope: Row, before: Strikes) -> Strikes:
    services, rules = registrar.services, registrar.rules
    ours = await services.database.run(_machines, scope["org_id"], scope["repo_id"], rules.grace_s, rules.idle_limit_s)
    listed = await registrar.github.list_runners(scope_of(place))
    await end_problem(services, place, Task.ANY)
    sight = await services.database.run(_look, ours, listed)
    judged = judge_sight(sight, before, rules.zombie_age_s)
    rows = {row["machine_id"]: row for row in ours}
    for machine in judged.gone:
        await duty.keep()
        if await registrar.github.find_runner(scope_of(place), machine.name) is None:
            await _let_go(registrar, rows[machine.machine_id])
    for zombie in judged.zombies:
        await duty.keep()
        await _remove_zombie(registrar, place, zombie, sight)
    return judged.strikes


async def _let_go(registrar: Registrar, row: Row) -> None:
    services = registrar.services
    queued = await services.database.run(let_machine_go, row, registrar.demand, UNLISTED, wasted=row["job_id"] is None)
    log.warning("runner.unlisted", machine=row["machine_id"], runner=row["runner_name"])
    services.metrics.runners_removed.labels("unlisted").inc()
    if queued:
        await services.bell.ring(MACHINES)


async def _remove_zombie(registrar: Registrar, place: Place, zombie: RunnerSeen, sight: Sight) -> None:
    """It may have woken up since the list was made; and GitHub itself refuses where it is busy."""
    fresh = await registrar.github.find_runner(scope_of(place), zombie.name)
    if fresh is None or not is_stray(fresh, sight):
        return
    if await registrar.github.delete_runner(scope_of(place), fresh.runner_id) is Deletion.DELETED:
        log.warning("runner.zombie", runner=zombie.name, scope=scope_of(place).path)
        registrar.services.metrics.runners_removed.labels("zombie").inc()


async def _scopes(transaction: Transaction, recent_s: float) -> list[Row]:
    return list(await transaction.fetch(_SQL["scopes"], recent_s))


async def _machines(
    transaction: Transaction, org_id: int, repo_id: int | None, grace_s: float, idle_limit_s: float
) -> list[Row]:
    return list(await transaction.fetch(_SQL["machines"], org_id, repo_id, grace_s, max(grace_s, idle_limit_s)))


async def _look(transaction: Transaction, ours: Sequence[Row], listed: tuple[RunnerSeen, ...]) -> Sight:
    """What the list means, by what we know of each name in it."""
    deployment = await transaction.fetchrow(_SQL["deployment"])
    assert deployment is not None  # noqa: S101 -- the migration wrote the one row
    prefix = f"nimbus-{deployment['deployment_id']}-".lower()
    names = [runner.name for runner in listed if runner.name.lower().startswith(prefix)]
    fates = await transaction.fetch(_SQL["fates"], names)
    return Sight(
        prefix,
        deployment["now_s"],
        tuple(Machine(row["machine_id"], row["runner_name"].lower(), row["in_progress"], row["ripe"]) for row in ours),
        listed,
        {row["name"].lower(): row["ended_s"] for row in fates if not row["live"]},
        frozenset(row["name"].lower() for row in fates if row["live"]),
    )


async def sweep_rosters(registrar: Registrar) -> None:
    """Look at GitHub's lists until cancelled, unless the interval is 0; one process at a time does."""
    rules = registrar.rules
    if rules.sweep_s > 0:
        await sweep_duty(
            registrar.services, DutyTerms(DUTY, rules.sweep_s, rules.duty_ttl_s), partial(check_rosters, registrar)
        )
