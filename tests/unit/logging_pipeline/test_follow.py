"""Streams of output: everything once, in order, live, through whatever happens on the way."""

from __future__ import annotations

import time
from pathlib import Path

import trio

from nimbus.logging_pipeline.engine.child import Endpoint
from nimbus.logging_pipeline.live.hub import Hub, HubTerms
from tests.unit.logging_pipeline.bodies import open_body, read_until, seqs_of
from tests.unit.logging_pipeline.rig import bearer, open_rig, row, wait_until


async def test_a_follower_gets_the_stored_rows_then_each_new_one_within_a_second(
    tmp_path: Path, engine: Endpoint
) -> None:
    with trio.fail_after(60):
        async with open_rig(tmp_path, engine) as rig:
            rig.control.add_job(100, 1, "in_progress", [(7, 1)])
            await rig.ingest([row(0), row(1)])
            async with rig.follow("/logs/jobs/100") as events:
                assert [(await anext(events))["message"] for _ in range(2)] == ["line 0", "line 1"]
                for seq in range(2, 5):
                    began = time.monotonic()
                    await rig.ingest([row(seq)])
                    assert (await anext(events))["seq"] == seq
                    assert time.monotonic() - began < 1.0


async def test_a_follower_ends_with_the_job_once_its_end_row_is_told(tmp_path: Path, engine: Endpoint) -> None:
    with trio.fail_after(60):
        async with open_rig(tmp_path, engine) as rig:
            rig.control.add_job(100, 1, "completed", [(7, 2)])
            await rig.ingest([row(0), row(1, "", "end")], fence=2)
            async with rig.follow("/logs/jobs/100") as events:
                told = [event async for event in events]
            assert [event["event"] for event in told] == ["message", "message", "end"]
            assert (told[-1]["why"], told[-1]["state"]) == ("complete", "completed")


async def test_a_job_without_an_end_row_ends_after_a_quiet_time(tmp_path: Path, engine: Endpoint) -> None:
    with trio.fail_after(60):
        async with open_rig(tmp_path, engine) as rig:
            rig.control.add_job(100, 1, "lost", [(7, 1)])
            await rig.ingest([row(0)])
            began = time.monotonic()
            async with rig.follow("/logs/jobs/100") as events:
                told = [event async for event in events]
            assert [event["event"] for event in told] == ["message", "end"]
            assert 1.5 < time.monotonic() - began < 6


async def test_a_reader_that_was_cut_off_goes_on_after_its_last_row(tmp_path: Path, engine: Endpoint) -> None:
    with trio.fail_after(60):
        async with open_rig(tmp_path, engine) as rig:
            rig.control.add_job(100, 1, "in_progress", [(7, 1)])
            await rig.ingest([row(n) for n in range(5)])
            async with rig.follow("/logs/jobs/100") as events:
                seen = [await anext(events) for _ in range(3)]
            rig.control.add_job(100, 1, "completed", [(7, 1)])
            await rig.ingest([row(5, "", "end")])
            async with rig.follow("/logs/jobs/100", after=str(seen[-1]["id"])) as events:
                rest = [event async for event in events]
            assert [event.get("seq") for event in rest] == [3, 4, 5, None]
            async with rig.follow("/logs/jobs/100", after=str(rest[-2]["id"])) as events:
                again = [event async for event in events]
            assert [event["event"] for event in again] == ["end"]


async def test_a_cursor_of_other_output_is_forbidden_and_a_made_up_one_refused(
    tmp_path: Path, engine: Endpoint
) -> None:
    with trio.fail_after(60):
        async with open_rig(tmp_path, engine) as rig:
            rig.control.add_job(100, 1, "in_progress", [(7, 1)])
            for path in ("/logs/jobs/100", "/logs/jobs/100/follow"):
                assert (await rig.read(path, after="8.1.5")).status_code == 403
                for made_up in (
                    "x",
                    "7.1",
                    "7.1.5_",
                    "7.1.-5",
                    "7.1.99999999999999999999",
                    "7.1.5' OR 1=1",
                    "_" * 9999,
                ):
                    assert (await rig.read(path, after=made_up)).status_code == 400, made_up


async def test_a_second_machine_of_the_job_and_a_higher_fence_are_followed_too(
    tmp_path: Path, engine: Endpoint
) -> None:
    with trio.fail_after(60):
        async with open_rig(tmp_path, engine) as rig:
            rig.control.add_job(100, 1, "in_progress", [(7, 1)])
            await rig.ingest([row(0, "first try")])
            async with rig.follow("/logs/jobs/100") as events:
                assert (await anext(events))["message"] == "first try"
                await rig.ingest([row(0, "higher fence")], fence=2)
                assert (await anext(events))["message"] == "higher fence"
                rig.control.add_job(100, 1, "in_progress", [(7, 2), (9, 3)])
                await rig.ingest([row(0, "other machine")], machine=9, fence=3)
                assert (await anext(events))["message"] == "other machine"


async def test_a_stream_ends_when_its_token_does(tmp_path: Path, engine: Endpoint) -> None:
    with trio.fail_after(60):
        async with open_rig(tmp_path, engine) as rig:
            rig.control.add_job(100, 1, "in_progress", [(7, 1)])
            async with rig.follow("/logs/jobs/100", ttl_s=1) as events:
                assert (await anext(events))["why"] == "expired"


async def test_a_slow_reader_is_told_to_resync_and_still_gets_every_row(tmp_path: Path, engine: Endpoint) -> None:
    with trio.fail_after(60):
        async with open_rig(tmp_path, engine, logging_tail_queue_rows=10) as rig:
            async with open_body(rig) as body:
                await rig.ingest([row(0)])
                text = await read_until(body, b'"seq":0')
                for first in range(1, 60, 6):  # while it reads nothing
                    await rig.ingest([row(n) for n in range(first, first + 6)])
                await rig.ingest([row(61, "", "end")])
                text += await read_until(body, b"event: end")
            assert seqs_of(text) == [*range(61), 61]
            assert text.count(b"event: resync") == 1


async def test_a_reader_may_lag_behind_by_so_many_bytes_too(tmp_path: Path, engine: Endpoint) -> None:
    with trio.fail_after(60):
        async with open_rig(tmp_path, engine, logging_tail_queue_kib=64) as rig:
            async with open_body(rig) as body:
                await rig.ingest([row(0)])
                text = await read_until(body, b'"seq":0')
                for seq in range(1, 5):
                    await rig.ingest([row(seq, "x" * 40_000)])
                await rig.ingest([row(5, "", "end")])
                text += await read_until(body, b"event: end")
            assert seqs_of(text) == [*range(6)]
            assert b"event: resync" in text


async def test_a_gap_is_told_once_nothing_can_fill_it(tmp_path: Path, engine: Endpoint) -> None:
    with trio.fail_after(60):
        async with open_rig(tmp_path, engine) as rig:
            async with open_body(rig, gap_s=0.5) as body:
                await rig.ingest([row(0), row(3), row(4, "", "end")])
                text = await read_until(body, b"event: end")
            assert seqs_of(text) == [0, 3, 4]
            assert text.count(b"event: gap") == 1
            assert b'"missing":2' in text


async def test_rows_that_fill_a_hole_in_time_are_told_and_no_gap(tmp_path: Path, engine: Endpoint) -> None:
    with trio.fail_after(60):
        async with open_rig(tmp_path, engine) as rig:
            async with rig.follow("/logs/machines/7") as events:
                await rig.ingest([row(0), row(3)])
                assert (await anext(events))["seq"] == 0
                await rig.ingest([row(2)])
                await rig.ingest([row(1), row(4, "", "end")])
                told = [await anext(events) for _ in range(4)]
            assert [(event["event"], event["seq"]) for event in told] == [("message", seq) for seq in (1, 2, 3, 4)]


async def test_pages_go_on_where_the_last_one_ended(tmp_path: Path, engine: Endpoint) -> None:
    with trio.fail_after(60):
        async with open_rig(tmp_path, engine) as rig:
            rig.control.add_job(100, 1, "in_progress", [(7, 2), (9, 1)])
            for token in ({"fence": 1}, {"fence": 2}, {"machine": 9}):
                await rig.ingest([row(n, f"{token} {n}") for n in range(5)], **token)
            seen: list[str] = []
            cursor, more = "", True
            while more:
                page = (await rig.read("/logs/jobs/100", after=cursor, limit="4")).json()
                seen += [entry["message"] for entry in page["rows"]]
                cursor, more = page["next"], page["more"]
            assert seen == [f"{token} {n}" for token in ({"fence": 1}, {"fence": 2}, {"machine": 9}) for n in range(5)]
            assert await rig.messages("/logs/machines/7", fence="2", limit="1") == ["{'fence': 2} 0"]
            for limit in ("0", "10001", "-1", "x", "1;DROP"):
                assert (await rig.read("/logs/jobs/100", limit=limit)).status_code == 400


async def test_readers_are_capped_for_each_org_and_for_all_and_go_when_they_leave(
    tmp_path: Path, engine: Endpoint
) -> None:
    with trio.fail_after(60):
        async with open_rig(tmp_path, engine, logging_tail_org_limit=3, logging_tail_limit=4) as rig:
            rig.control.add_job(100, 1, "in_progress", [(7, 1)])
            taken = [rig.services.hub.take_seat(1) for _ in range(3)]
            refused = await rig.read("/logs/jobs/100/follow")
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "5")
            of_all = [rig.services.hub.take_seat(2)]
            assert (await rig.read("/logs/machines/9/follow", org=3)).status_code == 429
            for seat in taken + of_all:
                seat.leave()
            async with rig.follow("/logs/jobs/100") as events:
                await rig.ingest([row(0)])
                await anext(events)
                assert rig.services.hub.followers == 1
            await wait_until(lambda: rig.services.hub.followers == 0)  # the server notices the closed connection


async def test_a_seat_is_free_again_where_its_stream_never_began() -> None:
    hub = Hub(HubTerms(readers=1))
    hub.take_seat(1)  # and nobody holds it
    await trio.lowlevel.checkpoint()

    hub.take_seat(1).leave()


async def test_head_on_a_stream_opens_none(tmp_path: Path, engine: Endpoint) -> None:
    with trio.fail_after(60):
        async with open_rig(tmp_path, engine) as rig:
            rig.control.add_job(100, 1, "in_progress", [(7, 1)])
            reply = await rig.client.head(f"{rig.url}/logs/jobs/100/follow", headers=bearer(rig.read_token()))
            assert reply.headers["content-type"].startswith("text/event-stream")
            assert rig.services.hub.followers == 0
