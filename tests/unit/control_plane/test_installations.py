"""Installations against a real database: kept from events and from GitHub's list, asked for by who serves an org."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
import trio

from nimbus.control_plane.demand.installation_events import take_installation
from nimbus.control_plane.demand.installations import (
    NAME,
    keep_account,
    keep_installation,
    keep_listed,
    list_all,
    see_installation,
    serving_installation,
)
from nimbus.control_plane.duties import hold_duty
from nimbus.control_plane.services import Services
from nimbus.sim.accounts import Refusal
from nimbus.sim.faults import DeliveryFaults, FaultPlan
from nimbus.wire.githubrest import InstallationSeen
from nimbus.wire.installation import InstallationEvent
from tests.forge import INSTALLATION_ID
from tests.unit.control_plane.github_plane import GithubPlane, open_github_plane
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


# --- GitHub's list ------------------------------------------------------------------------------------------------


@pytest.fixture
async def github(database_dsn: str, redis_url: str) -> AsyncIterator[GithubPlane]:
    async with open_github_plane(database_dsn, redis_url) as running:
        running.sim.world.faults.set_plan(FaultPlan(deliveries=DeliveryFaults(unlisted=1.0)))
        yield running


async def list_now(github: GithubPlane) -> int:
    services = github.plane.services
    async with hold_duty(services, NAME, 60.0) as duty:
        assert duty is not None
        return await list_all(services, github.forge.github, duty)
    raise AssertionError("the duty was lost")


async def repos(github: GithubPlane) -> dict[str, int | None]:
    return {row["name"]: row["installation_id"] for row in await github.plane.sql("SELECT * FROM repos")}


async def test_installations_and_repositories_that_nobody_told_of_are_found(github: GithubPlane) -> None:
    github.sim.world.forge.repo("second")
    assert await list_now(github) == 2
    assert await repos(github) == {"hello": INSTALLATION_ID, "second": INSTALLATION_ID}
    [installation] = await github.plane.sql("SELECT * FROM installations")
    assert (installation["installation_id"], installation["listed_at"] is None) == (INSTALLATION_ID, False)


async def test_a_repository_that_the_app_no_longer_reaches_is_left_out(github: GithubPlane) -> None:
    github.sim.world.forge.repo("second")
    await list_now(github)
    del github.sim.world.forge.repos["second"]
    assert await list_now(github) == 1
    assert await repos(github) == {"hello": INSTALLATION_ID, "second": None}


async def test_a_suspension_that_no_webhook_told_of_is_found_with_its_problem_and_so_is_its_end(
    github: GithubPlane,
) -> None:
    await list_now(github)
    accounts = github.sim.world.accounts
    accounts.suspend(accounts.first, 1.0)
    await list_now(github)
    assert [row["suspended"] for row in await github.plane.sql("SELECT * FROM installations")] == [True]
    assert [row["kind"] for row in await github.plane.sql("SELECT * FROM forge_problems")] == ["suspended"]
    accounts.suspend(accounts.first, None)
    await list_now(github)
    assert [row["suspended"] for row in await github.plane.sql("SELECT * FROM installations")] == [False]
    assert await github.plane.sql("SELECT * FROM forge_problems") == []


async def test_an_app_that_was_removed_and_installed_again_is_served_by_the_new_installation(
    github: GithubPlane,
) -> None:
    await list_now(github)
    accounts = github.sim.world.accounts
    accounts.install(accounts.first, installed=False)
    await list_now(github)
    assert [row["removed"] for row in await github.plane.sql("SELECT * FROM installations")] == [True]
    assert [row["kind"] for row in await github.plane.sql("SELECT * FROM forge_problems")] == ["not_installed"]
    accounts.install(accounts.first, installed=True)
    await list_now(github)
    [org] = await github.plane.sql("SELECT org_id FROM orgs WHERE forge = 'github'")
    assert await serving(github.plane.services, org["org_id"]) == accounts.first.installation_id != INSTALLATION_ID


async def test_machines_of_a_removed_installation_are_the_new_ones_even_where_that_was_told_of_first(
    github: GithubPlane,
) -> None:
    await github.tell("queued")
    accounts = github.sim.world.accounts
    account = accounts.first
    for installed in (False, True):
        accounts.install(account, installed=installed)
    run, new_id = github.plane.services.database.run, account.installation_id
    [org] = await github.plane.sql("SELECT forge_id, login FROM orgs WHERE forge = 'github'")
    for installation_id, removed in ((new_id, False), (INSTALLATION_ID, True)):
        action = "deleted" if removed else "created"
        event = InstallationEvent(action, installation_id, org["forge_id"], org["login"], False, removed, not removed)
        await run(take_installation, event)
    assert [machine["installation_id"] for machine in await github.machines()] == [new_id]
    assert await github.plane.sql("SELECT * FROM forge_problems") == []


async def test_what_a_webhook_said_after_github_was_asked_is_not_overwritten(github: GithubPlane) -> None:
    services = github.plane.services
    asked_at = datetime.now(UTC) - timedelta(seconds=60)
    await keep(services, 8, suspended=True)
    await services.database.run(keep_listed, [InstallationSeen(9, ACCOUNT, LOGIN, suspended=False)], asked_at)
    await services.database.run(keep_listed, [InstallationSeen(8, ACCOUNT, LOGIN, suspended=False)], asked_at)
    rows = await github.plane.sql("SELECT installation_id, suspended, removed FROM installations ORDER BY 1")
    assert [tuple(row.values()) for row in rows] == [(8, True, False), (9, False, False)]


async def test_an_installation_that_refuses_keeps_what_was_known_and_holds_up_no_other(github: GithubPlane) -> None:
    await list_now(github)
    github.sim.world.accounts.first.refuse("", frozenset({Refusal.IP_ALLOW_LIST}))
    assert await list_now(github) == 0
    assert await repos(github) == {"hello": INSTALLATION_ID}
    assert [row["kind"] for row in await github.plane.sql("SELECT * FROM forge_problems")] == ["ip_allow_list"]
