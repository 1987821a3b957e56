"""A real control plane's own trace through the model: it is allowed, and a VM that outlived its lease is seen."""

from __future__ import annotations

import json

import pytest
import trio

from nimbus.control_plane.trace import read_trace, render_trace
from tests.model.replay import Refused, replay
from tests.model.run import find_missing
from tests.unit.control_plane.plane import open_plane

pytestmark = [
    pytest.mark.services,
    pytest.mark.skipif(bool(find_missing()), reason=f"needs {' and '.join(find_missing())}: make setup installs it"),
]


async def test_the_trace_of_a_real_control_plane_is_allowed_and_a_vm_that_outlived_its_lease_is_not(
    database_dsn: str, redis_url: str
) -> None:
    async with open_plane(database_dsn, redis_url) as plane:
        first, second = await plane.enrol("first"), await plane.enrol("second")
        for _ in range(3):
            await plane.submit()
        lost = await plane.lease(first)
        assert lost is not None
        await plane.renew(first, lost)
        await plane.pass_deadlines()
        for _ in range(3):
            again = await plane.lease(second)
            assert again is not None
            await plane.renew(second, again)
            await plane.finish(second, again, "done")
        assert (await plane.finish(first, lost, "done")).status_code == 409
        lines = render_trace(await read_trace(plane.services.database)).splitlines()

    await trio.to_thread.run_sync(lambda: replay(lines, ended=True))

    started = next(told for told in map(json.loads, lines) if told["event"] == "start")
    survivor = {"event": "vm_started"} | {name: started[name] for name in ("machine_id", "fence", "agent_id", "at_ms")}
    with pytest.raises(Refused, match="living") as refused:
        await trio.to_thread.run_sync(lambda: replay([*lines, json.dumps(survivor)]))
    assert json.loads(refused.value.line)["event"] == "expire"
