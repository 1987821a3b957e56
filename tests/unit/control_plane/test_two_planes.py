"""Two control planes on one database and one GitHub that loses and repeats what it tells, in an order that dice decide.

Events, grants, registrations that are cut short at any await, hosts that die, polls, looks and sweeps go on at once.
Once that ends, whatever happened, nothing may be left: no job that waits, no machine, no registration.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial

import pytest
import trio

from nimbus.control_plane.demand.admission import meet_demand
from nimbus.control_plane.demand.demand import DemandRules
from nimbus.control_plane.demand.inbox import drain_inbox
from nimbus.control_plane.demand.poll_rules import PollRules
from nimbus.control_plane.demand.polling import Poller
from nimbus.control_plane.demand.redelivery import RedeliveryRules, ask_again
from nimbus.control_plane.duties import hold_duty
from nimbus.control_plane.github.client import AppCredentials, open_github
from nimbus.control_plane.github.limits import LimitTerms
from nimbus.control_plane.queue.leases import finish_lease, grant_lease, renew_lease
from nimbus.control_plane.queue.silence import expire_leases
from nimbus.control_plane.runners.registrations import Registrar, RunnerRules, undo_as_one_of_many
from nimbus.control_plane.runners.roster import check_rosters
from nimbus.control_plane.runners.runners import mint_runner
from nimbus.control_plane.services import Services
from nimbus.model.errors import Conflict, Fenced, Gone, Unavailable
from nimbus.model.job import JobState
from nimbus.model.lease import LeaseKey
from nimbus.model.vm import Ending
from nimbus.sim.faults import DeliveryFaults, FaultPlan, RunnerFaults
from nimbus.sim.jobs import Conclusion, Run, Runner
from nimbus.sim.workflow import parse_workflow
from nimbus.wire.leaseapi import FinishRequest, HeldState, LeaseRequest, RenewRequest
from tests.forge import APP_ID, app_key
from tests.unit.control_plane.github_plane import GithubPlane, open_github_plane
from tests.unit.control_plane.plane import open_services

pytestmark = pytest.mark.services
RUNS = 20
HOSTS = 3
SETTLE_S = 80.0  # until nothing is left: far more than that takes
ROOM = LeaseRequest(0.0, 8, 8192, 1, ("nimbus",))
WORKFLOWS = (
    "jobs: {a: {runs-on: nimbus, steps: [{run: x}]}}",
    "jobs: {a: {runs-on: nimbus, steps: [{run: x}]}, b: {runs-on: [nimbus-1cpu-1gb], steps: [{run: x}]}}",
)
# its times are moments, and no loop has a limit: dice make more of them than people would
DEMAND = DemandRules(pause_s=0.05, untold_s=0.5, stolen_limit=1000)
RUNNERS = RunnerRules(idle_limit_s=1.0, end_limit_s=1.0, sweep_s=0.1, zombie_age_s=0.2)
POLL = PollRules(interval_s=0.1, idle_interval_s=0.1)
BAD_DAYS = FaultPlan(
    deliveries=DeliveryFaults(lost=0.2, unlisted=0.1, duplicated=0.2, reordered=0.2, answered_late=0.1),
    runners=RunnerFaults(stolen=0.1, taken_before_delete=0.2, assignment_lost=0.1, idle_dropped=0.1, listed_late=0.2,
                         idle_dropped_s=0.5, list_lag_s=(0.05, 0.3)),
)  # fmt: skip


@dataclass(frozen=True)
class Office:
    """One control-plane process."""

    services: Services
    registrar: Registrar
    poller: Poller

    async def hold(self, name: str, work: Callable[..., Awaitable[object]]) -> None:
        async with hold_duty(self.services, name, ttl_s=60.0) as duty:
            if duty is not None:
                await work(duty)

    def chores(self) -> list[Callable[[], Awaitable[object]]]:
        """One round of everything that a control plane does by itself."""
        services, github = self.services, self.registrar.github
        return [
            partial(drain_inbox, services, DEMAND),
            partial(self.hold, "polling", self.poller.poll),
            partial(self.hold, "redelivery", partial(ask_again, services, github, RedeliveryRules(0.1))),
            partial(self.hold, "runners", partial(check_rosters, self.registrar)),
            partial(undo_as_one_of_many, self.registrar),
            partial(meet_demand, services, DEMAND),
            partial(expire_leases, services),
        ]


@asynccontextmanager
async def open_office(github: GithubPlane, services: Services) -> AsyncIterator[Office]:
    terms = LimitTerms(points_per_minute=1_000_000, owner_retry_s=0.2, penalty_s=0.1)
    async with open_github(github.sim.url, AppCredentials(APP_ID, app_key().private_pem), terms) as client:
        registrar = Registrar(services, client, DEMAND, RUNNERS)
        yield Office(services, registrar, Poller(services, client, DEMAND, POLL))


class Weather:
    """Both offices, GitHub between them, and the dice."""

    def __init__(self, github: GithubPlane, offices: list[Office], seed: int) -> None:
        self.github, self.offices = github, offices
        self.forge = github.sim.world.forge
        self.dice = random.Random(seed)
        self.over, self.closed = trio.Event(), trio.Event()  # for the hosts; for the offices, which outlast them

    # -- GitHub's users ----------------------------------------------------------------------------------------------

    async def push(self) -> None:
        """Runs begin, and some are cancelled whatever state they are in."""
        runs: list[Run] = []
        for _ in range(RUNS):
            runs.append(
                self.forge.start_run(parse_workflow(self.dice.choice(WORKFLOWS)), self.dice.choice(["hello", "b"]))
            )
            await trio.sleep(self.dice.uniform(0, 0.4))
            queued = [job for run in runs for job in run.jobs if job.state is JobState.QUEUED]
            if queued and self.dice.random() < 0.4:
                self.forge.cancel(self.dice.choice(queued).job_id)

    # -- hosts -------------------------------------------------------------------------------------------------------

    async def run_host(self, agent_id: str) -> None:
        while not self.over.is_set():
            await self.serve_one(agent_id, patient=False)
            await trio.sleep(self.dice.uniform(0, 0.05))

    async def serve_one(self, agent_id: str, *, patient: bool) -> bool:
        """Take one machine from its lease to its end, or leave it half-way."""
        office = self.dice.choice(self.offices)
        grant = await grant_lease(office.services, agent_id, ROOM)
        if grant is None:
            return False
        name = await self.register(office, agent_id, grant.key, patient=patient)
        runner = next((each for each in self.forge.runners.values() if each.name == name), None)
        dies = not patient and self.dice.random() < 0.2
        ending = Ending.HOST_FAULT if runner is None else await self.run_guest(office, agent_id, grant.key, runner)
        if dies:
            sql = "UPDATE machines SET deadline = clock_timestamp() WHERE machine_id = $1 AND deadline IS NOT NULL"
            await self.github.plane.sql(sql, grant.key.machine_id)
        elif ending is not None:
            with suppress(Fenced):
                await finish_lease(office.services, agent_id, FinishRequest(grant.key, ending))
        if runner is not None and runner.runner_id in self.forge.runners:
            self.forge.go_offline(runner)
        return True

    async def register(self, office: Office, agent_id: str, key: LeaseKey, *, patient: bool) -> str | None:
        """The runner's name; None where there is none. A process that ends in the midst of it is asked once more."""
        for limit_s in (self.dice.choice([0.01, 0.03, 0.1, 30.0]), 30.0):
            with trio.move_on_after(30.0 if patient else limit_s):
                try:
                    return (await mint_runner(office.registrar, agent_id, key)).runner_name
                except (Fenced, Gone, Unavailable):
                    return None
            if self.dice.random() < 0.3:
                return None
        return None

    async def run_guest(self, office: Office, agent_id: str, key: LeaseKey, runner: Runner) -> Ending | None:
        """Until its job is done, or the control plane stops it. None where the lease is lost."""
        self.forge.go_online(runner)
        while True:
            if runner.offered is not None and self.dice.random() < 0.9:
                job_id = runner.offered.job_id
                with suppress(Conflict):  # it is another's again
                    self.forge.accept(runner, job_id)
                if runner.job is None:
                    continue
                await trio.sleep(self.dice.uniform(0, 0.1))
                self.forge.complete(runner, job_id, Conclusion.SUCCESS)
                return Ending.DONE
            try:
                reply = await renew_lease(office.services, agent_id, RenewRequest(key, HeldState.RUNNING))
            except Fenced:
                return None
            if reply.cancel:
                return Ending.CANCELLED
            await trio.sleep(0.02)

    # -- the control planes ------------------------------------------------------------------------------------------

    async def run_office(self, office: Office) -> None:
        while not self.closed.is_set():
            await self.do_chore(self.dice.choice(office.chores()))

    async def do_chore(self, chore: Callable[[], Awaitable[object]]) -> None:
        try:
            await chore()
        except Unavailable as error:
            if "database" in str(error):  # no deadlock outlives its repetitions
                raise

    async def settle(self, agents: list[str]) -> None:
        """Hosts that do all they are given, while both offices go on, until nothing is open on either side."""
        with trio.move_on_after(SETTLE_S):
            while await self.left():
                async with trio.open_nursery() as nursery:
                    for agent_id in agents:
                        nursery.start_soon(partial(self.serve_one, agent_id, patient=True))
                await trio.sleep(0.05)
        assert await self.left() == []

    async def left(self) -> list[str]:
        """What is open, in words."""
        plane = self.github.plane
        jobs = [
            f"job {job.job_id} {job.state}" for job in self.forge.jobs.values() if job.state is not JobState.COMPLETED
        ]
        ours = await plane.sql("SELECT forge_job_id, state FROM jobs WHERE state NOT IN ('completed', 'lost')")
        machines = await plane.sql(
            "SELECT machine_id, state, runner_id FROM machines"
            " WHERE state IN ('queued', 'leased', 'running') OR runner_id IS NOT NULL"
        )
        runners = [f"runner {runner.name}" for runner in self.forge.runners.values()]
        return [*jobs, *(str(dict(row)) for row in [*ours, *machines]), *runners]


@pytest.mark.parametrize("seed", [1, 2])
async def test_whatever_two_planes_and_a_bad_day_do_at_once_nothing_is_left_in_the_end(
    database_dsn: str, redis_url: str, seed: int
) -> None:
    async with (
        open_github_plane(database_dsn, redis_url, demand=DEMAND, runners=RUNNERS) as github,
        open_services(database_dsn, redis_url) as second,
        open_office(github, github.plane.services) as first_office,
        open_office(github, second) as second_office,
    ):
        weather = Weather(github, [first_office, second_office], seed)
        agents = [f"agent-{number}" for number in range(HOSTS)]
        for agent_id in agents:
            await github.plane.enrol(agent_id)
        github.sim.world.faults.set_plan(BAD_DAYS)
        async with trio.open_nursery() as nursery:
            for office in weather.offices:
                nursery.start_soon(weather.run_office, office)
            async with trio.open_nursery() as hosts:
                for agent_id in agents:
                    hosts.start_soon(weather.run_host, agent_id)
                await weather.push()
                weather.over.set()
            github.sim.world.faults.set_plan(FaultPlan())
            await weather.settle(agents)
            weather.closed.set()
        known = {row["forge_job_id"] for row in await github.jobs()}
        assert known <= set(weather.forge.jobs)
