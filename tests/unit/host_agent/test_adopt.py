"""What a starting agent finds in its ledger: a record that hangs keeps it neither from starting nor from the others."""

from __future__ import annotations

import os
from pathlib import Path

import trio

from nimbus.host import process
from nimbus.host_agent.adopt import find_machines
from nimbus.host_agent.ledger import Ledger
from nimbus.host_agent.plan import ActLimits, HostLayout, render_plan
from nimbus.model.ids import new_vm_id
from nimbus.model.lease import LeaseKey
from nimbus.model.record import Record
from nimbus.model.vm import Claim, Shape

KEY = LeaseKey(7, "8f14e45f-ceea-467f-a8d3-0a1b2c3d4e5f", 3)


async def test_a_record_that_hangs_when_it_is_read_keeps_no_other_machine_from_being_adopted(tmp_path: Path) -> None:
    layout = HostLayout(state=tmp_path, runtime=tmp_path / "run", limits=ActLimits(look_s=0.5))
    value = Record(
        vm=new_vm_id(),
        created_at=0,
        boot_id=process.boot_id(),
        backend="fake",
        plan=render_plan(Shape(), "none", "tcg"),
        claims=(Claim.SLOT,),
        lease=KEY,
    )
    with Ledger(layout.ledger).create(value):
        pass
    hung = new_vm_id()
    os.mkfifo(layout.ledger / f"{hung}.json")  # who reads it waits until somebody writes
    with trio.fail_after(60):
        estate = await find_machines(layout)
    assert [machine.key for machine in estate.machines] == [KEY]
    assert (estate.unreadable, estate.held) == ((hung,), None)
    for machine in estate.machines:
        await machine.close()
    os.close(os.open(layout.ledger / f"{hung}.json", os.O_RDWR))  # the reader gets its end of file
