"""The trace of machine requests: every transition once, in order, each a step of the model's table."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import trio

from nimbus.control_plane.trace import read_trace, render_trace
from nimbus.model.lease import MachineEvent, MachineState, advance
from tests.unit.control_plane.plane import open_plane

pytestmark = pytest.mark.services

NO_STEPS = {"queue", "ask_cancel"}


async def test_every_transition_of_a_machine_request_is_traced_with_who_told_it(
    database_dsn: str, redis_url: str
) -> None:
    async with open_plane(database_dsn, redis_url) as plane:
        first, second = await plane.enrol("first"), await plane.enrol("second")
        submitted = await plane.submit()
        grant = await plane.lease(first)
        assert grant is not None
        await plane.renew(first, grant)
        await plane.renew(first, grant)
        await plane.pass_deadlines()
        assert await plane.lease(second) is not None
        await plane.enrol("second", held=[])
        grant = await plane.lease(first)
        assert grant is not None
        for _ in range(2):
            await plane.http.post(f"/api/jobs/{submitted['job_id']}/cancel", headers=plane.admin())
        await plane.finish(first, grant, "cancelled")
        events = await read_trace(plane.services.database)
        page = await read_trace(plane.services.database, after=events[2].id, limit=2)

    told = [(event.event, event.state_from, event.state_to, event.fence, event.agent_id) for event in events]
    assert told == [
        ("queue", None, "queued", 0, None),
        ("lease", "queued", "leased", 1, "first"),
        ("start", "leased", "running", 1, "first"),
        ("expire", "running", "queued", 1, "first"),
        ("lease", "queued", "leased", 2, "second"),
        ("expire", "leased", "queued", 2, "second"),
        ("lease", "queued", "leased", 3, "first"),
        ("ask_cancel", "leased", "leased", 3, "first"),
        ("cancel", "leased", "cancelled", 3, "first"),
    ]
    by = [event.told_by for event in events]
    assert by == [None, "agent", "agent", "clock", "agent", "enrolment", "agent", "user", "agent"]
    assert [event.at_ms for event in events] == sorted(event.at_ms for event in events)
    assert page == events[3:5]
    for event in events:
        if event.event not in NO_STEPS:
            assert event.state_from is not None
            assert advance(MachineState(event.state_from), MachineEvent(event.event)) == event.state_to


async def test_the_command_prints_the_trace_as_json_lines(database_dsn: str, redis_url: str) -> None:
    async with open_plane(database_dsn, redis_url) as plane:
        agent = await plane.enrol()
        await plane.submit()
        await plane.lease(agent)
        expected = render_trace(await read_trace(plane.services.database))
        command = [sys.executable, "-m", "nimbus.control_plane.trace"]
        environment = {"NIMBUS_DATABASE_URL": database_dsn, "PATH": os.environ["PATH"]}
        done = await trio.run_process(command, env=environment, cwd=Path.cwd(), capture_stdout=True)

    assert done.stdout.decode() == expected
    assert [json.loads(line)["event"] for line in done.stdout.splitlines()] == ["queue", "lease"]
