"""A VM's output on its way to the logging pipeline: into the disk spool first, then out in numbered rows.

`write` returns once the bytes are in the spool, which is what lets the guest forget them. Shipping never
holds a job back and never loses silently: beyond the spool's cap output is dropped and a row says how much.
Memory stays bounded whatever the job prints. Called by machines.py, once per VM.
"""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import structlog
import trio

from nimbus.host_agent.guestsession import OutputSink
from nimbus.host_agent.lines import LineSplitter, LogRow
from nimbus.host_agent.logspool import LogSpool, open_spool
from nimbus.host_agent.spool import DEFAULT_CAP_BYTES, Position
from nimbus.model.errors import NimbusError, Refused, Unavailable
from nimbus.runtime.http import check_status, mapped_http_errors, open_http
from nimbus.runtime.retry import Backoff

QUIET_S = 0.2  # an unfinished line (a prompt, a progress bar) is told after this long without more
BATCH_S = 0.1  # rows wait at most this long for company
BATCH_BYTES = 512 * 1024
FLUSH_S = 10.0  # how long a machine's end may wait for its last rows to arrive
_SERVICE = "the logging pipeline"
_POST_S = 30.0
_LONGEST_PAUSE_S = 10.0
_ROW_OVERHEAD_BYTES = 80  # the JSON around a message
log = structlog.get_logger()


@asynccontextmanager
async def open_log_shipping(
    folder: Path, url: str | None, token: str | None, *, cap_bytes: int = DEFAULT_CAP_BYTES, flush_s: float = FLUSH_S
) -> AsyncIterator[OutputSink]:
    """A sink whose bytes arrive at the pipeline at `url`; leaving it waits up to `flush_s` for the last of them.

    Without a URL or a token the output goes nowhere, and the agent's log says so once.
    """
    if url is None or token is None:
        log.warning("logs.not_shipped", why="no logging pipeline is configured (NIMBUS_LOG_SINK_URL)")
        yield _Discard()
        return
    target = ingest_url(url)
    async with open_spool(folder, cap_bytes) as spool, open_http(token=token) as client, trio.open_nursery() as nursery:
        arrived = trio.Event()
        shipping = await nursery.start(_ship_until_arrived, spool, client, target, arrived)
        try:
            yield spool
        finally:
            with trio.move_on_after(flush_s, shield=True):
                if await spool.finish():
                    await arrived.wait()
            if not arrived.is_set():
                log.warning("logs.left_behind", bytes=spool.stored_bytes)
            shipping.cancel()


class _Discard:
    """A sink for hosts without a pipeline."""

    async def write(self, stream: str, offset: int, data: bytes) -> None:
        """Take the bytes and forget them."""


def ingest_url(url: str) -> str:
    """The ingest endpoint: NIMBUS_LOG_SINK_URL may name it or the service's root."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise Refused("the logging pipeline's address must be an http(s) URL: check NIMBUS_LOG_SINK_URL")
    path = parts.path.rstrip("/")
    return parts._replace(path=path if path.endswith("/ingest") else f"{path}/ingest", query="", fragment="").geturl()


async def _ship_until_arrived(
    spool: LogSpool,
    client: httpx2.AsyncClient,
    url: str,
    arrived: trio.Event,
    *,
    task_status: trio.TaskStatus[trio.CancelScope] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Ship under a shield: a cancelled machine's last rows are wanted too. Its opener ends it, within `flush_s`."""
    with trio.CancelScope(shield=True) as scope:
        task_status.started(scope)
        try:
            await ship_logs(spool, client, url)
        except NimbusError as error:  # the job must not end because its output is refused; the operator is told
            log.error("logs.refused", why=str(error))
            spool.abandon()
        arrived.set()


async def ship_logs(spool: LogSpool, client: httpx2.AsyncClient, url: str) -> None:
    """Send rows until the end row has arrived. Refused (401, 403, 400) ends it; nothing else does.

    `client` carries the machine token. Rows are numbered from the spool, so a second shipper after a crash
    repeats a row only under its old number, which the pipeline passes over.
    """
    splitter, position = LineSplitter(spool.shipped), spool.shipped.position
    while not splitter.ended:
        rows, position = await _next_rows(spool, splitter, position)
        for batch in plan_batches(rows):
            await _deliver(client, url, batch)
        await spool.advance(splitter.checkpoint(position))


async def _next_rows(spool: LogSpool, splitter: LineSplitter, position: Position) -> tuple[list[LogRow], Position]:
    """At least one row, then what comes within BATCH_S, up to about BATCH_BYTES."""
    rows: list[LogRow] = []
    size = 0
    deadline = math.inf
    while size < BATCH_BYTES and not splitter.ended:
        grown = spool.grown
        records, position = await spool.read(position)
        for record in records:
            fresh = list(splitter.feed(record))
            size += sum(len(row.message) + _ROW_OVERHEAD_BYTES for row in fresh)
            rows += fresh
        if rows and deadline == math.inf:
            deadline = trio.current_time() + BATCH_S
        if records:
            if trio.current_time() >= deadline:
                break
            continue
        quiet = trio.current_time() + (QUIET_S if splitter.open_lines else math.inf)
        with trio.move_on_at(min(quiet, deadline)):
            await grown.wait()
            continue
        if rows:
            break
        await spool.cut(list(splitter.open_lines))
    return rows, position


def plan_batches(rows: list[LogRow]) -> Iterator[list[LogRow]]:
    """Rows in batches of about BATCH_BYTES, never an empty one."""
    batch: list[LogRow] = []
    size = 0
    for row in rows:
        batch.append(row)
        size += len(row.message) + _ROW_OVERHEAD_BYTES  # characters: at worst six bytes each, within what is taken
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def render_batch(rows: list[LogRow]) -> bytes:
    """The body of one ingest request."""
    told = [{"seq": row.seq, "ts_ms": row.ts_ms, "stream": row.stream, "message": row.message} for row in rows]
    return json.dumps({"rows": told}, ensure_ascii=False, separators=(",", ":")).encode()


async def _deliver(client: httpx2.AsyncClient, url: str, rows: list[LogRow]) -> None:
    """Post one batch until it is stored; back off while the pipeline is away."""
    body = render_batch(rows)
    delays = Backoff(base_s=0.2, max_s=_LONGEST_PAUSE_S).delays_s()
    while True:
        try:
            reply = await _post(client, url, body)
        except Unavailable as error:
            log.warning("logs.waiting", why=str(error))
            await trio.sleep(max(next(delays), min(error.retry_after_s, _LONGEST_PAUSE_S)))
            continue
        refused = reply.get("refused")
        if refused:
            log.warning("logs.rows_refused", rows=len(refused) if isinstance(refused, list) else 0)
        return


async def _post(client: httpx2.AsyncClient, url: str, body: bytes) -> dict[str, object]:
    """The pipeline's answer; Unavailable with the pause that it asked for, none where it asked for none."""
    with trio.move_on_after(_POST_S):
        try:
            with mapped_http_errors(_SERVICE):
                response = await client.post(url, content=body, headers={"Content-Type": "application/json"})
        except Unavailable as error:  # nobody there to ask for a pause
            raise Unavailable(str(error), 0.0) from error
        if response.status_code >= 500 and "retry-after" not in response.headers:
            raise Unavailable(f"{_SERVICE} answered {response.status_code}", 0.0)
        check_status(response, _SERVICE)
        reply = response.json() if response.headers.get("content-type", "").startswith("application/json") else None
        if not isinstance(reply, dict):
            raise Refused("the logging pipeline's answer is not its own: check NIMBUS_LOG_SINK_URL")
        return reply
    raise Unavailable("the logging pipeline does not answer", 0.0)
