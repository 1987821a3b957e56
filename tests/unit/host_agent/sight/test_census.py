"""The metrics page shows what the VMs of this host hold and use at the moment it is asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx2
import pytest
import trio

from nimbus.host.quarantine import FAILURES, note_failure
from nimbus.host_agent.ledger import Ledger
from nimbus.host_agent.metricspage import serve_metrics
from nimbus.host_agent.plan import HostLayout
from nimbus.host_agent.sight.census import SlotCount, count_slots, sum_sizes, sum_usage, take_census
from nimbus.model.ids import new_vm_id
from nimbus.model.record import Record
from nimbus.model.vm import Claim, Usage


@pytest.fixture
def layout(tmp_path: Path) -> Iterator[HostLayout]:
    """Two VMs in the ledger, one record that a crash tore, and a spool."""
    (tmp_path / "run" / "slots").mkdir(parents=True)
    found = HostLayout(state=tmp_path, runtime=tmp_path / "run", slot_limit=8)
    ledger = Ledger(found.ledger)
    with ExitStack() as open_records:
        for claims in ((Claim.SLOT, Claim.NETWORK), (Claim.SLOT,)):
            value = Record(vm=new_vm_id(), created_at=0, boot_id="b", backend="fake", plan={}, claims=claims)
            open_records.enter_context(ledger.create(value))
        (found.ledger / "00000000.json").write_text("{")
        (found.spools / "00000001").mkdir(parents=True)
        (found.spools / "00000001" / "1.seg").write_bytes(b"x" * 1000)
        yield found


def test_claims_are_those_of_every_record_that_can_be_read(layout: HostLayout) -> None:
    found = take_census(layout)
    assert found.claims == {**dict.fromkeys(Claim, 0), Claim.SLOT: 2, Claim.NETWORK: 1}
    assert found.spool_bytes == 1000


def test_the_three_states_of_slots_make_up_the_limit(layout: HostLayout) -> None:
    for index in (0, 1, 9):
        (layout.runtime / "slots" / str(index)).write_text("nbfff-00000001")
    for index in (1, 2, 9):
        for _ in range(FAILURES):
            note_failure(layout.runtime, index, "acquire network", "EBUSY")
    assert count_slots(layout) == SlotCount(free=5, held=1, quarantined=2)


def test_what_one_host_cannot_count_does_not_hide_what_it_can() -> None:
    found = sum_usage([Usage(cpu_ms=5, disk_bytes=7), Usage(cpu_ms=6)])
    assert found == Usage(cpu_ms=11, disk_bytes=7)
    assert sum_usage([]) == Usage()


def test_a_host_without_a_spool_holds_no_output(tmp_path: Path) -> None:
    assert sum_sizes(tmp_path / "absent") == 0


async def test_the_page_is_as_fresh_as_its_reader(layout: HostLayout) -> None:
    async with trio.open_nursery() as nursery:
        with trio.fail_after(30):
            where = await nursery.start(serve_metrics, layout, "127.0.0.1", 0)
            async with httpx2.AsyncClient(base_url=where) as http:
                first = (await http.get("/metrics/")).text
                (layout.runtime / "slots" / "3").write_text("nbfff-00000001")
                second = (await http.get("/metrics/")).text
        nursery.cancel_scope.cancel()
    assert 'nimbus_host_agent_claims_held{claim="network"} 1.0' in first
    assert 'nimbus_host_agent_slots{state="free"} 8.0' in first
    assert 'nimbus_host_agent_slots{state="held"} 1.0' in second
    assert "nimbus_host_agent_log_spool_bytes 1000.0" in second
