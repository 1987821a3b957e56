"""Registered secrets as the pipeline keeps them: fresh while they can be, kept while they cannot, never in the way."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx2
import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock

from nimbus.logging_pipeline.ingest.needles import Needles
from nimbus.logging_pipeline.registered import RETRY_S, WAIT_S, MaskTerms, Registered
from nimbus.model.errors import Unavailable

VALUE = "correct-horse-battery"
TERMS = MaskTerms(refresh_s=30, patience_s=60)


@dataclass
class Plane:
    """A control plane that answers, does not, or hangs."""

    values: dict[int, list[str]] = field(default_factory=lambda: {1: [VALUE]})
    asked: list[str] = field(default_factory=list)
    status: int = 200
    away: bool = False
    hangs: bool = False

    async def ask(self, path: str) -> httpx2.Response:
        self.asked.append(path)
        await trio.lowlevel.checkpoint()
        if self.hangs:
            await trio.sleep(5)
        if self.away or self.hangs:
            raise Unavailable("the control plane does not answer")
        values = self.values.get(int(path.split("/")[4]), [])
        return httpx2.Response(self.status, content=json.dumps({"org_id": 1, "values": values}))


@dataclass
class Stage:
    """What a test works with."""

    plane: Plane
    registered: Registered
    missing: list[None]

    async def hides(self, text: str = VALUE, org_id: int = 1) -> bool:
        await self.registered.ensure(org_id)
        needles = self.registered.find(org_id)
        return needles is not None and bool(needles.find(text.encode()).spans)


async def build_here(values: tuple[str, ...]) -> Needles:
    """Without a thread: the clock of these tests would not wait for one."""
    await trio.lowlevel.checkpoint()
    return Needles(values)


@asynccontextmanager
async def open_stage(terms: MaskTerms = TERMS) -> AsyncIterator[Stage]:
    plane, missing = Plane(), list[None]()
    registered = Registered(plane, terms, lambda: missing.append(None), build_here)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(registered.run)
        yield Stage(plane, registered, missing)
        nursery.cancel_scope.cancel()


async def test_an_orgs_secrets_are_known_before_its_first_row_and_asked_for_once(autojump_clock: MockClock) -> None:
    async with open_stage() as stage, trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(stage.hides)
        assert await stage.hides()
        assert stage.plane.asked == ["/api/internal/orgs/1/masks"]
        assert not await stage.hides(org_id=2)


async def test_a_change_is_seen_after_the_interval_by_output_that_keeps_coming(autojump_clock: MockClock) -> None:
    async with open_stage() as stage:
        await stage.hides()
        stage.plane.values[1] = ["another-secret-of-it"]
        for _ in range(4):
            await trio.sleep(TERMS.refresh_s / 3)
            await stage.hides()
        await trio.sleep(1)
        assert await stage.hides("another-secret-of-it")
        assert not await stage.hides(VALUE)


async def test_what_was_registered_before_a_job_began_is_hidden_from_its_first_row_on(
    autojump_clock: MockClock,
) -> None:
    async with open_stage() as stage:
        await stage.hides()
        stage.plane.values[1] = ["another-secret-of-it"]
        await trio.sleep(3 * TERMS.refresh_s)
        assert await stage.hides("another-secret-of-it")


async def test_what_was_fetched_stays_while_the_control_plane_is_away_and_nobody_waits(
    autojump_clock: MockClock,
) -> None:
    async with open_stage() as stage:
        await stage.hides()
        stage.plane.hangs = True
        await trio.sleep(10 * TERMS.refresh_s)
        await stage.hides()  # the one that finds out
        for _ in range(100):
            began = trio.current_time()
            assert await stage.hides()
            assert trio.current_time() == began
            await trio.sleep(1)
        assert stage.missing == []
        assert len(stage.plane.asked) <= 2 + 100 / RETRY_S


async def test_output_of_an_org_never_heard_of_comes_again_and_then_goes_on_without_its_secrets(
    autojump_clock: MockClock,
) -> None:
    async with open_stage() as stage:
        stage.plane.away = True
        began = trio.current_time()
        refused = 0
        with capture_logs() as logs:
            while trio.current_time() - began < TERMS.patience_s:
                with pytest.raises(Unavailable) as told:
                    await stage.hides()
                refused += 1
                assert told.value.retry_after_s == RETRY_S
                await trio.sleep(told.value.retry_after_s)
            assert not await stage.hides()
            assert not await stage.hides()
        assert refused >= TERMS.patience_s / (RETRY_S + WAIT_S) - 1
        assert len(stage.missing) == 2
        assert [entry["org"] for entry in logs if entry["event"] == "masks.shapes_only"] == [1]

        stage.plane.away = False
        await trio.sleep(RETRY_S)
        await stage.hides()
        assert await stage.hides()


async def test_an_org_that_comes_back_in_another_outage_waits_as_long_as_in_the_first(
    autojump_clock: MockClock,
) -> None:
    async with open_stage() as stage:
        stage.plane.away = True
        for _ in range(2):
            with pytest.raises(Unavailable):
                await stage.hides()
            await trio.sleep(24 * 3600)
        assert stage.missing == []


async def test_with_no_patience_output_is_taken_at_once(autojump_clock: MockClock) -> None:
    async with open_stage(MaskTerms(patience_s=0)) as stage:
        stage.plane.away = True
        for _ in range(3):
            assert not await stage.hides()
            await trio.sleep(10)
        assert len(stage.missing) == 3


async def test_an_older_control_plane_has_nothing_registered(autojump_clock: MockClock) -> None:
    async with open_stage() as stage:
        stage.plane.status = 404
        assert not await stage.hides()
        assert stage.missing == []


async def test_no_value_is_in_the_log(autojump_clock: MockClock) -> None:
    async with open_stage() as stage:
        stage.plane.values[1] = [VALUE, 7]  # type: ignore[list-item]
        with capture_logs() as logs, pytest.raises(Unavailable):
            await stage.hides()
        assert [entry["event"] for entry in logs] == ["masks.not_fetched"]
        assert VALUE not in str(logs)
