"""A VM's output on its way to the logging pipeline: into the disk spool first, then out in numbered rows.

`write` returns once the bytes are in the spool, which is what lets the guest forget them. Shipping never
holds a job back and never loses silently: beyond the spool's cap output is dropped and a row says how much.
Memory stays bounded whatever the job prints. Called by machines.py, once per VM.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import httpx2
import structlog
import trio

from nimbus.host_agent.lines import Checkpoint, LineSplitter, LogRow, parse_checkpoint
from nimbus.host_agent.spool import DEFAULT_CAP_BYTES, Kind, Position, Record, Spool, Stream
from nimbus.model.errors import NimbusError, Refused, Unavailable
from nimbus.runtime.http import check_status, mapped_http_errors, open_http
from nimbus.runtime.retry import Backoff
from nimbus.runtime.threads import ThreadLane

QUIET_S = 0.2  # an unfinished line (a prompt, a progress bar) is told after this long without more
BATCH_S = 0.1  # rows wait at most this long for company
BATCH_BYTES = 512 * 1024
FLUSH_S = 10.0  # how long a machine's end may wait for its last rows to arrive
_PIECE_BYTES = 64 * 1024  # one record; even of two-byte lines it makes only some MiB of rows
_SERVICE = "the logging pipeline"
_POST_S = 30.0
_LONGEST_PAUSE_S = 10.0
_ROW_OVERHEAD_BYTES = 80  # the JSON around a message
log = structlog.get_logger()


class OutputSink(Protocol):
    """Where output goes; `write` returns when the bytes are safe."""

    async def write(self, stream: str, offset: int, data: bytes) -> None: ...


class LogSpool:
    """The spool of one VM as Trio sees it. An OutputSink."""

    def __init__(self, spool: Spool, lane: ThreadLane, shipped: Checkpoint) -> None:
        self._spool = spool
        self._lane = lane
        self._appending = trio.Lock()
        self._dropped: dict[Stream, int] = {}  # bytes since the last that were taken
        self._shipped = shipped
        # segments that were shipped are gone: the checkpoint still knows how far they went
        streams = spool.ends | shipped.ends
        self._ends = {stream: max(spool.ends.get(stream, 0), shipped.ends.get(stream, 0)) for stream in streams}
        self._abandoned = False
        self.grown = trio.Event()

    @property
    def offsets(self) -> dict[str, int]:
        """Where each stream goes on: what a resumed guest session is told."""
        return {stream.name.lower(): end for stream, end in self._ends.items()}

    async def write(self, stream: str, offset: int, data: bytes) -> None:
        """Take bytes of a stream; what was taken before is passed over, what is missing is told."""
        async with self._appending:
            await self._lane.run(self._take, Stream[stream.upper()], offset, data)
        self._tell()

    async def cut(self, streams: Iterable[Stream]) -> None:
        """Make the unfinished lines of these streams lines."""
        for stream in streams:
            await self._append(Record(Kind.CUT, stream, _now_ms(), 0))

    async def finish(self, message: str = "") -> None:
        """Say that no more output comes; a second time is a no-op."""
        async with self._appending:
            await self._lane.run(self._end, message)
        self._tell()

    async def read(self, position: Position) -> tuple[list[Record], Position]:
        return await self._lane.run(self._spool.read, position, _PIECE_BYTES)

    @property
    def shipped(self) -> Checkpoint:
        """How far the rows have arrived."""
        return self._shipped

    @property
    def stored_bytes(self) -> int:
        return self._spool.stored_bytes

    async def advance(self, checkpoint: Checkpoint) -> None:
        """All rows before the checkpoint arrived: remember it, then free the disk."""
        await self._lane.run(self._spool.save_checkpoint, checkpoint.render())
        await self._lane.run(self._spool.discard_before, checkpoint.position)
        self._shipped = checkpoint

    def abandon(self) -> None:
        """Nobody will read on: store nothing more."""
        self._abandoned = True

    def _tell(self) -> None:
        self.grown.set()
        self.grown = trio.Event()

    async def _append(self, record: Record) -> None:
        async with self._appending:
            await self._lane.run(self._spool.append, record)
        self._tell()

    def _take(self, stream: Stream, offset: int, data: bytes) -> None:
        end = self._ends.get(stream, 0)
        if self._abandoned or offset + len(data) <= end:
            return
        if offset < end:
            offset, data = end, data[end - offset :]
        elif offset > end:
            why = f"nimbus: {offset - end} bytes of {stream.name.lower()} never reached the host"
            self._spool.append(Record(Kind.LOST, stream, _now_ms(), offset, why.encode()))
        for begin in range(0, len(data), _PIECE_BYTES):
            piece = data[begin : begin + _PIECE_BYTES]
            if self._spool.has_room(len(piece)):
                self._tell_dropped(stream, offset + begin)
                self._spool.append(Record(Kind.DATA, stream, _now_ms(), offset + begin, piece))
            else:
                self._dropped[stream] = self._dropped.get(stream, 0) + len(piece)
        self._ends[stream] = offset + len(data)

    def _tell_dropped(self, stream: Stream, offset: int) -> None:
        count = self._dropped.pop(stream, 0)
        if count:
            why = f"nimbus: {count} bytes of {stream.name.lower()} dropped: the log spool was full"
            self._spool.append(Record(Kind.LOST, stream, _now_ms(), offset, why.encode()))

    def _end(self, message: str) -> None:
        if self._spool.finished or self._abandoned:
            return
        for stream in list(self._dropped):
            self._tell_dropped(stream, self._ends[stream])
        self._spool.append(Record(Kind.END, Stream.AGENT, _now_ms(), 0, message.encode()))


@asynccontextmanager
async def open_spool(folder: Path, cap_bytes: int = DEFAULT_CAP_BYTES) -> AsyncIterator[LogSpool]:
    """The spool in `folder`, new or as an earlier agent left it."""
    lane = ThreadLane("log-spool", 2)  # one thread appends, one reads
    spool = await lane.run(Spool, folder, cap_bytes)
    try:
        yield LogSpool(spool, lane, parse_checkpoint(await lane.run(spool.load_checkpoint)))
    finally:
        spool.close()


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
                await spool.finish()
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
        size += len(row.message) * 2 + _ROW_OVERHEAD_BYTES  # characters take one to four bytes, escapes two
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


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
