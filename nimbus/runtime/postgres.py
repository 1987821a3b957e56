"""PostgreSQL for Trio: asyncpg on trio-asyncio, and all of that bridge in this one file.

A transaction is one asyncio function, run whole: cancellation waits at the door, and from begin to commit a
shield with a limit stands around it. Never used by the host agent (its imports forbid it). Called by rooms that
have a database; they write asyncio functions that take a `Transaction` first, and never import asyncpg.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from importlib import resources
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, cast

import asyncpg
import structlog
import trio
import trio_asyncio

from nimbus.model.errors import Unavailable

log = structlog.get_logger()
T = TypeVar("T")
P = ParamSpec("P")
Row = Mapping[str, Any]
DatabaseRefusal = asyncpg.PostgresError  # whatever a server may say of a statement
UniqueViolation = asyncpg.UniqueViolationError
ForeignKeyViolation = asyncpg.ForeignKeyViolationError

TRANSACTION_S = 15.0  # from begin to commit; ours take milliseconds, so this is a database in trouble
CONNECT_S = 5.0
CLOSE_S = 5.0
ATTEMPTS = 5  # of a transaction that lost a deadlock, a serialisation conflict or its prepared statements
_AWAY = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.TooManyConnectionsError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.QueryCanceledError,
    asyncpg.ReadOnlySQLTransactionError,  # a replica that is not promoted yet
)
_AGAIN = (
    asyncpg.DeadlockDetectedError,
    asyncpg.SerializationError,
    # a newer Nimbus migrated the database under us: what we had prepared is prepared anew
    asyncpg.InvalidCachedStatementError,
    asyncpg.OutdatedSchemaCacheError,
)
_QUERY_HEADING = re.compile(r"^-- name: ([a-z][a-z0-9_]*)\s*$", re.MULTILINE)


class Transaction(Protocol):
    """What a transaction function gets. jsonb columns are Python values on both sides."""

    async def execute(self, sql: str, *args: object) -> str: ...
    async def fetch(self, sql: str, *args: object) -> Sequence[Row]: ...
    async def fetchrow(self, sql: str, *args: object) -> Row | None: ...
    async def fetchval(self, sql: str, *args: object) -> Any: ...


@dataclass(frozen=True)
class Bridge:
    """The asyncio loop beside Trio; passed on explicitly because server tasks do not inherit the context."""

    loop: trio_asyncio.BaseTrioEventLoop

    async def call(self, function: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Await an asyncio function from Trio. Cancelling waits for the asyncio side to finish."""
        return cast("T", await trio_asyncio.aio_as_trio(function, loop=self.loop)(*args, **kwargs))


class Database:
    """A pool of connections. Get one by `open_database`."""

    def __init__(self, bridge: Bridge, pool: asyncpg.Pool, pool_size: int) -> None:
        self.bridge = bridge
        self._pool = pool
        self._slots = trio.CapacityLimiter(pool_size)  # the queue stands on Trio's side, where it can be cancelled

    async def run(
        self, function: Callable[Concatenate[Transaction, P], Awaitable[T]], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run one transaction: `await function(transaction, ...)`, committed when it returns.

        It may be run again after a deadlock, so it must have no effect but the database's. Unavailable where
        the database is away or too slow; then nobody knows whether it committed, so writes carry their own key.
        """
        async with self._slots:
            with trio.move_on_after(TRANSACTION_S, shield=True):
                return await self.bridge.call(partial(self._transact, _begin, function, *args, **kwargs))
        raise Unavailable("the database took too long")

    async def run_long(
        self,
        limit_s: float,
        function: Callable[Concatenate[Transaction, P], Awaitable[T]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """The same with a limit of its own, for what no request waits for: a migration of a large database."""

        async def in_time(transaction: Transaction) -> T:
            await transaction.execute(f"SET LOCAL statement_timeout = {round(limit_s * 1000)}")
            return await function(transaction, *args, **kwargs)

        async with self._slots:
            with trio.move_on_after(limit_s, shield=True):
                return await self.bridge.call(partial(self._transact, _begin, in_time))
        raise Unavailable("the database took too long")

    async def fetch(self, sql: str, *args: object) -> Sequence[Row]:
        """The rows of one statement, which is a transaction by itself: one round trip where `run` takes three."""
        async with self._slots:
            with trio.move_on_after(TRANSACTION_S, shield=True):
                return await self.bridge.call(partial(self._transact, _begin_nothing, _fetch, sql, *args))
        raise Unavailable("the database took too long")

    async def _transact(
        self,
        begin: Callable[[asyncpg.Connection], AbstractAsyncContextManager[object]],
        function: Callable[Concatenate[Transaction, P], Awaitable[T]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        try:
            for _ in range(ATTEMPTS - 1):
                try:
                    return await self._attempt(begin, function, *args, **kwargs)
                except _AGAIN:
                    continue
            return await self._attempt(begin, function, *args, **kwargs)
        except (*_AWAY, *_AGAIN) as error:
            raise Unavailable(f"the database is away ({type(error).__name__})") from error

    async def _attempt(
        self,
        begin: Callable[[asyncpg.Connection], AbstractAsyncContextManager[object]],
        function: Callable[Concatenate[Transaction, P], Awaitable[T]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        # no time limit of its own: our slots are as many as its connections, and connecting has one
        async with self._pool.acquire() as connection:
            try:
                async with begin(connection):
                    return await function(connection, *args, **kwargs)
            except asyncpg.InternalClientError as error:
                # the server's last words came while nobody asked, and the end of the connection did not yet
                connection.terminate()
                raise ConnectionResetError from error
            except asyncpg.InterfaceError as error:
                if _is_gone(connection):  # else it is a wrong call: a bug, to be seen as one
                    raise ConnectionResetError from error
                raise


def _begin(connection: asyncpg.Connection) -> AbstractAsyncContextManager[object]:
    return cast("AbstractAsyncContextManager[object]", connection.transaction())


def _begin_nothing(_connection: asyncpg.Connection) -> AbstractAsyncContextManager[object]:
    return nullcontext()


async def _fetch(transaction: Transaction, sql: str, *args: object) -> Sequence[Row]:
    return await transaction.fetch(sql, *args)


def _is_gone(connection: asyncpg.Connection) -> bool:
    try:
        return bool(connection.is_closed())
    except asyncpg.InterfaceError:  # the pool has taken a broken connection back under our hands
        return True


@asynccontextmanager
async def open_bridge() -> AsyncIterator[Bridge]:
    """The asyncio loop of this process; open it once, around everything that uses it."""
    try:
        async with trio_asyncio.open_loop() as loop:
            loop.set_exception_handler(_take_in)
            yield Bridge(loop)
    except BaseExceptionGroup as group:
        error = _without_layers(group)
        raise error from error.__cause__


def _take_in(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """What a driver's connection died of while nobody waited for it ends no process; all else that escapes does."""
    error = context.get("exception")
    if isinstance(error, (*_AWAY, asyncpg.InternalClientError)):
        log.info("database.connection_lost", reason=type(error).__name__)
    else:
        loop.default_exception_handler(context)


def _without_layers(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The body's own error: open_loop wraps it in the groups of its two nurseries."""
    error: BaseException = group
    for _ in range(2):
        if isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
    return error


@asynccontextmanager
async def open_database(dsn: str, pool_size: int = 8, bridge: Bridge | None = None) -> AsyncIterator[Database]:
    """A database for as long as the body runs, on an asyncio loop of its own, or on that of another database."""
    async with open_bridge() if bridge is None else nullcontext(bridge) as beside:
        pool = await _open_pool(beside, dsn, pool_size)
        try:
            yield Database(beside, pool, pool_size)
        finally:
            with trio.move_on_after(CLOSE_S, shield=True) as scope:
                await beside.call(pool.close)
            if scope.cancelled_caught:
                pool.terminate()


async def _open_pool(bridge: Bridge, dsn: str, pool_size: int) -> asyncpg.Pool:
    async def connect() -> asyncpg.Pool:
        return await asyncpg.create_pool(
            dsn,
            min_size=1,
            max_size=pool_size,
            timeout=CONNECT_S,
            init=_prepare_connection,
            reset=_leave_as_is,
            server_settings={
                "application_name": "nimbus",
                "statement_timeout": str(round(TRANSACTION_S * 1000)),
                "idle_in_transaction_session_timeout": str(round(2 * TRANSACTION_S * 1000)),
                "timezone": "UTC",
                "jit": "off",  # compiling takes longer than any statement of ours runs
            },
        )

    try:
        return await bridge.call(connect)
    except _AWAY as error:
        raise Unavailable(f"the database cannot be reached ({type(error).__name__}): is it running?") from error
    except asyncpg.PostgresError as error:
        raise Unavailable(f"the database refuses us ({type(error).__name__}): check NIMBUS_DATABASE_URL") from error


async def _prepare_connection(connection: asyncpg.Connection) -> None:
    await connection.set_type_codec("jsonb", encoder=json.dumps, decoder=json.loads, schema="pg_catalog")


async def _leave_as_is(connection: asyncpg.Connection) -> None:
    """Nothing of ours outlives a transaction in a session: to reset it would cost a round trip after each one."""


def load_queries(package: str, *path: str) -> Mapping[str, str]:
    """The named queries of a .sql file inside a package: each stands under a line `-- name: its_name`."""
    text = resources.files(package).joinpath(*path).read_text(encoding="utf-8")
    parts = _QUERY_HEADING.split(text)[1:]
    names, bodies = parts[::2], [body.strip() for body in parts[1::2]]
    if len(set(names)) != len(names) or not all(bodies):
        raise ValueError(f"{'/'.join(path)}: a query's name is used twice or its body is missing")
    return dict(zip(names, bodies, strict=True))
