"""A VM's output on its way to the logging pipeline: into the disk spool first, then out in numbered rows.

`write` tells how far the bytes are in the spool, which is what lets the guest forget them. Shipping never holds a job
back and never loses silently; it never decides how long anything else takes. Memory stays bounded whatever the job
prints. Called by machines.py, once per VM and agent.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import httpx2
import structlog
import trio

from nimbus.host_agent.guestsession import OutputSink
from nimbus.host_agent.lane import in_thread
from nimbus.host_agent.output.logspool import LogSpool, open_spool
from nimbus.host_agent.output.shipping import ingest_url, ship_logs
from nimbus.host_agent.output.spool import DEFAULT_CAP_BYTES, TARGET, load_note, save_note
from nimbus.model.errors import HostFault, NimbusError
from nimbus.runtime.http import open_http

FLUSH_S = 10.0  # how long a machine's end may wait for its last rows to arrive
log = structlog.get_logger()


@dataclass(frozen=True)
class LogTarget:
    """Where a VM's output goes, and the machine token that lets it in."""

    url: str | None
    token: str | None = field(repr=False)


class LogShipping(OutputSink, Protocol):
    """Where the output of one VM goes. Left without `finish`, it stays for the next agent to go on with."""

    @property
    def offsets(self) -> tuple[int, int]:
        """Where stdout and stderr go on: what an adopted guest session is told."""
        ...

    @property
    def dropped_lines(self) -> int:
        """Lines that this agent dropped for want of room."""
        ...

    async def mask(self, secrets: Iterable[str]) -> None:
        """Hide these from here on. Secrets that the job tells of itself need no call."""
        ...

    async def finish(self, message: str = "") -> bool:
        """No more output comes: say so, and wait a while for it to arrive. True when all has; its spool is gone then.

        Cancelled, or False: the end is in the spool, and whoever finds that ships it.
        """
        ...


def read_target(folder: Path) -> LogTarget | None:
    """Where the spool in `folder` is to be shipped; None for one that says nothing."""
    text = load_note(folder, TARGET)
    if text is None:
        return None
    try:
        value = json.loads(text)
        return LogTarget(value["url"], value["token"])
    except (LookupError, TypeError, ValueError) as error:
        raise HostFault(f"the log spool of {folder.name} does not say where it belongs") from error


def save_target(folder: Path, target: LogTarget) -> None:
    """Keep it beside the spool, where only root reads it, for an agent that never had the machine's grant."""
    save_note(folder, TARGET, json.dumps({"version": 1, "url": target.url, "token": target.token}))


def _keep_target(folder: Path, target: LogTarget, *, is_new: bool) -> None:
    """Its file's age says when the spool was last taken up, which a full disk need not hear: a machine would end."""
    try:
        save_target(folder, target)
    except HostFault:
        if is_new:
            raise


@asynccontextmanager
async def open_log_shipping(
    folder: Path,
    target: LogTarget,
    *,
    secrets: Iterable[str] = (),
    cap_bytes: int = DEFAULT_CAP_BYTES,
    flush_s: float = FLUSH_S,
) -> AsyncIterator[LogShipping]:
    """A sink whose bytes arrive at `target`; what it lacks is taken from what an earlier agent was given.

    Leaving it never waits for the pipeline. Without a URL or a token the output goes nowhere, and the agent's log
    says so once. Raises Conflict while another process has the folder, HostFault where the disk does not take it.
    """
    kept = await in_thread(lambda: read_target(folder)) or LogTarget(None, None)
    known = LogTarget(target.url or kept.url, target.token or kept.token)
    if known.url is None or known.token is None:
        if target.token is not None:  # else an earlier agent said it, or all that it was given has arrived
            log.warning("logs.not_shipped", why="no logging pipeline is configured (NIMBUS_LOG_SINK_URL)")
        yield _Discarded()
        return
    url = ingest_url(known.url)
    async with open_spool(folder, cap_bytes) as spool, open_http(token=known.token) as client:
        await in_thread(lambda: _keep_target(folder, known, is_new=known != kept))
        await spool.mask(secrets)
        async with trio.open_nursery() as nursery:
            # Not nursery.start: cancelled meanwhile, it would wait for a task that no cancellation reaches.
            arrived, shipping = trio.Event(), trio.CancelScope(shield=True)
            nursery.start_soon(_ship_until_arrived, spool, client, url, arrived, shipping)
            try:
                yield _Shipped(spool, arrived, flush_s)
            finally:
                shipping.cancel()


class _Shipped:
    """The sink of a host with a pipeline."""

    def __init__(self, spool: LogSpool, arrived: trio.Event, flush_s: float) -> None:
        self._spool, self._arrived, self._flush_s = spool, arrived, flush_s

    @property
    def offsets(self) -> tuple[int, int]:
        return self._spool.offsets

    @property
    def dropped_lines(self) -> int:
        return self._spool.dropped_lines

    async def write(self, stream: str, offset: int, data: bytes) -> int:
        return await self._spool.write(stream, offset, data)

    async def flush(self) -> None:
        await self._spool.flush()

    async def mask(self, secrets: Iterable[str]) -> None:
        await self._spool.mask(secrets)

    async def finish(self, message: str = "") -> bool:
        with trio.CancelScope(shield=True):  # one write to the disk: whoever calls this means it, cancelled or not
            said = await self._spool.finish(message)
        if said:
            with trio.move_on_after(self._flush_s):
                await self._arrived.wait()
        if not self._arrived.is_set():
            log.warning("logs.left_behind", bytes=self._spool.stored_bytes)
            return False
        with trio.CancelScope(shield=True):
            try:
                await self._spool.remove()
            except HostFault as error:  # all has arrived: whoever finds the rest of it has nothing to tell
                log.warning("logs.left_behind", why=str(error))
        return said


class _Discarded:
    """The sink of a host without a pipeline: it only counts."""

    def __init__(self) -> None:
        self._ends = {"stdout": 0, "stderr": 0}
        self.dropped_lines = 0

    @property
    def offsets(self) -> tuple[int, int]:
        return self._ends["stdout"], self._ends["stderr"]

    async def write(self, stream: str, offset: int, data: bytes) -> int:
        """Take the bytes and forget them."""
        await trio.lowlevel.checkpoint()
        self._ends[stream] = max(self._ends.get(stream, 0), offset + len(data))
        return self._ends[stream]

    async def flush(self) -> None:
        await trio.lowlevel.checkpoint()

    async def mask(self, _: Iterable[str]) -> None:
        await trio.lowlevel.checkpoint()

    async def finish(self, _: str = "") -> bool:
        await trio.lowlevel.checkpoint()
        return True


async def _ship_until_arrived(
    spool: LogSpool, client: httpx2.AsyncClient, url: str, arrived: trio.Event, shielded: trio.CancelScope
) -> None:
    """Ship under a shield: a cancelled machine's last rows are wanted too. Its opener ends it."""
    with shielded:
        try:
            await ship_logs(spool, client, url)
        except (NimbusError, OSError) as error:  # no job ends because its output is refused; the operator is told
            log.error("logs.refused", why=str(error))
            spool.abandon()
        arrived.set()
