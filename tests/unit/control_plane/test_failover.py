"""A real replica, promoted without the newest writes: nothing is handed on while a lost holder may live."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest

from nimbus.control_plane.queue.silence import expire_leases
from nimbus.model.errors import Unavailable
from nimbus.runtime.postgres import Transaction, open_database
from tests.services import PostgresServer
from tests.unit.control_plane.plane import Plane, open_plane
from tests.unit.control_plane.standby import copy_server

pytestmark = pytest.mark.services

_PAST = "UPDATE machines SET deadline = clock_timestamp() - interval '1 s' WHERE deadline IS NOT NULL"


async def _forget_pause(plane: Plane) -> None:
    """As if one ttl had passed since the pause began."""
    await plane.sql("UPDATE database_watch SET grants_paused_until = clock_timestamp()")


async def test_a_promoted_replica_that_lost_a_grant_and_a_renewal_hands_neither_machine_on_for_one_ttl(
    postgres_server: PostgresServer, database_dsn: str, redis_url: str
) -> None:
    name = urlsplit(database_dsn).path.strip("/")
    async with open_plane(database_dsn, redis_url) as primary:
        agent = await primary.enrol()
        await primary.submit()
        kept = await primary.lease(agent)  # the replica has this lease, but not its renewals
        await primary.submit()
        assert await expire_leases(primary.services) == 0
        with copy_server(postgres_server) as standby:
            lost = await primary.lease(agent)  # the replica shows this machine as queued
            assert kept is not None
            assert lost is not None
            standby.start()
            standby.promote()
            async with open_plane(standby.dsn(name), redis_url) as promoted:
                await promoted.sql(_PAST)
                granted = await promoted.lease(agent)
                expired = await expire_leases(promoted.services)
                paused = promoted.services.metrics.registry.get_sample_value("nimbus_control_plane_grants_paused")
                answers = [(await promoted.renew(agent, grant)).status_code for grant in (lost, kept)]
                await _forget_pause(promoted)
                assert await expire_leases(promoted.services) == 0
                later = await promoted.lease(agent)

    assert granted is None
    assert (expired, paused) == (0, 1)
    assert answers == [409, 200]
    assert later is not None
    assert (later["machine_id"], later["fence"]) == (lost["machine_id"], lost["fence"])
    assert later["lease_id"] != lost["lease_id"]  # so that even the same fence tells them apart


async def test_a_replica_that_was_not_promoted_yet_is_as_good_as_away(
    postgres_server: PostgresServer, database_dsn: str
) -> None:
    async def write(transaction: Transaction) -> None:
        await transaction.execute("UPDATE database_watch SET pause_cause = NULL")

    with copy_server(postgres_server) as standby:
        standby.start()
        async with open_database(standby.dsn(urlsplit(database_dsn).path.strip("/")), pool_size=1) as database:
            with pytest.raises(Unavailable):
                await database.run(write)


async def test_while_the_database_is_away_every_write_of_an_agent_is_answered_with_when_to_come_again(
    postgres_server: PostgresServer, database_dsn: str, redis_url: str
) -> None:
    with copy_server(postgres_server) as server:
        server.start()
        server.promote()
        async with open_plane(server.dsn(urlsplit(database_dsn).path.strip("/")), redis_url) as plane:
            agent = await plane.enrol()
            await plane.submit()
            grant = await plane.lease(agent)
            assert grant is not None
            server.stop()
            asked = {"wait_s": 0, "free": {"cpus": 1, "mem_mib": 512, "slots": 1}}
            answers = [
                await plane.renew(agent, grant),
                await plane.finish(agent, grant),
                await plane.http.post("/api/agents/lease", json=asked, headers=agent),
            ]

    assert [answer.status_code for answer in answers] == [503] * 3
    assert all(int(answer.headers["Retry-After"]) >= 1 for answer in answers)
