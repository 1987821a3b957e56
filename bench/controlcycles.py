"""The cycles of `make bench-control` in a process of their own: a lease is granted, renewed once as running, finished.

`leases` takes them through leases.py, on services opened as the control plane opens its own. `floor` is the same
statements in the same transactions by asyncpg on stock asyncio: what leases.py asks of the database is written down
while it takes one cycle, then asked again with the numbers of each machine in turn. No rule, no token, no Trio. Started
by control.py with the control plane's environment; arguments are which, and how many cycles. Prints one line of JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import asyncpg
import trio

from nimbus.cli.events import quiet_events
from nimbus.control_plane.app import open_services
from nimbus.control_plane.queue.leases import finish_lease, grant_lease, renew_lease
from nimbus.control_plane.services import Services
from nimbus.control_plane.settings import Settings
from nimbus.model.vm import Ending
from nimbus.runtime.postgres import Database, Row, Transaction
from nimbus.runtime.settings import read_settings
from nimbus.wire.leaseapi import FinishRequest, HeldState, LeaseRequest, RenewRequest

POOL_SIZE = 8  # of a control plane, as it is by default
AT_ONCE = POOL_SIZE  # cycles: a connection for each
WARM = 20 * AT_ONCE  # cycles before the clock runs: connections are made, statements prepared and planned
AGENTS = tuple(f"cycle-{number}" for number in range(AT_ONCE))
ROOM = LeaseRequest(wait_s=0.0, free_cpus=8, free_mem_mib=16384, free_slots=8, labels=("nimbus",))

Cycle = Callable[[int], Awaitable[bool]]  # by one of the agents; False: nothing is queued any more


# --- through leases.py -------------------------------------------------------------------------------------------


async def take_cycle(services: Services, number: int) -> bool:
    """One cycle as an agent causes it."""
    agent_id = AGENTS[number]
    grant = await grant_lease(services, agent_id, ROOM)
    if grant is None:
        return False
    await renew_lease(services, agent_id, RenewRequest(grant.key, HeldState.RUNNING))
    await finish_lease(services, agent_id, FinishRequest(grant.key, Ending.DONE, exit_code=0))
    return True


async def run_leases(settings: Settings, cycles: int) -> float:
    """Cycles a second."""
    async with open_services(settings, trio.Event()) as services:

        async def take(number: int) -> bool:
            return await take_cycle(services, number)

        await _run_all(take, WARM)
        began = time.monotonic()
        done = await _run_all(take, cycles)
        return done / (time.monotonic() - began)


async def _run_all(take: Cycle, cycles: int) -> int:
    left, done = iter(range(cycles)), itertools.count()

    async def work(number: int) -> None:
        while next(left, None) is not None and await take(number):
            next(done)

    async with trio.open_nursery() as nursery:
        for number in range(AT_ONCE):
            nursery.start_soon(work, number)
    return next(done)


# --- the floor ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Statement:
    """One that leases.py sent. Arguments that name the machine, the lease, the fence or the agent stand as words."""

    how: str  # the transaction's method
    sql: str
    args: tuple[object, ...]


@dataclass(frozen=True)
class Step:
    """Statements of one transaction; one that is not `begun` is a single statement and commits by itself."""

    begun: bool
    statements: list[Statement] = field(default_factory=list)


@dataclass(frozen=True)
class Slot:
    """The place of an argument that differs from cycle to cycle."""

    name: str


class Scribe:
    """A Database that writes down what it is asked. `names`: what stands for which value from now on."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.steps: list[Step] = []
        self.names: dict[object, Slot] = {}

    async def run(self, function: Callable[..., Awaitable[Any]], *args: object) -> Any:
        self.steps.append(Step(begun=True))

        async def listen(transaction: Transaction) -> Any:
            return await function(_Overheard(transaction, self), *args)

        return await self._database.run(listen)

    async def fetch(self, sql: str, *args: object) -> Sequence[Row]:
        self.steps.append(Step(begun=False))
        self.note("fetch", sql, args)
        return await self._database.fetch(sql, *args)

    def note(self, how: str, sql: str, args: tuple[object, ...]) -> None:
        """Write this statement to the last step."""
        named = tuple(self._name(arg) for arg in args)
        self.steps[-1].statements.append(Statement(how, sql, named))

    def _name(self, arg: object) -> object:
        # ids and fences here begin far above any other number (controlrows.py): nothing else is taken for one
        return self.names.get(arg, arg) if isinstance(arg, int | str) else arg


@dataclass(frozen=True)
class _Overheard:
    transaction: Transaction
    scribe: Scribe

    def __getattr__(self, how: str) -> Callable[..., Awaitable[Any]]:
        def ask(sql: str, *args: object) -> Awaitable[Any]:
            self.scribe.note(how, sql, args)
            answered: Awaitable[Any] = getattr(self.transaction, how)(sql, *args)
            return answered

        return ask


async def write_down(settings: Settings) -> list[Step]:
    """What one cycle asks of the database. The first step grants."""
    async with open_services(settings, trio.Event()) as services:
        await take_cycle(services, 0)  # the first grant of a database looks at its identity, too
        scribe = Scribe(services.database)
        overheard = replace(services, database=scribe)  # type: ignore[arg-type]
        scribe.names[AGENTS[0]] = Slot("agent_id")
        grant = await grant_lease(overheard, AGENTS[0], ROOM)
        if grant is None:
            sys.exit("nothing is queued")
        key = grant.key
        scribe.names[key.machine_id], scribe.names[key.fence] = Slot("machine_id"), Slot("fence")
        scribe.names[key.lease_id] = Slot("lease_id")
        await renew_lease(overheard, AGENTS[0], RenewRequest(key, HeldState.RUNNING))
        await finish_lease(overheard, AGENTS[0], FinishRequest(key, Ending.DONE, exit_code=0))
        return scribe.steps


async def run_floor(dsn: str, steps: Sequence[Step], cycles: int) -> float:
    """Cycles a second of the same statements."""
    pool = await asyncpg.create_pool(
        dsn,
        min_size=POOL_SIZE,
        max_size=POOL_SIZE,
        init=_read_jsonb,
        reset=_leave_as_is,
        server_settings={"jit": "off"},
    )
    async with pool:
        await _replay_all(pool, steps, WARM)
        began = time.monotonic()
        done = await _replay_all(pool, steps, cycles)
        return done / (time.monotonic() - began)


async def _replay_all(pool: asyncpg.Pool, steps: Sequence[Step], cycles: int) -> int:
    left, done = iter(range(cycles)), itertools.count()

    async def work(number: int) -> None:
        while next(left, None) is not None and await _replay(pool, steps, AGENTS[number]):
            next(done)

    await asyncio.gather(*(work(number) for number in range(AT_ONCE)))
    return next(done)


async def _replay(pool: asyncpg.Pool, steps: Sequence[Step], agent_id: str) -> bool:
    known: dict[str, object] = {"agent_id": agent_id}
    for step in steps:
        async with pool.acquire() as connection, connection.transaction() if step.begun else contextlib.nullcontext():
            for each in step.statements:
                args = (known[arg.name] if isinstance(arg, Slot) else arg for arg in each.args)
                rows = await getattr(connection, each.how)(each.sql, *args)
                if "lease_id" not in known:
                    (row,) = rows
                    if row["machine_id"] is None:
                        return False
                    known |= {name: row[name] for name in ("machine_id", "fence", "lease_id")}
    return True


async def _read_jsonb(connection: asyncpg.Connection) -> None:
    await connection.set_type_codec("jsonb", encoder=json.dumps, decoder=json.loads, schema="pg_catalog")


async def _leave_as_is(_connection: asyncpg.Connection) -> None:
    """As runtime/postgres.py has it: one round trip less."""


def main() -> int:
    which, cycles = sys.argv[1], int(sys.argv[2])
    quiet_events()
    settings = read_settings(Settings)
    if which == "leases":
        per_s = trio.run(run_leases, settings, cycles)
    else:
        steps = trio.run(write_down, settings)
        per_s = asyncio.run(run_floor(settings.database_url.get_secret_value(), steps, cycles))
    print(json.dumps({"per_s": per_s}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
