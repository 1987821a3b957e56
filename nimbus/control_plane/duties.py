"""Duties: what costs calls to GitHub is done by one process at a time, however many of them run.

A duty is held until a time by Postgres' clock and renewed while its holder works; after a holder that died, another
takes it up. A holder looks before each of its calls (`keep`) whether it holds the duty yet, so two of them overlap by
one call at most: nothing that is done under a duty may depend on more. Never calls GitHub, knows no duty by name but
those of its callers: redelivery.py, polling.py, installations.py and registrations.py.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import structlog
import trio

from nimbus.control_plane.services import Services
from nimbus.model.errors import Fenced, Unavailable
from nimbus.runtime.postgres import Transaction, load_queries

log = structlog.get_logger()
_SQL = load_queries("nimbus.control_plane", "queries", "duties.sql")

RENEWALS = 3  # within one hold: two may fail before another process may take over
LET_GO_S = 5.0
MOMENT_S = 0.05  # the least time between two tries, however soon the database says that a round is due


class DutyLost(Fenced):
    """Another process holds the duty now: stop before the next call. `hold_duty` takes it in."""


@dataclass
class Duty:
    """One hold of a duty. `notes` is what the last completed round left; the body may replace it for the next."""

    services: Services
    name: str
    ttl_s: float
    notes: Mapping[str, Any] = field(default_factory=dict)
    holder: str = field(default_factory=lambda: uuid.uuid4().hex)
    renewed_s: float = field(default_factory=time.monotonic)

    async def keep(self) -> None:
        """Call it before each call to GitHub: renews where it is time; DutyLost where another took over."""
        now_s = time.monotonic()
        if now_s < self.renewed_s + self.ttl_s / RENEWALS:
            await trio.lowlevel.checkpoint()
            return
        if not await self.services.database.run(_write, "renew", self.name, self.holder, self.ttl_s):
            raise DutyLost(f"this process was too slow for {self.ttl_s:g} s")
        self.renewed_s = now_s


@asynccontextmanager
async def hold_duty(services: Services, name: str, ttl_s: float, every_s: float = 0.0) -> AsyncIterator[Duty | None]:
    """The duty for the body, or None where another holds it or its last round was done less than `every_s` ago.

    A body that returns has done its round; one that raises leaves it undone. DutyLost ends the body quietly.
    """
    duty = Duty(services, name, ttl_s)
    taken, notes = await services.database.run(_take, duty.name, duty.holder, ttl_s, every_s)
    if not taken:
        yield None
        return
    duty.notes = notes
    done = False
    try:
        yield duty
        if not await services.database.run(_write, "finish", name, duty.holder, dict(duty.notes)):
            raise DutyLost("another process took it up before the end")
        done = True
    except DutyLost as error:
        log.warning("duty.lost", duty=name, reason=str(error))
        done = True
    finally:
        if not done:
            with trio.move_on_after(LET_GO_S, shield=True):
                await _let_go(services, duty)


async def _take(
    transaction: Transaction, name: str, holder: str, ttl_s: float, every_s: float
) -> tuple[bool, Mapping[str, Any]]:
    row = await transaction.fetchrow(_SQL["take"], name, holder, ttl_s, every_s)
    return (False, {}) if row is None else (True, row["notes"] or {})


async def _write(transaction: Transaction, query: str, name: str, holder: str, value: object) -> bool:
    """Renew or finish: whether the duty was this holder's yet."""
    return await transaction.fetchval(_SQL[query], name, holder, value) is not None


async def _let_go(services: Services, duty: Duty) -> None:
    try:
        await services.database.run(_write_off, duty.name, duty.holder)
    except Unavailable as error:  # it runs out by itself
        log.warning("duty.not_let_go", duty=duty.name, reason=str(error))


async def _write_off(transaction: Transaction, name: str, holder: str) -> None:
    await transaction.execute(_SQL["let_go"], name, holder)


async def due_in_s(services: Services, name: str, every_s: float) -> float:
    """How long until another try to take the duty may succeed."""
    return await services.database.run(_due_in, name, every_s)


async def _due_in(transaction: Transaction, name: str, every_s: float) -> float:
    return float(await transaction.fetchval(_SQL["due_in"], name, every_s) or 0.0)


@dataclass(frozen=True)
class DutyTerms:
    """What a duty is called, how often a round of it is due and how long a silent holder keeps the others out."""

    name: str
    every_s: float
    ttl_s: float


async def sweep_duty(services: Services, terms: DutyTerms, work: Callable[[Duty], Awaitable[object]]) -> None:
    """Do a round whenever one is due, here or in another process, until cancelled.

    What is away (GitHub, the database) is tried again at the next interval; anything else is a bug and escapes.
    """
    while True:
        try:
            async with hold_duty(services, terms.name, terms.ttl_s, terms.every_s) as duty:
                if duty is not None:
                    await work(duty)
            wait_s = await due_in_s(services, terms.name, terms.every_s)
        except Unavailable as error:
            log.warning("duty.postponed", duty=terms.name, reason=str(error))
            wait_s = terms.every_s  # the client for GitHub knows by itself before when it may not call
        # never longer than until the next round, whatever a clock says that may have been set back
        await trio.sleep(max(min(wait_s, terms.every_s), MOMENT_S))


async def note_duties(services: Services) -> None:
    """Bring the metric of the duties' ages up to date: seconds since each was last done, by any process."""
    for name, age_s in (await services.database.run(_ages)).items():
        services.metrics.duty_age.labels(name).set(age_s)


async def _ages(transaction: Transaction) -> dict[str, float]:
    return {row["name"]: row["age_s"] for row in await transaction.fetch(_SQL["ages"])}
