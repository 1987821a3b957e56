"""Lets nothing boot from a file that is not what its image's manifest says, and notes in the record what boots.

Alters and repairs nothing: an altered image is an alarm, and the machine that asked for it ends as the host's fault.
Called by build.py for each machine, and where one that exists is about to boot again or after a wait.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import structlog
import trio

from nimbus.host_agent import metrics
from nimbus.host_agent.lane import Hung, in_thread, in_thread_or_left
from nimbus.host_agent.ledger import OpenRecord
from nimbus.host_agent.vmm.machine import Boot
from nimbus.model.attestation import Attestation
from nimbus.storage.attest import AlteredImage, Attestor

log = structlog.get_logger()

READ_LIMIT_S = 120.0  # the first time an image is read whole, and a slow disk may be reading for others
_LIMITER = trio.CapacityLimiter(8)  # its own: those that wait for one reading hold up nothing else
_ATTESTOR = Attestor()  # of the process: a file is read once, whatever boots from it


async def attest_boot(record: OpenRecord, boot: Boot) -> None:
    """Check the files that `boot` gives to a guest. HostFault where one is altered, unreadable, or not read in time."""
    if boot.image is None:
        return
    try:
        attested = await _read_in_time(partial(_ATTESTOR.attest, boot.image))
    except AlteredImage as error:
        metrics.count_alarm()
        log.error("security.alarm", vm=str(record.value.vm), error=str(error))
        raise
    attested = replace(attested, template=boot.template.digest if boot.template is not None else None)
    if attested != record.value.attestation:
        await in_thread(partial(record.change, attestation=attested))


async def _read_in_time(read: partial[Attestation]) -> Attestation:
    """A pure read: nobody waits for it once cancelled, and what it learned it keeps for the next."""
    with trio.move_on_after(READ_LIMIT_S):
        return await in_thread_or_left(read, _LIMITER)
    raise Hung(READ_LIMIT_S)
