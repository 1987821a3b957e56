"""Leases against a model: whatever agents do in whatever order, at most one holds a machine, by the highest fence."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import urlsplit

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nimbus.control_plane.access import Caller
from nimbus.control_plane.jobs.jobs import submit_job
from nimbus.control_plane.jobs.submission import parse_submission
from nimbus.control_plane.queue.leases import finish_lease, grant_lease, renew_lease
from nimbus.control_plane.queue.silence import expire_leases
from nimbus.control_plane.services import JobRules, Services
from nimbus.model.errors import Fenced
from nimbus.model.lease import LeaseKey, MachineState
from nimbus.model.vm import Ending
from nimbus.runtime.postgres import Transaction
from nimbus.wire.leaseapi import FinishRequest, HeldState, LeaseRequest, RenewRequest
from tests.services import PostgresServer
from tests.unit.control_plane.plane import add_agents, open_services

pytestmark = pytest.mark.services

AGENTS = ("a", "b", "c")
STEPS = st.one_of(
    st.tuples(st.just("submit"), st.just(""), st.just(0)),
    st.tuples(st.just("lease"), st.sampled_from(AGENTS), st.just(0)),
    st.tuples(st.sampled_from(["renew", "done", "host_fault"]), st.sampled_from(AGENTS), st.integers(0, 5)),
    st.tuples(st.sampled_from(["lapse", "sweep"]), st.just(""), st.integers(0, 5)),
)


@dataclass
class Known:
    """One machine as the model knows it."""

    state: MachineState = MachineState.QUEUED
    fence: int = 0
    holder: tuple[str, str] | None = None  # agent and lease id; kept after a finish, which may be said again
    lapsed: bool = False


@dataclass
class Model:
    """What must be true of the database after each step."""

    machines: dict[int, Known] = field(default_factory=dict)
    grants: list[tuple[str, LeaseKey]] = field(default_factory=list)  # all that was ever granted, to whom

    def may_write(self, agent: str, key: LeaseKey) -> bool:
        known = self.machines[key.machine_id]
        current = known.holder == (agent, key.lease_id) and known.fence == key.fence
        return current and known.state in {MachineState.LEASED, MachineState.RUNNING} and not known.lapsed

    def said_before(self, agent: str, key: LeaseKey) -> bool:
        known = self.machines[key.machine_id]
        ended = known.state not in {MachineState.LEASED, MachineState.RUNNING}
        return ended and known.holder == (agent, key.lease_id) and known.fence == key.fence


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEPS, min_size=5, max_size=40))
def test_at_most_one_agent_can_write_and_only_by_the_newest_lease(
    postgres_server: PostgresServer, database_dsn: str, steps: list[tuple[str, str, int]]
) -> None:
    name = urlsplit(database_dsn).path.strip("/")
    postgres_server.sql("TRUNCATE jobs, machines, machine_events, agents CASCADE", name)
    trio.run(_play, database_dsn, steps)


async def _play(dsn: str, steps: list[tuple[str, str, int]]) -> None:
    model = Model()
    with trio.fail_after(60):
        async with open_services(dsn, "redis://127.0.0.1:1/0") as services:
            await add_agents(services, *AGENTS)
            for step, agent, number in steps:
                await _take(services, model, step, agent, number)
                await _compare(services, model)


async def _take(services: Services, model: Model, step: str, agent: str, number: int) -> None:
    if step == "submit":
        submission = parse_submission(b'{"argv": ["true"]}', JobRules())
        submitted = await submit_job(services, submission, Caller("tester", None, may_write=True))
        model.machines[submitted.machine_id] = Known()
    elif step == "lease":
        await _lease(services, model, agent)
    elif step == "lapse":
        await _lapse(services, model, number)
    elif step == "sweep":
        await expire_leases(services)
        for known in model.machines.values():
            if known.lapsed:
                _requeue(known, forget=True)
    elif model.grants:
        await _write(services, model, step, agent, model.grants[number % len(model.grants)][1])


async def _lease(services: Services, model: Model, agent: str) -> None:
    grant = await grant_lease(services, agent, LeaseRequest(0, 8, 8192, 8))
    queued = [machine for machine, known in model.machines.items() if known.state is MachineState.QUEUED]
    assert (grant is None) == (not queued)
    if grant is not None:
        known = model.machines[grant.key.machine_id]
        assert known.state is MachineState.QUEUED
        assert grant.key.fence == known.fence + 1
        known.state, known.fence, known.lapsed = MachineState.LEASED, grant.key.fence, False
        known.holder = (agent, grant.key.lease_id)
        model.grants.append((agent, grant.key))


async def _lapse(services: Services, model: Model, number: int) -> None:
    held = [machine for machine, known in model.machines.items() if known.state in {"leased", "running"}]
    if held:
        machine_id = held[number % len(held)]
        model.machines[machine_id].lapsed = True
        await services.database.run(_set_lapsed, machine_id)


async def _set_lapsed(transaction: Transaction, machine_id: int) -> None:
    past = "UPDATE machines SET deadline = clock_timestamp() - interval '1 s' WHERE machine_id = $1"
    await transaction.execute(past, machine_id)


async def _write(services: Services, model: Model, step: str, agent: str, key: LeaseKey) -> None:
    known = model.machines[key.machine_id]
    allowed = model.may_write(agent, key)
    repeated = step != "renew" and model.said_before(agent, key)
    try:
        if step == "renew":
            await renew_lease(services, agent, RenewRequest(key, HeldState.RUNNING))
        else:
            ending = Ending.DONE if step == "done" else Ending.HOST_FAULT
            await finish_lease(services, agent, FinishRequest(key, ending))
    except Fenced:
        assert not allowed
        assert not repeated
        return
    assert allowed or repeated
    if allowed and step == "renew":
        known.state = MachineState.RUNNING
    elif allowed and step == "done":
        known.state = MachineState.DONE
    elif allowed:
        _requeue(known, forget=False)


def _requeue(known: Known, *, forget: bool) -> None:
    """The host failed or fell silent: again, up to the third time (attempts are fences here)."""
    known.state = MachineState.QUEUED if known.fence < 3 else MachineState.FAILED
    known.lapsed = False
    if forget:
        known.holder = None


async def _compare(services: Services, model: Model) -> None:
    rows = await services.database.run(_states)
    assert rows == {machine: (known.state.value, known.fence) for machine, known in model.machines.items()}


async def _states(transaction: Transaction) -> dict[int, tuple[str, int]]:
    rows = await transaction.fetch("SELECT machine_id, state, fence FROM machines")
    return {row["machine_id"]: (row["state"], row["fence"]) for row in rows}
