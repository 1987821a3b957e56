"""Runner registrations undone: when their machine ends, when no queued job needs it, when it waits in vain.

GitHub first, the machine second: GitHub alone knows whether a runner took a job a moment ago, and its refusal to
delete a busy one is respected. A runner that GitHub removed together with its job costs no call. Never registers one
(runners.py does) and never lists them (roster.py does). forge.py runs the sweeper; one process at a time undoes.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

import structlog
import trio

from nimbus.control_plane.demand.demand import DemandRules, LabelSet, balance, lock_org
from nimbus.control_plane.duties import hold_duty
from nimbus.control_plane.github.client import Deletion, GithubClient, RunnerScope
from nimbus.control_plane.orgs.problems import Place, Task, end_problem, forget_stale, keep_problem, meets_every_call
from nimbus.control_plane.queue.machines import cancel_machine
from nimbus.control_plane.services import MACHINES, RUNNERS, Services
from nimbus.model.errors import NimbusError, Unavailable
from nimbus.model.forge import ForgeTrouble
from nimbus.runtime.postgres import Row, Transaction, load_queries

log = structlog.get_logger()
_SQL = load_queries("nimbus.control_plane", "queries", "registrations.sql")

SWEEP_S = 5.0
DUTY = "registrations"
DEFAULT_GROUP_ID = 1  # every account has it
BUSY_PAUSE_S = 60.0  # before a runner that GitHub would not delete is asked about again
GRACE_ROUNDS = 2  # of the look at GitHub's lists
SETTLE_S = 30.0  # for GitHub to tell which job a runner served that ended in good order
GIVE_UP_S = 90_000.0  # GitHub itself removes an ephemeral runner that was offline for a day
IN_VAIN = "its runner waited too long for a job"
UNNEEDED = "its runner found no queued job"
OVER = "its job ended, and it did not"

Keep = Callable[[], Awaitable[None]]  # before each call to GitHub: raises where this process must not make it


class Registration(enum.StrEnum):
    """What a guest registers its runner with."""

    JIT = "jit"  # a config of its own, good for one runner
    TOKEN = "token"  # noqa: S105 -- a word, no secret: a token that registers any number of runners for an hour


@dataclass(frozen=True)
class RunnerRules:
    """How runners are registered and how long they may do nothing. A limit of 0 is none."""

    registration: Registration = Registration.JIT
    argv: tuple[str, ...] = ("/usr/local/bin/nimbus-runner",)
    group_id: int = DEFAULT_GROUP_ID
    web_url: str = "https://github.com"  # what a runner that registers by token is told; the API is another address
    idle_limit_s: float = 300.0
    end_limit_s: float = 300.0
    sweep_s: float = 60.0
    zombie_age_s: float = 600.0
    duty_ttl_s: float = 60.0
    reserve: float = 0.1  # share of the hourly quota that is left to registering and undoing

    @property
    def busy_pause_s(self) -> float:
        return min(BUSY_PAUSE_S, self.sweep_s or BUSY_PAUSE_S)

    @property
    def grace_s(self) -> float:
        """GitHub's list may lack a runner for so long after its registration."""
        return GRACE_ROUNDS * self.sweep_s

    @property
    def settle_s(self) -> float:
        return min(SETTLE_S, self.sweep_s or SETTLE_S)


@dataclass(frozen=True)
class Registrar:
    """What registering, undoing and looking after runners works with."""

    services: Services
    github: GithubClient
    demand: DemandRules = field(default_factory=DemandRules)
    rules: RunnerRules = field(default_factory=RunnerRules)

    def place(self, row: Row) -> Place | None:
        """Where a machine's runner registers; None where no installation is known."""
        installation_id = row["serving_id"] or row["installation_id"] or self.demand.default_installation_id
        return None if installation_id is None else Place(installation_id, row["login"], row["repo"])


def scope_of(place: Place) -> RunnerScope:
    return RunnerScope(place.installation_id, place.owner, place.repo)


@dataclass
class Patience:
    """Machines whose runner GitHub did not let go, and when to ask again: it goes from round to round."""

    pause_s: float = BUSY_PAUSE_S
    until_s: dict[int, float] = field(default_factory=dict)

    @classmethod
    def recall(cls, notes: Mapping[str, object], pause_s: float) -> Patience:
        known = notes.get("until_s")
        times = known if isinstance(known, Mapping) else {}
        return cls(pause_s, {int(machine): float(until) for machine, until in times.items()})

    def notes(self) -> dict[str, object]:
        self.waiting()
        return {"until_s": {str(machine): until for machine, until in self.until_s.items()}}

    def waiting(self) -> list[int]:
        now = time.time()
        self.until_s = {machine: until for machine, until in self.until_s.items() if now < until <= now + self.pause_s}
        return list(self.until_s)

    def postpone(self, machine_id: int) -> None:
        self.until_s[machine_id] = time.time() + self.pause_s


# --- one deregistration --------------------------------------------------------------------------------------------


async def look_and_delete(github: GithubClient, scope: RunnerScope, name: str) -> Deletion:
    """Deregister the runner of this name, if it is there and idle: a look costs less than a refused write."""
    runner = await github.find_runner(scope, name)
    if runner is None:
        return Deletion.ABSENT
    return Deletion.BUSY if runner.busy else await github.delete_runner(scope, runner.runner_id)


class Undoing:
    """One round: the installations that refuse every call are left alone until the next."""

    def __init__(self, registrar: Registrar, patience: Patience, keep: Keep) -> None:
        self.registrar, self.patience, self.keep = registrar, patience, keep
        self._refused: set[int] = set()

    async def delete(self, row: Row, *, look: bool) -> Deletion | None:
        """Deregister one machine's runner; None where GitHub was away or refused: the next org must not wait.

        `look` where GitHub may have removed it, or given it a job, meanwhile.
        """
        registrar = self.registrar
        place = registrar.place(row)
        if place is None or place.installation_id in self._refused:
            return None
        await self.keep()
        try:
            if look or not row["runner_id"]:  # or its id was never learned
                deletion = await look_and_delete(registrar.github, scope_of(place), row["runner_name"])
            else:
                deletion = await registrar.github.delete_runner(scope_of(place), row["runner_id"])
        except ForgeTrouble as trouble:
            if meets_every_call(trouble.problem):
                self._refused.add(place.installation_id)
            await keep_problem(registrar.services, place, trouble.problem)
            return None
        except NimbusError as error:
            log.warning("runner.not_deregistered", machine=row["machine_id"], reason=str(error))
            return None
        await end_problem(registrar.services, place, Task.ANY)
        if deletion is Deletion.BUSY:
            log.warning("runner.busy", machine=row["machine_id"], runner=row["runner_name"])
        return deletion


# --- those that are superfluous ------------------------------------------------------------------------------------


async def deregister_ended(undoing: Undoing) -> int:
    """Undo the registrations of machines that have ended or wait for another host; how many are gone."""
    services, rules, gone = undoing.registrar.services, undoing.registrar.rules, 0
    for row in await services.database.run(_superfluous, undoing.patience.waiting(), rules):
        # GitHub removed the runner with its job: one write less against the limit
        deletion = Deletion.ABSENT if row["served"] else await undoing.delete(row, look=row["doubtful"])
        if deletion in {Deletion.BUSY, None} and not row["given_up"]:
            undoing.patience.postpone(row["machine_id"])
            continue
        await services.database.run(_forget, row["machine_id"], row["runner_name"])
        log.info("runner.deregistered", machine=row["machine_id"], runner=row["runner_name"], how=str(deletion))
        gone += 1
    return gone


async def _superfluous(transaction: Transaction, waiting: list[int], rules: RunnerRules) -> list[Row]:
    return list(await transaction.fetch(_SQL["superfluous"], waiting, GIVE_UP_S, rules.settle_s, rules.grace_s))


async def _forget(transaction: Transaction, machine_id: int, name: str) -> None:
    await transaction.execute(_SQL["forget_runner"], machine_id, name)


async def release_idle(undoing: Undoing) -> int:
    """Deregister, then cancel, runners without a job: those that no queued job needs, and those that waited in vain.

    How many were let go. GitHub drops such a runner by itself after some minutes, without a word to anybody.
    """
    registrar, let_go = undoing.registrar, 0
    services, limit_s = registrar.services, registrar.rules.idle_limit_s
    for row in await services.database.run(_idle_surplus, undoing.patience.waiting(), limit_s):
        deletion = await undoing.delete(row, look=True)
        if deletion is not Deletion.DELETED:
            # busy, or removed by GitHub with the job that it took: roster.py ends what does not end by itself
            undoing.patience.postpone(row["machine_id"])
            continue
        cause = IN_VAIN if row["in_vain"] else UNNEEDED
        if await services.database.run(let_machine_go, row, registrar.demand, cause, wasted=row["in_vain"]):
            await services.bell.ring(MACHINES)
        log.info("runner.idle", machine=row["machine_id"], runner=row["runner_name"], why=cause)
        services.metrics.runners_removed.labels("in_vain" if row["in_vain"] else "unneeded").inc()
        let_go += 1
    return let_go


async def _idle_surplus(transaction: Transaction, waiting: list[int], limit_s: float) -> list[Row]:
    return list(await transaction.fetch(_SQL["idle_surplus"], waiting, limit_s))


async def let_machine_go(transaction: Transaction, row: Row, demand: DemandRules, cause: str, *, wasted: bool) -> int:
    """Cancel a machine whose runner GitHub does not have any more, and count its label set again.

    How many machines were queued in its place: a job may have come while GitHub was asked, and counted on this one.
    """
    await lock_org(transaction, row["org_id"])
    if await transaction.fetchval(_SQL["lock_registered"], row["machine_id"], row["runner_name"]) is not None:
        if wasted:
            await transaction.execute(_SQL["note_wasted"], row["machine_id"])
        await cancel_machine(transaction, row["machine_id"], cause)
    await transaction.execute(_SQL["clear_runner"], row["machine_id"], row["runner_name"])
    label_set = LabelSet(row["org_id"], row["repo_id"], tuple(row["labels"]))
    queued, _ = await balance(transaction, label_set, demand, row["installation_id"], None)
    return queued


async def end_overdue(registrar: Registrar) -> int:
    """Cancel machines that go on long after their job was completed: GitHub has removed their runner already."""
    ended: int = await registrar.services.database.run(_end_overdue, registrar.rules.end_limit_s)
    if ended:
        log.warning("machines.overdue", ended=ended)
        registrar.services.metrics.runners_removed.labels("overdue").inc(ended)
    return ended


async def _end_overdue(transaction: Transaction, limit_s: float) -> int:
    rows = await transaction.fetch(_SQL["overdue"], limit_s)
    for row in rows:
        await cancel_machine(transaction, row["machine_id"], OVER)
    return len(rows)


# --- the sweeper ---------------------------------------------------------------------------------------------------


async def sweep_registrations(registrar: Registrar) -> None:
    """Undo what is superfluous until cancelled: at each ring, and now and then without one."""
    with registrar.services.bell.listen(RUNNERS) as ear:
        while True:
            try:
                await undo_as_one_of_many(registrar)
            except Unavailable as error:  # the database
                log.warning("runner.sweep_postponed", reason=str(error))
            with trio.move_on_after(SWEEP_S):
                await ear.wait()


async def undo_as_one_of_many(registrar: Registrar) -> None:
    """One round, unless another process is at it."""
    async with hold_duty(registrar.services, DUTY, registrar.rules.duty_ttl_s) as duty:
        if duty is not None:
            patience = Patience.recall(duty.notes, registrar.rules.busy_pause_s)
            await _undo_all(registrar, patience, duty.keep)
            duty.notes = patience.notes()


async def _undo_all(registrar: Registrar, patience: Patience, keep: Keep) -> None:
    undoing = Undoing(registrar, patience, keep)
    await deregister_ended(undoing)
    await release_idle(undoing)
    await end_overdue(registrar)
    await registrar.services.database.run(forget_stale)
