"""The only undo: release a record's claims from the newest to the oldest, then forget the record.

A normal end, a failed boot, a lost lease, a drain, a lease found dead after a restart and
`nimbus vms purge` all come here. Every release is idempotent (absent is success) and runs under its own
shield with a limit; a failure is noted in the record and the next claim is still released. What could
not be released stays in the record for the reaper. What each release does is claims.py's.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from typing import Any

import structlog
import trio

from nimbus.host_agent import claims
from nimbus.host_agent.claims import Target
from nimbus.host_agent.lane import in_thread
from nimbus.host_agent.ledger import OpenRecord
from nimbus.host_agent.metrics import count_release
from nimbus.host_agent.plan import HostLayout
from nimbus.model.errors import HostFault
from nimbus.model.vm import Claim

log = structlog.get_logger()


async def teardown(layout: HostLayout, record: OpenRecord) -> bool:
    """Release all that `record` lists. True when nothing is left; then the record is gone too, unless it still
    holds an end that was not told.

    Runs to its end under shields with limits, whatever is cancelled around it.
    """
    with trio.CancelScope(shield=True):  # each step below carries its own limit
        await claims.settle(Target(layout, record.value))
        for claim in reversed(record.value.claims):
            await _release(claim, Target(layout, record.value), record)
        clean = not record.value.claims
        if clean and not record.value.has_end:
            return await _forget(record)
        if not clean:
            log.error("vm.teardown_incomplete", vm=str(record.value.vm), left=list(record.value.claims))
    return clean


async def _forget(record: OpenRecord) -> bool:
    """False where the disk keeps the record: a reaper finds it, and then nothing else of its VM."""
    try:
        await in_thread(partial(record.ledger.remove, record.value.vm))
    except (HostFault, OSError) as error:
        log.error("ledger.remove_failed", vm=str(record.value.vm), error=str(error))
        return False
    return True


async def _release(claim: Claim, target: Target, record: OpenRecord) -> None:
    started = time.monotonic()
    try:
        await claims.release(claim, target)
    except Exception as error:  # noqa: BLE001 - the next claim is released whatever this one did
        count_release(claim, time.monotonic() - started)
        log.warning("claim.release_failed", vm=str(record.value.vm), claim=str(claim), error=str(error))
        told = record.value.with_failure(f"{claim}: {type(error).__name__}: {error}")
        await _note(record, failures=told.failures)
        return
    count_release(claim, time.monotonic() - started)
    await _note(record, claims=record.value.strike(claim).claims)
    log.debug("claim.released", vm=str(record.value.vm), claim=str(claim), ms=_ms_since(started))


async def _note(record: OpenRecord, **fields: Any) -> None:
    """Write these fields alone: a renewal may change others at the same moment, and neither may undo the other.

    A disk that refuses must not end a teardown: releasing twice is harmless.
    """
    try:
        await in_thread(partial(record.change, **fields))
    except HostFault as error:
        record.value = replace(record.value, **fields)
        log.warning("ledger.write_failed", vm=str(record.value.vm), error=str(error))


def _ms_since(started: float) -> float:
    return round((time.monotonic() - started) * 1000, 1)
