"""The table of job output, through clickhouse-connect in threads: insert, ask what is there, read a page.

Statements are fixed text with typed parameters; nothing of a tenant ever becomes SQL. The same code talks to a
real server and to the embedded engine. Called by `writer` (inserts) and by the read routes; every failure is
Unavailable, without the server's words (they may hold addresses or credentials).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import urlsplit

import clickhouse_connect
import msgspec
import structlog
import trio
from clickhouse_connect.driver import httputil
from urllib3.exceptions import HTTPError

from nimbus.logging_pipeline.engine.child import Endpoint
from nimbus.logging_pipeline.rows import Chunk, Place, ReadRow, ReadScope, Source
from nimbus.logging_pipeline.store.block import COLUMNS, FORMAT, name_block, render_block, split_partitions
from nimbus.logging_pipeline.store.bounds import ReadBounds
from nimbus.logging_pipeline.store.filters import EVERYTHING, RowFilter, Select
from nimbus.logging_pipeline.store.pages import PagePlan, PageRow, plan_page, plan_page_before, read_row
from nimbus.logging_pipeline.store.recall import Kept, recall, recall_steps
from nimbus.logging_pipeline.store.trouble import StoreHealth, Trouble, diagnose
from nimbus.model.errors import Refused, Unavailable
from nimbus.runtime.threads import ThreadLane

_CONNECT_S = 3
_WIDTH = 4  # one for the writer, the others for what is short: pages, follows, what the writer asks
_HEAVY_WIDTH = 2  # searches and counts have connections of their own, so that whatever is short never waits for them
_FAILURES = (clickhouse_connect.driver.exceptions.Error, HTTPError, OSError)
T = TypeVar("T")
_log = structlog.get_logger()


class LogTable:
    """One table on one server. The server's address may change while the engine is started anew."""

    def __init__(self, endpoint: Callable[[], Endpoint | None], database: str, table: str, read_s: float) -> None:
        self._endpoint = endpoint
        self.name = f"{database}.{table}"
        self.health = StoreHealth()
        self._read_s = read_s
        self._lane = ThreadLane("clickhouse", _WIDTH)
        self._heavy_lane = ThreadLane("clickhouse-heavy", _HEAVY_WIDTH)
        self._connecting = trio.Lock()
        self._client: Any = None
        self._connected: Endpoint | None = None

    async def insert(self, chunks: Sequence[Chunk]) -> None:
        """Store rows: all of them are durable when this returns; Unavailable where that is not certain."""

        def insert(client: Any) -> bool:
            return all(_insert_block(client, self.name, part) for part in split_partitions(chunks))

        # a server can answer 200 and fail behind it: only its own count of rows says that they are in
        if not await self._call(insert, wrote=True):
            self.health.note(Trouble.BROKEN, wrote=True)
            raise Unavailable("the log store did not confirm an insert: retry", retry_after_s=1.0)

    async def recall(self, machines: Collection[tuple[int, int]]) -> dict[Source, Kept]:
        """What is stored of these machines, each an org and its machine."""
        return await recall(self, machines)

    async def recall_steps(self, firsts: Mapping[Source, int]) -> dict[Source, int]:
        """The step that each of these had reached before the row of this number."""
        return await recall_steps(self, firsts)

    async def page(
        self,
        scope: ReadScope,
        places: Sequence[Place],
        limit: int,
        wanted: RowFilter = EVERYTHING,
        bounds: ReadBounds | None = None,
    ) -> list[ReadRow]:
        """The next rows in this scope beyond the places read so far, in their order; fewer where there are no more."""
        return await self._page(plan_page(self.name, scope, places, limit, wanted), bounds)

    async def page_before(
        self, scope: ReadScope, place: Place | None, limit: int, wanted: RowFilter, bounds: ReadBounds
    ) -> list[ReadRow]:
        """The last rows in this scope, or those before a place, the last of them first."""
        return await self._page(plan_page_before(self.name, scope, place, limit, wanted), bounds)

    async def _page(self, plan: PagePlan, bounds: ReadBounds | None) -> list[ReadRow]:
        while True:
            rows = plan.fill(await self.read(plan.select, PageRow, bounds))
            if rows is not None:
                return [read_row(each) for each in rows]
            plan = plan.look_further()

    async def rows(self, select: Select, bounds: ReadBounds | None = None) -> list[ReadRow]:
        """The rows of output that a planned statement gives."""
        return [read_row(told) for told in await self.read(select, PageRow, bounds)]

    async def read(self, select: Select, kind: type[T], bounds: ReadBounds | None = None) -> list[T]:
        """What a planned statement gives, each row as a `kind` of msgspec; Refused where its caller must narrow it."""
        body = await self._fetch(select, bounds)
        try:
            return msgspec.json.Decoder(kind, strict=False).decode_lines(body)
        except ValueError as error:
            raise Unavailable("the log store gave an answer that cannot be read") from error

    async def org_of(self, machine_id: int) -> int | None:
        """Whose machine it is, for operators whose token names no org."""
        found = await self.select(
            f"SELECT org_id FROM {self.name} WHERE machine_id = {{machine:UInt64}} LIMIT 1",  # noqa: S608 - checked names
            {"machine": machine_id},
        )
        return int(found[0]["org_id"]) if found else None

    async def command(self, sql: str) -> None:
        """One statement of our own (migrations)."""
        await self._call(lambda client: client.command(sql))

    async def rows_of(self, sql: str) -> list[dict[str, Any]]:
        """The result of one statement of our own (migrations)."""
        return await self.select(sql, {})

    async def ping(self) -> None:
        """Unavailable where the server does not answer."""
        await self.select("SELECT 1 AS one", {})

    async def close(self) -> None:
        await self._lane.run(self._disconnect)

    async def select(self, sql: str, parameters: Mapping[str, object]) -> list[dict[str, Any]]:
        """The rows of a statement of ours."""
        body = await self._fetch(Select(sql, dict(parameters)), None)
        try:
            return [json.loads(line) for line in body.splitlines()]
        except ValueError as error:
            raise Unavailable("the log store gave an answer that cannot be read") from error

    async def _fetch(self, wanted: Select, bounds: ReadBounds | None) -> bytes:
        limits = bounds.settings if bounds else (f"max_execution_time = {max(1, self._read_s):.3f}",)
        held = f"{wanted.sql} SETTINGS {', '.join([*limits, *wanted.settings])}"

        def select(client: Any) -> bytes:
            # whole answers only: an error in the middle of a stream must not look like the end of it
            body: bytes = client.raw_query(
                held, parameters=wanted.parameters, settings={"wait_end_of_query": 1}, fmt="JSONEachRow"
            )
            return body

        return await self._call(select, bounds=bounds)

    async def _call(self, function: Callable[[Any], T], *, wrote: bool = False, bounds: ReadBounds | None = None) -> T:
        client = await self._connect()
        lane = self._heavy_lane if bounds is not None and bounds.is_heavy else self._lane
        try:
            answer = await lane.run(function, client)
        except _FAILURES as error:
            code = getattr(error, "code", None)
            excess = None if bounds is None else bounds.judge(code)
            if excess is not None:  # the caller asked for too much: no trouble of the store's
                raise excess from None
            _log.warning("clickhouse.failed", kind=type(error).__name__, code=code)
            self.health.note(diagnose(error), wrote=wrote)
            raise Unavailable("the log store is away or refuses: retry", retry_after_s=1.0) from None
        self.health.note_good(wrote=wrote)
        return answer

    async def _connect(self) -> Any:
        endpoint = self._endpoint()
        if endpoint is None:
            self.health.note(Trouble.AWAY, wrote=False)
            raise Unavailable("the log store's engine is being started: retry", retry_after_s=1.0)
        if endpoint is self._connected:
            return self._client
        async with self._connecting:
            if endpoint is not self._connected:
                try:
                    self._client = await self._lane.run(self._reconnect, endpoint)
                except _FAILURES as error:
                    _log.warning("clickhouse.no_connection", kind=type(error).__name__)
                    self.health.note(diagnose(error), wrote=False)
                    raise Unavailable("the log store cannot be reached: retry", retry_after_s=1.0) from None
                self._connected = endpoint
            return self._client

    def _reconnect(self, endpoint: Endpoint) -> Any:
        self._disconnect()
        parts = urlsplit(endpoint.url)
        if parts.scheme not in ("http", "https") or parts.hostname is None:
            raise Refused("NIMBUS_CLICKHOUSE_URL must be an http(s) URL")
        return clickhouse_connect.get_client(
            interface=parts.scheme,
            host=parts.hostname,
            port=parts.port or (8443 if parts.scheme == "https" else 8123),
            username=endpoint.username,
            password=endpoint.password,
            connect_timeout=_CONNECT_S,
            send_receive_timeout=math.ceil(self._read_s),
            autogenerate_session_id=False,  # one client serves several threads
            query_retries=0,  # the callers know what may be repeated
            pool_mgr=httputil.get_pool_manager(maxsize=_WIDTH + _HEAVY_WIDTH, num_pools=1),
            show_clickhouse_errors="scrub",  # for their codes: the words go nowhere
        )

    def _disconnect(self) -> None:
        client, self._client, self._connected = self._client, None, None
        if client is not None:
            client.close_connections()
            client.close()


def _insert_block(client: Any, table: str, chunks: Sequence[Chunk]) -> bool:
    """True where the server counted as many rows as were sent."""
    # a retry of the very same rows is dropped by the server, should an earlier try have arrived after all
    settings = {"async_insert": 0, "insert_deduplication_token": name_block(chunks), "wait_end_of_query": 1}
    told = client.raw_insert(table, list(COLUMNS), render_block(chunks), settings=settings, fmt=FORMAT)
    return int(told.written_rows) == sum(len(chunk.rows) for chunk in chunks)
