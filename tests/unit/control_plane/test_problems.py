"""What GitHub refuses: kept by installation, repository and task, told in words, and gone when a call succeeds."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from nimbus.control_plane.orgs.problems import (
    STALE_S,
    Blocked,
    Place,
    Task,
    check_blocked,
    clear_problem,
    count_problems,
    forget_stale,
    note_problem,
    retry_now,
)
from nimbus.control_plane.services import Services
from nimbus.model.forge import Problem, ProblemKind
from nimbus.runtime.postgres import Transaction
from tests.unit.control_plane.plane import Plane, open_plane

pytestmark = pytest.mark.services

PLACE = Place(7, "octo-org", "hello")
SUSPENDED = Problem(ProblemKind.SUSPENDED, "This installation has been suspended", 300.0)
DISABLED = Problem(ProblemKind.RUNNERS_DISABLED, "runners are disabled", 300.0)
AWAY = Problem(ProblemKind.OUTAGE, "status 502", 5.0)


@pytest.fixture
async def plane(database_dsn: str, redis_url: str) -> AsyncIterator[Plane]:
    async with open_plane(database_dsn, redis_url) as running:
        yield running


async def note(services: Services, problem: Problem, repo: str | None = "hello", task: Task = Task.REGISTER) -> None:
    await services.database.run(note_problem, 7, repo, problem, task=task)


async def kept(plane: Plane) -> list[tuple[str, str, str]]:
    rows = await plane.sql("SELECT scope, task, kind FROM forge_problems ORDER BY scope, task")
    return [(row["scope"], row["task"], row["kind"]) for row in rows]


async def test_what_meets_every_call_is_kept_for_the_whole_installation_and_the_rest_where_it_was_refused(
    plane: Plane,
) -> None:
    await note(plane.services, SUSPENDED)
    await note(plane.services, DISABLED)
    await note(plane.services, Problem(ProblemKind.NO_PERMISSION, "no", 300.0), task=Task.READ)
    assert await kept(plane) == [
        ("", "any", "suspended"), ("hello", "read", "no_permission"), ("hello", "register", "runners_disabled"),
    ]  # fmt: skip


async def test_a_read_that_we_hold_back_ourselves_is_no_problem_of_anybodys(plane: Plane) -> None:
    held_back = Problem(ProblemKind.RATE_LIMIT, "450 of 5000 calls are left in this hour", 1800.0, ours=True)
    await note(plane.services, held_back, task=Task.READ)
    assert await kept(plane) == []
    await note(plane.services, held_back, task=Task.REGISTER)
    assert await kept(plane) == [("", "any", "rate_limit")]


async def test_a_problem_that_stays_keeps_its_beginning_and_another_kind_begins_anew(plane: Plane) -> None:
    async def since() -> object:
        [row] = await plane.sql("SELECT since FROM forge_problems")
        return row["since"]

    await note(plane.services, SUSPENDED)
    first = await since()
    await note(plane.services, SUSPENDED)
    assert await since() == first
    await note(plane.services, AWAY)
    assert await since() != first


async def test_a_call_that_succeeds_ends_its_own_tasks_problems_there_and_the_whole_installations(
    plane: Plane,
) -> None:
    await note(plane.services, SUSPENDED)
    await note(plane.services, DISABLED)
    await note(plane.services, DISABLED, repo="web")
    await plane.services.database.run(clear_problem, 7, "hello")
    assert await kept(plane) == [("hello", "register", "runners_disabled"), ("web", "register", "runners_disabled")]
    await plane.services.database.run(clear_problem, 7, "hello", task=Task.REGISTER)
    assert await kept(plane) == [("web", "register", "runners_disabled")]


async def test_only_what_keeps_runners_from_registering_blocks_and_it_names_who_must_act(plane: Plane) -> None:
    check = plane.services.database.run
    await note(plane.services, Problem(ProblemKind.NO_PERMISSION, "no", 300.0), task=Task.READ)
    await check(check_blocked, PLACE)
    await note(plane.services, DISABLED)
    with pytest.raises(Blocked, match=r"administrator of octo-org must allow them.*runners are disabled") as caught:
        await check(check_blocked, PLACE)
    assert 290 < caught.value.retry_after_s <= 300
    await check(check_blocked, Place(7, "octo-org", "web"))
    await check(check_blocked, Place(8, "else", "hello"))


async def test_a_problem_blocks_until_its_time_or_until_an_owner_acted(plane: Plane) -> None:
    await note(plane.services, SUSPENDED)
    with pytest.raises(Blocked):
        await plane.services.database.run(check_blocked, PLACE)
    await plane.services.database.run(retry_now, 7)
    await plane.services.database.run(check_blocked, PLACE)
    assert len(await kept(plane)) == 1


async def test_a_problem_that_nobody_met_again_for_long_is_forgotten(plane: Plane) -> None:
    await note(plane.services, DISABLED)
    await note(plane.services, SUSPENDED)
    age = "UPDATE forge_problems SET retry_at = clock_timestamp() - make_interval(secs => $1) WHERE scope = 'hello'"
    await plane.sql(age, STALE_S + 1)
    await plane.services.database.run(forget_stale)
    assert await kept(plane) == [("", "any", "suspended")]


async def test_the_metric_counts_problems_by_kind_and_falls_back_to_none(plane: Plane) -> None:
    await note(plane.services, DISABLED)
    await note(plane.services, DISABLED, repo="web")
    await count_problems(plane.services)
    assert (
        'nimbus_control_plane_forge_problems{kind="runners_disabled"} 2.0' in plane.services.metrics.render().decode()
    )

    async def clear(transaction: Transaction) -> None:
        await transaction.execute("DELETE FROM forge_problems")

    await plane.services.database.run(clear)
    await count_problems(plane.services)
    assert (
        'nimbus_control_plane_forge_problems{kind="runners_disabled"} 0.0' in plane.services.metrics.render().decode()
    )
