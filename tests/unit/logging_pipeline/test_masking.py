"""The second net within a running pipeline: what it hides is in no table, no stream, no download and no log."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest
import trio

from nimbus.logging_pipeline.engine.child import Endpoint
from tests.unit.logging_pipeline.rig import Rig, open_rig, row

TOKEN = "ghp_" + "A1b2C3d4" * 5
VALUE = "correct-horse-battery-staple"


@pytest.fixture
async def rig(engine: Endpoint, tmp_path: Path) -> AsyncIterator[Rig]:
    async with open_rig(tmp_path, engine) as running:
        yield running


async def metrics_of(rig: Rig) -> str:
    return (await rig.client.get(f"{rig.url}/metrics")).text


async def test_what_is_secret_is_stored_and_told_as_stars(rig: Rig) -> None:
    rig.control.masks[1] = [VALUE]
    rig.control.add_job(5, 1, "in_progress", [(7, 1)])
    with trio.fail_after(60):
        async with rig.follow("/logs/jobs/5") as events:
            reply = await rig.ingest([row(0, f"token {TOKEN}"), row(1, f"a {VALUE} b"), row(2, "plain")])
            live = [(await anext(events))["message"] for _ in range(3)]
    assert (reply.status_code, reply.json()["acked_seq"]) == (200, 2)
    assert live == ["token ***", "a *** b", "plain"]
    assert await rig.messages("/logs/machines/7") == live
    told = await metrics_of(rig)
    assert 'nimbus_logs_masked_total{by="shape"} 1.0' in told
    assert 'nimbus_logs_masked_total{by="registered"} 1.0' in told


async def test_a_secret_that_two_requests_divide_is_stored_by_neither(rig: Rig) -> None:
    rig.control.masks[1] = [VALUE]
    await rig.ingest([row(0, "x" * (64 * 1024 - 10) + VALUE[:10])])
    await rig.ingest([row(1, VALUE[10:] + " rest")])
    assert await rig.messages("/logs/machines/7") == ["x" * (64 * 1024 - 10) + "***", "*** rest"]


async def test_a_request_that_comes_twice_is_hidden_and_stored_once(rig: Rig) -> None:
    rig.control.masks[1] = [VALUE]
    rows = [row(0, f"a {VALUE}")]
    first, second = await rig.ingest(rows), await rig.ingest(rows)
    assert first.json() == second.json() == {"acked_seq": 0}
    assert await rig.messages("/logs/machines/7") == ["a ***"]


async def test_one_orgs_secret_is_plain_text_in_another_orgs_output(rig: Rig) -> None:
    rig.control.masks[1] = [VALUE]
    await rig.ingest([row(0, VALUE)], org=2, machine=8)
    assert await rig.messages("/logs/machines/8", org=2) == [VALUE]


async def test_an_org_whose_secrets_cannot_be_fetched_comes_again_and_no_other_waits(rig: Rig) -> None:
    await rig.ingest([row(0, "known")], org=2, machine=8)
    rig.control.away = True
    reply = await rig.ingest([row(0, VALUE)])
    other = await rig.ingest([row(1, "goes on")], org=2, machine=8)
    assert (reply.status_code, other.status_code) == (503, 200)
    assert int(reply.headers["Retry-After"]) >= 1
    assert VALUE not in reply.text
    rig.control.away = False
    rig.control.masks[1] = [VALUE]

    async def ingest_until_taken() -> httpx2.Response:
        while True:
            again = await rig.ingest([row(0, VALUE)])
            if again.status_code != 503:
                return again
            await trio.sleep(float(again.headers["Retry-After"]))

    with trio.fail_after(60):
        assert (await ingest_until_taken()).status_code == 200
    assert await rig.messages("/logs/machines/7") == ["***"]


async def test_nothing_that_was_hidden_is_in_the_table(rig: Rig) -> None:
    rig.control.masks[1] = [VALUE]
    await rig.ingest([row(0, f"{VALUE} {TOKEN}")])
    found = await rig.services.table.rows_of(
        f"SELECT count() AS n FROM {rig.services.table.name} WHERE position(message, 'horse') > 0"  # noqa: S608
    )
    assert int(found[0]["n"]) == 0
