"""Live output between replicas: heard at once through Redis, read from the table where Redis is away, never lost."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import pytest
import trio
from pydantic import SecretStr

from nimbus.logging_pipeline.engine.child import Endpoint
from nimbus.logging_pipeline.live.follow import Follow
from nimbus.logging_pipeline.live.hub import Hub
from nimbus.logging_pipeline.live.relay import LiveRelay, Payload, parse_channel, render_payloads
from nimbus.logging_pipeline.rows import Place, ReadRow, ReadScope, Row, Source
from nimbus.runtime.relay import Relay
from tests.services import RedisServer
from tests.unit.logging_pipeline.bodies import open_body, read_until, seqs_of
from tests.unit.logging_pipeline.rig import ControlPlane, Rig, open_rig, row, wait_until

pytestmark = pytest.mark.services


@asynccontextmanager
async def open_replicas(state: Path, engine: Endpoint, redis: RedisServer) -> AsyncIterator[tuple[Rig, Rig]]:
    """Two of the service over one store and one Redis."""
    control, url = ControlPlane(), SecretStr(redis.url)
    async with open_rig(state, engine, control=control, redis_url=url) as left:
        database = left.services.table.name.partition(".")[0]
        async with open_rig(state, engine, control=control, clickhouse_database=database, redis_url=url) as right:
            await wait_until(lambda: left.services.hub.is_whole and right.services.hub.is_whole)
            yield left, right


@dataclass
class ShutTable:
    """A table that tells what it holds, until it is shut: then all that a reader gets was published."""

    rig: Rig
    shut: bool = False

    async def page(self, scope: ReadScope, places: Sequence[Place], limit: int) -> list[ReadRow]:
        found = await self.rig.services.table.page(scope, places, limit)
        return [] if self.shut else found


async def test_a_line_taken_in_at_one_replica_is_told_at_the_other_before_it_is_read_from_the_table(
    tmp_path: Path, engine: Endpoint, redis_server: RedisServer
) -> None:
    with trio.fail_after(60):
        async with open_replicas(tmp_path, engine, redis_server) as (left, right):
            await left.ingest([row(0)])
            table, body = ShutTable(right), open_body(right)
            async with Follow(replace(right.services.tails, table=table), body.wanted) as body:
                text = await read_until(body, b'"seq":0')
                await _wait_subscribed(redis_server, "nimbus:tail:1:7")
                table.shut = True
                await left.ingest([row(1), row(2, "", "end")])
                text += await read_until(body, b"event: end")
            assert seqs_of(text) == [0, 1, 2]


async def test_while_redis_is_away_readers_look_at_the_table_and_are_told_all(
    tmp_path: Path, engine: Endpoint, redis_server: RedisServer
) -> None:
    with trio.fail_after(90):
        async with open_replicas(tmp_path, engine, redis_server) as (left, right):
            async with right.follow("/logs/machines/7") as events:
                await left.ingest([row(0)])
                assert (await anext(events))["seq"] == 0
                redis_server.stop()
                await wait_until(lambda: not right.services.hub.is_whole)
                ready = (await right.client.get(f"{right.url}/readyz")).json()
                metrics = (await right.client.get(f"{right.url}/metrics")).text
                await left.ingest([row(1)])
                assert (await anext(events))["seq"] == 1
                redis_server.start()
                await wait_until(lambda: right.services.hub.is_whole and left.services.hub.is_whole)
                await left.ingest([row(2), row(3, "", "end")])
                told = [await anext(events) for _ in range(3)]
            assert [event.get("seq") for event in told] == [2, 3, None]
            assert ready["relay"] == "polling"
            assert "nimbus_logs_relay_up 0.0" in metrics


async def test_a_reader_that_was_cut_off_goes_on_at_another_replica(
    tmp_path: Path, engine: Endpoint, redis_server: RedisServer
) -> None:
    with trio.fail_after(60):
        async with open_replicas(tmp_path, engine, redis_server) as (left, right):
            await left.ingest([row(0), row(1)])
            async with left.follow("/logs/machines/7") as events:
                seen = [await anext(events) for _ in range(2)]
            await right.ingest([row(2), row(3, "", "end")])
            async with right.follow("/logs/machines/7", after=str(seen[0]["id"])) as events:
                rest = [event async for event in events]
            assert [event.get("seq") for event in rest] == [1, 2, 3, None]


async def test_without_redis_one_service_alone_is_whole(tmp_path: Path, engine: Endpoint) -> None:
    with trio.fail_after(60):
        async with open_rig(tmp_path, engine) as rig:
            ready = (await rig.client.get(f"{rig.url}/readyz")).json()
            assert (ready["relay"], ready["revoked"]) == ("none", "fresh")
            assert "nimbus_logs_relay_up 1.0" in (await rig.client.get(f"{rig.url}/metrics")).text


# --- what comes over the wire ------------------------------------------------------------------------------------


class _NoRelay(Relay):
    def __init__(self) -> None:
        """Nothing is sent."""


def _rows(*seqs: int, chars: int = 10) -> list[Row]:
    return [Row(seq, 0, "stdout", "info", "x" * chars) for seq in seqs]


async def test_rows_reach_the_readers_of_their_org_and_machine_only() -> None:
    hub = Hub()
    live = LiveRelay(hub, _NoRelay())
    mine, of_other_org, other_machine = hub.subscribe(1, [7]), hub.subscribe(2, [7]), hub.subscribe(1, [8])

    live.heard("1:7", b"o" * 16 + render_payloads(3, _rows(0, 1))[0])
    await trio.lowlevel.checkpoint()

    batch = mine.take()
    assert batch is not None
    assert (batch.source, [each.seq for each in batch.rows]) == (Source(1, 7, 3), [0, 1])
    assert (of_other_org.take(), other_machine.take()) == (None, None)


@pytest.mark.parametrize(
    "payload", [b"", b"{}", b"[1]", b"\xff" * 40, b'{"fence":"1","rows":[]}', b'{"fence":1,"rows":[{"seq":1}]}']
)
async def test_a_payload_that_is_not_understood_sends_readers_to_the_table(payload: bytes) -> None:
    hub = Hub()
    live = LiveRelay(hub, _NoRelay())
    reader, other = hub.subscribe(1, [7]), hub.subscribe(1, [8])

    live.heard("1:7", b"o" * 16 + payload)
    await trio.lowlevel.checkpoint()

    assert (reader.take(), reader.take_look(), other.take_look()) == (None, True, False)


def test_payloads_are_of_bounded_size_and_hold_every_row_in_order() -> None:
    rows = _rows(*range(20), chars=60_000)

    payloads = render_payloads(1, rows)

    told = [msgspec.json.decode(payload, type=Payload).rows for payload in payloads]
    assert max(map(len, payloads)) < 300_000
    assert [each.seq for part in told for each in part] == [*range(20)]
    assert render_payloads(1, []) == []


def test_only_channels_of_org_and_machine_name_a_machine() -> None:
    assert [parse_channel(name) for name in ("1:7", "all", "1:", ":7", "1:7:9", "-1:7", "")] == [(1, 7), *[None] * 6]


async def _wait_subscribed(redis: RedisServer, channel: str) -> None:
    """Return once somebody listens to that channel."""
    listened = False
    while not listened:
        async with await trio.open_unix_socket(redis.url.removeprefix("unix://")) as stream:
            await stream.send_all(f"PUBSUB NUMSUB {channel}\r\n".encode())
            listened = not bytes(await stream.receive_some(4096)).endswith(b":0\r\n")
