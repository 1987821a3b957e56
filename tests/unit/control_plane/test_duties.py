"""Duties against a real database: one holder at a time, followed when it dies, stopped when it is followed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio

from nimbus.control_plane.duties import Duty, DutyTerms, due_in_s, hold_duty, note_duties, sweep_duty
from nimbus.control_plane.services import Services
from nimbus.model.errors import Unavailable
from nimbus.runtime.postgres import Transaction
from tests.unit.control_plane.plane import open_services

pytestmark = pytest.mark.services
TTL_S = 3600.0


@pytest.fixture
async def services(database_dsn: str, redis_url: str) -> AsyncIterator[Services]:
    with trio.fail_after(60):
        async with open_services(database_dsn, redis_url) as opened:
            yield opened


async def sql(services: Services, text: str, *args: object) -> Any:
    async def run(transaction: Transaction) -> Any:
        return await transaction.fetchval(text, *args)

    return await services.database.run(run)


async def let_it_run_out(services: Services) -> None:
    await sql(services, "UPDATE duties SET until = clock_timestamp() - interval '1 s'")


async def test_one_process_at_a_time_holds_a_duty(services: Services) -> None:
    async with hold_duty(services, "poll", TTL_S) as first:
        assert first is not None
        async with hold_duty(services, "poll", TTL_S) as second:
            assert second is None
        async with hold_duty(services, "another", TTL_S) as other:
            assert other is not None


async def test_a_duty_that_was_done_is_free_at_once_but_due_only_after_its_interval(services: Services) -> None:
    async with hold_duty(services, "poll", TTL_S, every_s=1000.0):
        pass
    async with hold_duty(services, "poll", TTL_S, every_s=1000.0) as early:
        assert early is None
    assert 900 < await due_in_s(services, "poll", 1000.0) <= 1000
    await sql(services, "UPDATE duties SET done_at = done_at - interval '1001 s'")
    async with hold_duty(services, "poll", TTL_S, every_s=1000.0) as later:
        assert later is not None


@pytest.mark.parametrize("done", [True, False])
async def test_a_clock_that_was_set_back_keeps_nobody_from_a_duty(services: Services, done: bool) -> None:
    async with hold_duty(services, "poll", TTL_S, every_s=1000.0):
        pass
    await sql(
        services,
        "UPDATE duties SET until = now() + interval '1 day', done_at = CASE WHEN $1 THEN now() + interval '1 day' END",
        done,
    )
    async with hold_duty(services, "poll", TTL_S, every_s=1000.0) as duty:
        assert duty is not None


async def test_a_round_that_failed_is_not_done_and_may_be_taken_up_at_once(services: Services) -> None:
    async def fail() -> None:
        async with hold_duty(services, "poll", TTL_S, every_s=1000.0) as duty:
            assert duty is not None
            duty.notes = {"watermark": "too far"}
            raise Unavailable("GitHub is away")

    with pytest.raises(Unavailable, match="GitHub"):
        await fail()
    async with hold_duty(services, "poll", TTL_S, every_s=1000.0) as again:
        assert again is not None
        assert again.notes == {}


async def test_what_a_round_notes_is_known_to_the_next(services: Services) -> None:
    async with hold_duty(services, "poll", TTL_S) as duty:
        assert duty is not None
        duty.notes = {"watermark": "2026-11-21"}
    async with hold_duty(services, "poll", TTL_S) as duty:
        assert duty is not None
        assert duty.notes == {"watermark": "2026-11-21"}
    async with hold_duty(services, "poll", TTL_S) as duty:
        assert duty is not None
        assert duty.notes == {"watermark": "2026-11-21"}


async def test_a_holder_that_fell_silent_is_followed_and_stops_before_its_next_call(services: Services) -> None:
    calls = []
    async with hold_duty(services, "poll", TTL_S) as old:
        assert old is not None
        await let_it_run_out(services)
        async with hold_duty(services, "poll", TTL_S) as new:
            assert new is not None
            old.renewed_s -= TTL_S  # a third of its hold has passed
            await old.keep()
            calls.append("made in spite of the other")
    assert calls == []


async def test_a_holder_that_was_followed_leaves_no_notes_and_lets_go_of_nothing(services: Services) -> None:
    async with hold_duty(services, "poll", TTL_S) as old:
        assert old is not None
        old.notes = {"watermark": "old"}
        await let_it_run_out(services)
        new = hold_duty(services, "poll", TTL_S)
        taken = await new.__aenter__()
        assert taken is not None
    async with hold_duty(services, "poll", TTL_S) as third:
        assert third is None
    taken.notes = {"watermark": "new"}
    await new.__aexit__(None, None, None)
    async with hold_duty(services, "poll", TTL_S) as last:
        assert last is not None
        assert last.notes == {"watermark": "new"}


async def test_a_hold_is_renewed_while_its_holder_works(services: Services) -> None:
    async with hold_duty(services, "poll", TTL_S) as duty:
        assert duty is not None
        await sql(services, "UPDATE duties SET until = clock_timestamp() + interval '1 s'")
        await duty.keep()  # too early: no write
        assert await due_in_s(services, "poll", 0.0) < 2
        duty.renewed_s -= TTL_S / 2
        await duty.keep()
        assert await due_in_s(services, "poll", 0.0) > TTL_S / 2


async def test_a_holder_that_is_cancelled_lets_go(services: Services) -> None:
    with trio.CancelScope() as scope:
        async with hold_duty(services, "poll", TTL_S):
            scope.cancel()
            await trio.sleep_forever()
    async with hold_duty(services, "poll", TTL_S) as duty:
        assert duty is not None


async def test_two_sweepers_share_the_rounds_and_a_failure_ends_neither(services: Services) -> None:
    """No two rounds at once, and a round whose service was away is tried again."""
    running, rounds, together = set[str](), list[str](), []
    enough = trio.Event()

    async def work(duty: Duty) -> None:
        together.append(len(running))
        running.add(duty.holder)
        rounds.append(duty.holder)
        await trio.lowlevel.checkpoint()
        running.remove(duty.holder)
        if len(rounds) == 2:
            raise Unavailable("GitHub is away")
        if len(rounds) >= 5:
            enough.set()

    terms = DutyTerms("poll", every_s=0.01, ttl_s=TTL_S)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sweep_duty, services, terms, work)
        nursery.start_soon(sweep_duty, services, terms, work)
        await enough.wait()
        nursery.cancel_scope.cancel()
    assert set(together) == {0}


async def test_the_age_of_a_duty_is_a_metric(services: Services) -> None:
    async with hold_duty(services, "poll", TTL_S):
        pass
    await sql(services, "UPDATE duties SET done_at = done_at - interval '100 s'")
    await note_duties(services)
    age = services.metrics.registry.get_sample_value("nimbus_control_plane_duty_age_seconds", {"duty": "poll"})
    assert age is not None
    assert age >= 100
