"""Output that outlived its VM: spools that nobody holds are shipped, one after another, and thrown away at the end.

Never touches a spool that its machine may still write to, and never delays anything else: each gets its turn, a short
one. Gives up on what is refused, too old for its token or too much in all. Called by main.py, as a service task.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog
import trio

from nimbus.host_agent.lane import in_thread
from nimbus.host_agent.logs import LogTarget, read_target
from nimbus.host_agent.output.logspool import LogSpool, open_spool
from nimbus.host_agent.output.shipping import ingest_url, ship_logs
from nimbus.host_agent.output.spool import TARGET, remove_spool
from nimbus.model.errors import Conflict, HostFault, NimbusError, Refused
from nimbus.model.ids import VmId
from nimbus.runtime.http import open_http

ROUND_S = 15.0  # between two looks
TURN_S = 10.0  # what did not arrive in one turn goes on in the next round, where it stopped
AGE_MAX_S = 24 * 3600.0  # a machine token's life: after it nobody lets the rows in
TOTAL_MAX_BYTES = 2 * 2**30
log = structlog.get_logger()


@dataclass(frozen=True)
class StragglerLimits:
    """How long and how much output may wait for a pipeline that is away, and where that is."""

    round_s: float = ROUND_S
    turn_s: float = TURN_S
    age_max_s: float = AGE_MAX_S
    total_max_bytes: int = TOTAL_MAX_BYTES
    sink_url: str | None = None  # NIMBUS_LOG_SINK_URL as it is now: a pipeline may have moved since the spool was made


@dataclass(frozen=True)
class StragglerRound:
    """What one look at the spools found and did."""

    waiting: int  # spools without an owner that are still here
    waiting_bytes: int
    shipped: int
    given_up: int


@dataclass(frozen=True)
class Straggler:
    """A spool without an owner."""

    folder: Path
    bytes: int
    since: float  # when it was last taken up, as the system's clock says


async def ship_stragglers(
    spools: Path,
    *,
    is_owned: Callable[[str], bool],
    on_round: Callable[[StragglerRound], None] = lambda _: None,
    limits: StragglerLimits = StragglerLimits(),
) -> None:
    """Serve until cancelled. `is_owned` tells, in a thread, whether a VM has a record: its spool is not ours then."""
    while True:
        try:
            on_round(await ship_round(spools, is_owned, limits))
        except OSError as error:  # the disk may get better, and the machines of this agent know nothing of it
            log.warning("logs.round_failed", why=str(error))
        await trio.sleep(limits.round_s)


async def ship_round(spools: Path, is_owned: Callable[[str], bool], limits: StragglerLimits) -> StragglerRound:
    """One look: give up on what cannot be kept, then give each that is left its turn, the oldest first."""
    found = await in_thread(lambda: find_stragglers(spools, is_owned))
    keep, drop = plan_round(found, time.time(), limits)
    given_up = 0
    for straggler in drop:
        given_up += await _give_up(straggler, "it is too old, or too much waits")
    shipped = 0
    for straggler in keep:
        try:
            with trio.move_on_after(limits.turn_s):
                shipped += await _ship(straggler.folder, limits.sink_url)
        except Conflict:
            pass  # somebody took it up meanwhile
        except HostFault as error:  # the disk may get better; if not, its age ends it
            log.warning("logs.straggler_stuck", vm=straggler.folder.name, why=str(error))
        except NimbusError as error:
            given_up += await _give_up(straggler, str(error))
    left = await in_thread(lambda: find_stragglers(spools, is_owned))
    return StragglerRound(len(left), sum(straggler.bytes for straggler in left), shipped, given_up)


def plan_round(found: list[Straggler], now: float, limits: StragglerLimits) -> tuple[list[Straggler], list[Straggler]]:
    """Pure: what is kept, the oldest first, and what is given up. Of too much, the newest is kept."""
    keep: list[Straggler] = []
    drop: list[Straggler] = []
    total = 0
    for straggler in sorted(found, key=lambda one: one.since, reverse=True):
        total += straggler.bytes
        fits = total <= limits.total_max_bytes and now - straggler.since <= limits.age_max_s
        (keep if fits else drop).append(straggler)
    return keep[::-1], drop


def find_stragglers(spools: Path, is_owned: Callable[[str], bool]) -> list[Straggler]:
    """The spools of VMs that are gone. Whether another process holds one is seen when it is opened."""
    try:
        folders = [path for path in spools.iterdir() if _is_vm(path.name) and path.is_dir() and not path.is_symlink()]
    except FileNotFoundError:
        return []
    found = []
    for folder in folders:
        if is_owned(folder.name):
            continue
        target = folder / TARGET
        try:
            since = target.stat().st_mtime if target.exists() else folder.stat().st_mtime
            found.append(Straggler(folder, sum(file.stat().st_size for file in folder.iterdir()), since))
        except FileNotFoundError:  # shipped meanwhile
            continue
    return found


def _is_vm(name: str) -> bool:
    """Whatever else lies among the spools is not ours to remove."""
    try:
        VmId(name)
    except Refused:
        return False
    return True


async def _ship(folder: Path, sink_url: str | None) -> bool:
    """Bring a spool to its pipeline and take it away. Raises Conflict while somebody holds it, Refused, HostFault."""
    async with open_spool(folder) as spool:
        target = await in_thread(lambda: read_target(folder))
        if target is None or target.url is None:  # nothing was ever safe in here, or all of it has arrived
            await spool.remove()
            return False
        if not await spool.finish_orphan():
            return False  # the disk is full: another round
        await _deliver(spool, target, sink_url or target.url)
        with trio.CancelScope(shield=True):
            await spool.remove()
    log.info("logs.straggler_shipped", vm=folder.name)
    return True


async def _deliver(spool: LogSpool, target: LogTarget, url: str) -> None:
    async with open_http(token=target.token) as client:
        await ship_logs(spool, client, ingest_url(url))


async def _give_up(straggler: Straggler, why: str) -> int:
    """Throw a spool away and say so. 0 where somebody holds it after all."""
    try:
        await in_thread(lambda: remove_spool(straggler.folder))
    except NimbusError:
        return 0
    log.warning("logs.given_up", vm=straggler.folder.name, bytes=straggler.bytes, why=why)
    return 1
