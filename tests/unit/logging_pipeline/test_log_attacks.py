"""The lines of our catalogue of attacks that concern output on its way in, one test or more for each."""

from __future__ import annotations

import io
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio
from backports import zstd

from nimbus.logging_pipeline.engine.child import Endpoint
from nimbus.logging_pipeline.ingest.writer import Writer
from nimbus.logging_pipeline.metrics import Metrics
from nimbus.logging_pipeline.rows import Row, Source
from nimbus.runtime.telemetry import configure_logging
from tests.unit.logging_pipeline.rig import Rig, bearer, open_rig, row
from tests.unit.logging_pipeline.untouched import plan_untouched

HOUR_MS = 3_600_000


async def post(rig: Rig, body: bytes, headers: dict[str, str] | None = None, **token: Any) -> tuple[int, str]:
    reply = await rig.client.post(
        f"{rig.url}/ingest", content=body, headers=bearer(rig.machine_token(**token)) | (headers or {})
    )
    return reply.status_code, reply.text


async def count(rig: Rig) -> int:
    counted = await rig.services.table.rows_of(f"SELECT count() AS n FROM {rig.services.table.name}")  # noqa: S608 - our own name
    return int(counted[0]["n"])


async def test_a_body_that_claims_another_org_repo_job_or_machine_writes_under_its_tokens_name(
    tmp_path: Path, engine: Endpoint
) -> None:
    claims = {"org_id": 2, "repo_id": 5, "job_id": 6, "machine_id": 8, "fence": 9, "attempt": 3, "agent_id": "other"}
    body = json.dumps({"rows": [row(0, "mine") | claims], **claims}).encode()
    with trio.fail_after(60):
        async with open_rig(tmp_path, engine) as rig:
            assert (await post(rig, body))[0] == 200
            [stored] = await rig.services.table.rows_of(
                "SELECT org_id, repo_id, job_id, machine_id, fence, attempt, agent_id, step, level "  # noqa: S608 - our own name
                f"FROM {rig.services.table.name}"
            )
            told = {name: value if name in ("agent_id", "level") else int(value) for name, value in stored.items()}
            assert told == {
                "org_id": 1,
                "repo_id": 0,
                "job_id": 0,
                "machine_id": 7,
                "fence": 1,
                "attempt": 0,
                "step": 0,
                "agent_id": "agent-1",
                "level": "info",
            }
            assert await rig.messages("/logs/machines/8", org=2) == []


async def test_a_token_of_another_audience_or_of_a_reader_writes_nothing(tmp_path: Path, engine: Endpoint) -> None:
    body = json.dumps({"rows": [row(0)]}).encode()
    with trio.fail_after(60):
        async with open_rig(tmp_path, engine) as rig:
            for token in (rig.read_token(), "x", "x.y.z"):
                reply = await rig.client.post(f"{rig.url}/ingest", content=body, headers=bearer(token))
                assert reply.status_code == 401
            assert await count(rig) == 0


async def test_rows_twice_out_of_order_and_with_a_gap_are_stored_once_and_the_gap_is_not_acknowledged(
    tmp_path: Path, engine: Endpoint
) -> None:
    with trio.fail_after(60):
        async with open_rig(tmp_path, engine) as rig:
            sent = [[3, 1, 0], [0, 1, 1, 0], [6, 4], [4, 6, 3]]
            acked = [(await rig.ingest([row(n) for n in batch])).json()["acked_seq"] for batch in sent]
            assert acked == [1, 1, 1, 1]
            assert (await rig.ingest([row(2), row(5)])).json() == {"acked_seq": 6}
            assert await rig.messages("/logs/machines/7") == [f"line {n}" for n in range(7)]
            assert await count(rig) == 7


async def test_a_host_that_lost_its_lease_and_goes_on_is_told_so_once_another_prints(
    tmp_path: Path, engine: Endpoint
) -> None:
    with trio.fail_after(60):
        async with open_rig(tmp_path, engine) as rig:
            await rig.ingest([row(0, "of the first")], fence=1)
            await rig.ingest([row(0, "of the second")], fence=2)
            soon = int(time.time() * 1000) + HOUR_MS
            reply = await rig.ingest([row(1, "too late") | {"ts_ms": soon}], fence=1)
            assert (reply.status_code, reply.json()["error"]) == (409, "fenced")
            assert await rig.messages("/logs/machines/7") == ["of the first", "of the second"]


async def test_what_was_printed_before_the_lease_passed_on_is_wanted_however_late_it_comes(
    tmp_path: Path, engine: Endpoint
) -> None:
    with trio.fail_after(60):
        async with open_rig(tmp_path, engine) as rig:
            await rig.ingest([row(0, "of the second")], fence=2)
            before = int(time.time() * 1000) - HOUR_MS
            late = await rig.ingest([row(0, "from the spool") | {"ts_ms": before}], fence=1)
            assert late.status_code == 200
            assert await rig.messages("/logs/machines/7") == ["from the spool", "of the second"]


async def test_a_service_that_was_started_anew_knows_fences_from_the_table(tmp_path: Path, engine: Endpoint) -> None:
    soon = int(time.time() * 1000) + HOUR_MS
    with trio.fail_after(60):
        async with open_rig(tmp_path, engine) as rig:
            await rig.ingest([row(0)], fence=2)
            async with open_replica(rig) as other:
                with pytest.raises(Exception, match="fence 2"):
                    await store(other, Source(1, 7, 1), [Row(0, soon, "stdout", "info", "late")])


@asynccontextmanager
async def open_replica(rig: Rig) -> AsyncIterator[Writer]:
    """A second service's writer over the same store."""
    writer = Writer(rig.services.table, plan_untouched(), Metrics())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.run)
        yield writer
        nursery.cancel_scope.cancel()


async def store(writer: Writer, source: Source, rows: list[Row]) -> int:
    return (await writer.store(source, "agent-1", rows, writer.intake.enter(source, 100))).acked_seq


def plain(*seqs: int) -> list[Row]:
    return [Row(seq, int(time.time() * 1000), "stdout", "info", f"line {seq}") for seq in seqs]


async def test_two_services_that_are_sent_the_same_rows_show_each_once(tmp_path: Path, engine: Endpoint) -> None:
    source = Source(1, 7, 1)
    with trio.fail_after(60):
        async with open_rig(tmp_path, engine) as rig, open_replica(rig) as other:
            first = rig.services.writer
            assert await store(first, source, plain(0, 1, 2)) == 2
            assert await store(other, source, plain(2, 3, 4)) == 4  # the answer of the first was lost on the way
            async with trio.open_nursery() as both:  # and both at once
                both.start_soon(store, first, source, plain(3, 4, 5, 6))
                both.start_soon(store, other, source, plain(5, 6, 7))
            assert await store(first, source, plain(8)) >= 6
            assert await rig.messages("/logs/machines/7") == [f"line {n}" for n in range(9)]


async def test_a_service_that_missed_what_another_stored_looks_it_up_before_it_sees_a_gap(
    tmp_path: Path, engine: Endpoint
) -> None:
    source = Source(1, 7, 1)
    with trio.fail_after(60):
        async with open_rig(tmp_path, engine) as rig, open_replica(rig) as other:
            await store(rig.services.writer, source, plain(0, 1))
            await store(other, source, plain(2, 3))
            await trio.sleep(1.1)  # it looks again at most once a second
            assert await store(rig.services.writer, source, plain(4)) == 4
            assert await count(rig) == 5


async def test_hostile_text_in_rows_reaches_no_log_of_ours(tmp_path: Path, engine: Endpoint) -> None:
    forged = 'x\n{"event":"forged","level":"error"}\r\n\x1b[2J\x1b]0;title\x07 forged'
    bad = [row(0, forged), row(1, forged, "forged\n"), {"seq": 2, "stream": forged, "message": forged}, forged]
    out = io.StringIO()
    with trio.fail_after(60):
        async with open_rig(tmp_path, engine) as rig:
            configure_logging(stream=out)
            try:
                headers = {"Content-Encoding": "forged, gzip", "User-Agent": "forged"}
                await post(rig, json.dumps({"rows": bad}).encode())
                await post(rig, json.dumps(forged).encode(), headers)
                await post(rig, b"forged\n", {"Content-Encoding": "zstd"})
            finally:
                structlog.reset_defaults()
    assert "forged" not in out.getvalue()


def test_what_a_tenant_named_is_one_escaped_line_in_our_log() -> None:
    out = io.StringIO()
    configure_logging(stream=out, json_lines=True)
    try:
        structlog.get_logger().warning("logs.waiting", why='a\n{"event":"forged"}\r\x1b[31m\u2028\u202e')
    finally:
        structlog.reset_defaults()
    [line] = out.getvalue().splitlines()
    assert json.loads(line)["event"] == "logs.waiting"
    assert not any(mark in line for mark in ("\x1b", "\r", "\u2028", "\u202e"))


async def test_a_sender_with_more_than_its_share_on_the_way_is_told_when_to_come_again(
    tmp_path: Path, engine: Endpoint
) -> None:
    with trio.fail_after(60):
        async with open_rig(tmp_path, engine) as rig:
            intake = rig.services.writer.intake
            held = intake.enter(Source(1, 7, 1), 16 * 2**20)
            mine = await rig.ingest([row(0)])
            assert (mine.status_code, mine.json()["error"], mine.headers["retry-after"]) == (429, "rate_limited", "1")
            assert (await rig.ingest([row(0)], machine=8)).status_code == 200
            assert (await rig.ingest([row(0)], org=2)).status_code == 200
            held.leave()
            assert (await rig.ingest([row(0)])).status_code == 200
            assert intake.bytes == 0


async def test_who_sends_nothing_but_its_headers_takes_room_of_its_own_org_only(
    tmp_path: Path, engine: Endpoint
) -> None:
    with trio.fail_after(60):
        async with open_rig(tmp_path, engine) as rig:
            host, _, port = rig.url.removeprefix("http://").partition(":")
            slow = []
            for machine in range(1, 21):
                stream = await trio.open_tcp_stream(host, int(port))
                head = f"POST /ingest HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {rig.machine_token(2, machine)}\r\n"
                await stream.send_all(f"{head}Content-Length: 4000000\r\n\r\n".encode())
                slow.append(stream)
            status = 0
            while status != 429:  # its connections are taken up one after the other
                status, _ = await post(rig, b" " * 4_000_000, org=2, machine=100)
            assert (await rig.ingest([row(0)], org=1)).status_code == 200
            for stream in slow:
                await stream.aclose()


async def test_a_zstd_body_is_read_and_bad_ones_are_refused(tmp_path: Path, engine: Endpoint) -> None:
    body = zstd.compress(json.dumps({"rows": [row(0)]}).encode())
    packed = {"Content-Encoding": "zstd"}
    with trio.fail_after(60):
        async with open_rig(tmp_path, engine) as rig:
            assert (await post(rig, body, packed))[0] == 200
            assert (await post(rig, body + body, packed))[0] == 400
            assert (await post(rig, zstd.compress(b" " * (64 * 2**20)), packed))[0] == 413
            status, text = await post(rig, body, {"Content-Encoding": "br"})
            assert (status, json.loads(text)["error"]) == (415, "unsupported")
            assert rig.services.writer.intake.bytes == 0
