"""What comes in through /ingest: exactly once, bounded, and under the token's name only."""

from __future__ import annotations

import gzip
import json
import time
from pathlib import Path

import pytest
import trio

from nimbus.logging_pipeline.engine.child import Endpoint
from tests.unit.logging_pipeline.rig import bearer, open_rig, row


async def test_rows_are_acknowledged_once_they_can_be_read(tmp_path: Path, engine: Endpoint) -> None:
    with trio.fail_after(60):
        async with open_rig(tmp_path, engine) as rig:
            reply = await rig.ingest([row(0), row(1), row(2)])
            assert (reply.status_code, reply.json()) == (200, {"acked_seq": 2})
            assert await rig.messages("/logs/machines/7") == ["line 0", "line 1", "line 2"]


async def test_a_repeated_and_an_overlapping_batch_store_nothing_twice(tmp_path: Path, engine: Endpoint) -> None:
    with trio.fail_after(60):
        async with open_rig(tmp_path, engine) as rig:
            await rig.ingest([row(0), row(1)])
            assert (await rig.ingest([row(0), row(1)])).json() == {"acked_seq": 1}
            assert (await rig.ingest([row(1), row(2), row(2, "again"), row(3)])).json() == {"acked_seq": 3}
            counted = await rig.services.table.rows_of(
                f"SELECT count() AS n FROM {rig.services.table.name}"  # noqa: S608 - our own name
            )
            assert int(counted[0]["n"]) == 4
            assert await rig.messages("/logs/machines/7") == ["line 0", "line 1", "line 2", "line 3"]


async def test_a_gap_is_stored_but_not_acknowledged_past(tmp_path: Path, engine: Endpoint) -> None:
    with trio.fail_after(60):
        async with open_rig(tmp_path, engine) as rig:
            assert (await rig.ingest([row(0), row(5)])).json() == {"acked_seq": 0}
            assert (await rig.ingest([row(n) for n in (3, 2, 1, 4)])).json() == {"acked_seq": 5}
            assert await rig.messages("/logs/machines/7") == [f"line {n}" for n in range(6)]


async def test_a_bad_row_is_refused_alone_and_leaves_a_note_in_its_place(tmp_path: Path, engine: Endpoint) -> None:
    bad = [
        {"seq": 1, "ts_ms": 1, "stream": "stdin", "message": "x"},
        {"seq": 2, "ts_ms": "now", "stream": "stdout", "message": "x"},
        {"seq": 3, "ts_ms": 1, "stream": "stdout", "message": "x" * 65537},
        {"seq": 4, "ts_ms": 1, "stream": "stdout", "message": None},
        {"seq": -1, "ts_ms": 1, "stream": "stdout", "message": "x"},
        {"seq": 2**64, "ts_ms": 1, "stream": "stdout", "message": "x"},
        {"seq": True, "ts_ms": 1, "stream": "stdout", "message": "x"},
        "row",
        None,
    ]
    with trio.fail_after(60):
        async with open_rig(tmp_path, engine) as rig:
            reply = await rig.ingest([row(0), *bad, row(5)])
            assert reply.status_code == 200
            assert reply.json()["acked_seq"] == 5
            assert [each["seq"] for each in reply.json()["refused"]] == [1, 2, 3, 4, None, None, None, None, None]
            messages = await rig.messages("/logs/machines/7")
            assert messages[0] == "line 0"
            assert messages[5] == "line 5"
            assert all(message.startswith("nimbus: a row was refused") for message in messages[1:5])


async def test_what_a_body_claims_beside_its_rows_changes_nothing(tmp_path: Path, engine: Endpoint) -> None:
    claimed = row(0, "mine") | {
        "org_id": 2,
        "machine_id": 8,
        "fence": 9,
        "job_id": 3,
        "agent_id": "other",
        "level": "x",
    }
    with trio.fail_after(60):
        async with open_rig(tmp_path, engine) as rig:
            body = {"rows": [claimed], "org_id": 2, "machine_id": 8}
            reply = await rig.client.post(f"{rig.url}/ingest", json=body, headers=bearer(rig.machine_token()))
            assert reply.status_code == 200
            assert await rig.messages("/logs/machines/7", org=1) == ["mine"]
            assert await rig.messages("/logs/machines/8", org=2) == []


async def test_hostile_text_comes_back_as_it_was_sent(tmp_path: Path, engine: Endpoint) -> None:
    hostile = [
        "' UNION SELECT 1; DROP TABLE x --",
        "{x:String} %s \\ \\' \"",
        '{"seq":0}\n{"seq":1}',
        "\t\r\x1b[31mred\x1b[0m \u2028",
        "ü 漢 🦀",
        "); SELECT file('/etc/passwd')",
        ";",
    ]
    with trio.fail_after(60):
        async with open_rig(tmp_path, engine) as rig:
            rows = [row(n, text) for n, text in enumerate(hostile)]
            assert (await rig.ingest(rows)).json() == {"acked_seq": len(hostile) - 1}
            assert await rig.messages("/logs/machines/7") == hostile


async def test_nul_and_lone_surrogates_become_replacement_characters(tmp_path: Path, engine: Endpoint) -> None:
    body = b'{"rows":[{"seq":0,"ts_ms":1,"stream":"stdout","message":"a\\u0000b\\ud83dc"}]}'
    with trio.fail_after(60):
        async with open_rig(tmp_path, engine) as rig:
            reply = await rig.client.post(f"{rig.url}/ingest", content=body, headers=bearer(rig.machine_token()))
            assert reply.json() == {"acked_seq": 0}
            assert await rig.messages("/logs/machines/7") == ["a\ufffdb\ufffdc"]


async def test_a_time_far_off_is_moved_to_within_a_day(tmp_path: Path, engine: Endpoint) -> None:
    with trio.fail_after(60):
        async with open_rig(tmp_path, engine) as rig:
            await rig.ingest([row(0) | {"ts_ms": 0}, row(1) | {"ts_ms": 10**18}, row(2)])
            read = (await rig.read("/logs/machines/7")).json()["rows"]
            now_ms = time.time() * 1000
            assert all(abs(entry["ts_ms"] - now_ms) < 24.1 * 3600 * 1000 for entry in read)
            assert len(read) == 3


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"rows":{}}', b'{"rows":[NaN]}', b"[" * 100_000, b"\xff"])
async def test_a_body_that_is_none_is_refused_whole(tmp_path: Path, engine: Endpoint, body: bytes) -> None:
    with trio.fail_after(60):
        async with open_rig(tmp_path, engine) as rig:
            reply = await rig.client.post(f"{rig.url}/ingest", content=body, headers=bearer(rig.machine_token()))
            assert (reply.status_code, reply.json()["error"]) == (400, "refused")


async def test_a_body_over_the_limit_is_refused_packed_or_not(tmp_path: Path, engine: Endpoint) -> None:
    with trio.fail_after(60):
        async with open_rig(tmp_path, engine) as rig:
            headers = bearer(rig.machine_token())
            plain = await rig.client.post(f"{rig.url}/ingest", content=b" " * (4 * 2**20 + 1), headers=headers)
            bomb = gzip.compress(b" " * (64 * 2**20))
            packed = headers | {"Content-Encoding": "gzip"}
            exploded = await rig.client.post(f"{rig.url}/ingest", content=bomb, headers=packed)
            assert (plain.status_code, exploded.status_code) == (413, 413)


async def test_a_gzip_body_is_read_and_a_broken_one_refused(tmp_path: Path, engine: Endpoint) -> None:
    body = gzip.compress(json.dumps({"rows": [row(0)]}).encode())
    with trio.fail_after(60):
        async with open_rig(tmp_path, engine) as rig:
            headers = bearer(rig.machine_token()) | {"Content-Encoding": "gzip"}
            good = await rig.client.post(f"{rig.url}/ingest", content=body, headers=headers)
            cut = await rig.client.post(f"{rig.url}/ingest", content=body[:-3], headers=headers)
            unknown = await rig.client.post(
                f"{rig.url}/ingest", content=body, headers=headers | {"Content-Encoding": "br"}
            )
            assert (good.status_code, cut.status_code, unknown.status_code) == (200, 400, 415)


async def test_a_machine_with_too_many_gaps_is_told_so(tmp_path: Path, engine: Endpoint) -> None:
    with trio.fail_after(60):
        async with open_rig(tmp_path, engine) as rig:
            reply = await rig.ingest([row(2 * n + 1) for n in range(300)])
            assert reply.json()["acked_seq"] == -1
            assert len(reply.json()["refused"]) == 300 - 256


async def test_requests_of_many_machines_are_stored_together(tmp_path: Path, engine: Endpoint) -> None:
    with trio.fail_after(60):
        async with open_rig(tmp_path, engine) as rig:
            async with trio.open_nursery() as nursery:
                for machine in range(1, 41):
                    nursery.start_soon(lambda m=machine: rig.ingest([row(0)], machine=m))  # type: ignore[misc]
            inserts = rig.services.metrics.registry.get_sample_value("nimbus_logs_insert_seconds_count")
            stored = rig.services.metrics.registry.get_sample_value("nimbus_logs_rows_stored_total")
            assert stored == 40
            assert inserts is not None
            assert inserts < 20
