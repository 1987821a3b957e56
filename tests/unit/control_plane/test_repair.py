"""The repairs as they run by themselves: each alone finds what no webhook told of, and each can be left out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from nimbus.control_plane.demand.installations import InstallationRules
from nimbus.control_plane.demand.poll_rules import PollRules
from nimbus.control_plane.demand.redelivery import RedeliveryRules
from nimbus.control_plane.demand.repair import RepairRules, sweep_repair
from nimbus.sim.faults import DeliveryFaults, FaultPlan
from nimbus.sim.workflow import parse_workflow
from tests.unit.control_plane.github_plane import GithubPlane, open_github_plane

pytestmark = pytest.mark.services
WORKFLOW = parse_workflow("jobs: {a: {runs-on: nimbus, steps: [{run: x}]}}")
OFF = RepairRules(RedeliveryRules(0.0), PollRules(0.0), InstallationRules(0.0))


@pytest.fixture
async def github(database_dsn: str, redis_url: str) -> AsyncIterator[GithubPlane]:
    async with open_github_plane(database_dsn, redis_url) as running:
        yield running


@asynccontextmanager
async def sweeping(github: GithubPlane, rules: RepairRules) -> AsyncIterator[None]:
    """As two processes of one control plane would."""
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(sweep_repair, github.plane.services, github.forge.github, github.forge.demand, rules)
        yield
        nursery.cancel_scope.cancel()


async def learned(github: GithubPlane) -> str:
    """How the one job that there will be was learned of."""
    while True:
        await github.drain()
        for job in await github.jobs():
            return str(job["learned_by"])
        await trio.sleep(0.05)


async def test_polling_alone_finds_a_job_of_a_repository_that_nobody_ever_named(github: GithubPlane) -> None:
    github.sim.world.faults.set_plan(FaultPlan(deliveries=DeliveryFaults(unlisted=1.0)))
    github.sim.world.forge.start_run(WORKFLOW, "brand-new")
    rules = RepairRules(RedeliveryRules(0.0), PollRules(0.5, idle_interval_s=0.5), InstallationRules(0.5))
    async with sweeping(github, rules):
        assert await learned(github) == "poll"


async def test_redelivery_alone_brings_a_job_whose_delivery_was_lost(github: GithubPlane) -> None:
    github.sim.world.faults.set_plan(FaultPlan(deliveries=DeliveryFaults(lost=1.0, redeliveries_pass=True)))
    github.sim.world.forge.start_run(WORKFLOW, "hello")
    async with sweeping(github, RepairRules(RedeliveryRules(0.5), OFF.poll, OFF.installations)):
        assert await learned(github) == "redelivery"


async def test_with_an_interval_of_nothing_each_of_them_is_left_out(github: GithubPlane) -> None:
    github.sim.world.tally.clear()
    async with sweeping(github, OFF):
        await trio.testing.wait_all_tasks_blocked()
    assert list(github.sim.world.tally.calls()) == []
    assert await github.plane.sql("SELECT * FROM duties") == []
