"""Installations against a real database: kept from events and from GitHub's list, asked for by who serves an org."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio

from nimbus.control_plane.installations import (
    keep_account,
    keep_installation,
    see_installation,
    serving_installation,
)
from nimbus.control_plane.services import Services
from tests.unit.control_plane.plane import open_services

pytestmark = pytest.mark.services
ACCOUNT, LOGIN = 501, "octo-org"


@pytest.fixture
async def services(database_dsn: str, redis_url: str) -> AsyncIterator[Services]:
    with trio.fail_after(60):
        async with open_services(database_dsn, redis_url) as opened:
            yield opened


async def keep(services: Services, installation_id: int, *, suspended: bool = False, removed: bool = False) -> int:
    run = services.database.run
    return await run(keep_installation, installation_id, ACCOUNT, LOGIN, suspended, removed)


async def serving(services: Services, org_id: int, default: int | None = None) -> int | None:
    return await services.database.run(serving_installation, org_id, default)


async def test_the_newest_installation_that_is_not_removed_serves_an_org(services: Services) -> None:
    org_id = await keep(services, 7)
    await keep(services, 8)
    await keep(services, 9, removed=True)
    assert await serving(services, org_id, default=1) == 8


async def test_a_suspended_installation_serves_only_where_there_is_no_other(services: Services) -> None:
    org_id = await keep(services, 8, suspended=True)
    assert await serving(services, org_id) == 8
    await keep(services, 7)
    assert await serving(services, org_id) == 7


async def test_the_default_serves_an_org_of_which_nothing_is_known(services: Services) -> None:
    org_id = await services.database.run(keep_account, ACCOUNT, LOGIN)
    assert await serving(services, org_id) is None
    assert await serving(services, org_id, default=77) == 77


async def test_a_default_that_is_anothers_or_gone_serves_nobody_else(services: Services) -> None:
    org_id = await keep(services, 77, removed=True)
    assert await serving(services, org_id, default=77) is None
    other = await services.database.run(keep_account, 502, "other-org")
    await keep(services, 78)
    assert await serving(services, other, default=78) is None


async def test_an_event_proves_an_installation_and_leaves_a_suspension_as_it_is(services: Services) -> None:
    org_id = await keep(services, 8, suspended=True)
    await services.database.run(see_installation, 8, org_id)
    await services.database.run(see_installation, 7, org_id)
    assert await serving(services, org_id) == 7
