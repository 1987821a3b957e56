"""Heartbeats are gathered for a moment: who waits for the one that writes them is told when that fails."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from nimbus.control_plane.hosts.beats import Beats
from nimbus.model.errors import Unavailable
from nimbus.runtime.postgres import open_database

pytestmark = pytest.mark.services


async def test_who_was_gathered_by_one_that_was_cancelled_is_told_to_try_again_and_the_next_ones_are_written(
    database_dsn: str,
) -> None:
    beats, leading = Beats(), trio.CancelScope()
    refused: list[Unavailable] = []
    async with open_database(database_dsn, 1) as database:

        async def lead() -> None:
            with leading:
                await beats.write(database, "agent-1", {"agent_id": "agent-1"}, 60.0)

        async def follow() -> None:
            try:
                await beats.write(database, "agent-2", {"agent_id": "agent-2"}, 60.0)
            except Unavailable as error:
                refused.append(error)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(lead)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(follow)
            await trio.testing.wait_all_tasks_blocked()
            leading.cancel()

        assert len(refused) == 1
        assert await beats.write(database, "agent-2", {"agent_id": "agent-2"}, 60.0) is None
