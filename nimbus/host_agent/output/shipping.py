"""From a disk spool to the logging pipeline: numbered rows, in batches, until the end row has arrived.

Repeats what was not heard, under the same numbers; waits while the pipeline is away. Decides nothing about the spool.
Called by `logs` for a VM that runs and by `stragglers` for one that is gone.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterator
from contextlib import suppress
from urllib.parse import urlsplit

import httpx2
import structlog
import trio

from nimbus.host_agent.output.lines import LineSplitter, LogRow
from nimbus.host_agent.output.logspool import LogSpool
from nimbus.host_agent.output.spoolrecord import Position
from nimbus.model.errors import Refused, Unavailable
from nimbus.runtime.http import check_status, mapped_http_errors
from nimbus.runtime.retry import Backoff

QUIET_S = 0.2  # an unfinished line (a prompt, a progress bar) is told after this long without more
BATCH_S = 0.1  # rows wait at most this long for company
BATCH_BYTES = 512 * 1024
_SERVICE = "the logging pipeline"
_POST_S = 30.0
_LONGEST_PAUSE_S = 10.0
_ROW_OVERHEAD_BYTES = 80  # the JSON around a message
_PACK_BYTES = 4096  # a smaller body fits into a few packets as it is
_PACK_LEVEL = 1  # a third of the time of the usual 6; logs become a tenth all the same
_MAX_RATIO = 50  # the pipeline takes what unpacks to more than 100 times its size for a bomb
log = structlog.get_logger()


def ingest_url(url: str) -> str:
    """The ingest endpoint: NIMBUS_LOG_SINK_URL may name it or the service's root."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise Refused("the logging pipeline's address must be an http(s) URL: check NIMBUS_LOG_SINK_URL")
    path = parts.path.rstrip("/")
    return parts._replace(path=path if path.endswith("/ingest") else f"{path}/ingest", query="", fragment="").geturl()


async def ship_logs(spool: LogSpool, client: httpx2.AsyncClient, url: str) -> None:
    """Send rows until the end row has arrived. Refused (401, 403, 400) and Fenced (409) end it; nothing else does.

    `client` carries the machine token. Rows are numbered from the spool, so a second shipper after a crash
    repeats a row only under its old number, which the pipeline passes over.
    """
    splitter, position = LineSplitter(spool.shipped), spool.shipped.position
    while not splitter.ended:
        rows, position = await _next_rows(spool, splitter, position)
        await spool.hold_head()
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


def pack_body(body: bytes) -> tuple[bytes, dict[str, str]]:
    """The body as it is sent, and its headers: gzip, which pipelines of the release before take too."""
    headers = {"Content-Type": "application/json"}
    if len(body) >= _PACK_BYTES:
        packer = zlib.compressobj(_PACK_LEVEL, wbits=zlib.MAX_WBITS | 16)
        packed = packer.compress(body) + packer.flush()
        if len(body) / _MAX_RATIO < len(packed) < len(body):
            return packed, headers | {"Content-Encoding": "gzip"}
    return body, headers


async def _deliver(client: httpx2.AsyncClient, url: str, rows: list[LogRow]) -> None:
    """Post one batch until it is stored; back off while the pipeline is away."""
    body, headers = pack_body(render_batch(rows))
    delays = Backoff(base_s=0.2, max_s=_LONGEST_PAUSE_S).delays_s()
    while True:
        try:
            reply = await _post(client, url, body, headers)
        except Unavailable as error:
            log.warning("logs.waiting", why=str(error))
            await trio.sleep(max(next(delays), min(error.retry_after_s, _LONGEST_PAUSE_S)))
            continue
        refused = reply.get("refused")
        if refused:
            log.warning("logs.rows_refused", rows=len(refused) if isinstance(refused, list) else 0)
        return


async def _post(client: httpx2.AsyncClient, url: str, body: bytes, headers: dict[str, str]) -> dict[str, object]:
    """The pipeline's answer; Unavailable with the pause that it asked for, none where it asked for none."""
    with trio.move_on_after(_POST_S):
        try:
            with mapped_http_errors(_SERVICE):
                response = await client.post(url, content=body, headers=headers)
        except Unavailable as error:  # nobody there to ask for a pause
            raise Unavailable(str(error), 0.0) from error
        if response.status_code >= 500 and "retry-after" not in response.headers:
            raise Unavailable(f"{_SERVICE} answered {response.status_code}", 0.0)
        check_status(response, _SERVICE)
        return _parse_reply(response)
    raise Unavailable("the logging pipeline does not answer", 0.0)


def _parse_reply(response: httpx2.Response) -> dict[str, object]:
    reply: object = None
    if response.headers.get("content-type", "").startswith("application/json"):
        with suppress(ValueError, RecursionError):
            reply = json.loads(response.content)
    if not isinstance(reply, dict):
        raise Refused("the logging pipeline's answer is not its own: check NIMBUS_LOG_SINK_URL")
    return reply
