"""The control plane's keys as the pipeline keeps them: rotation, outage, and no flood of fetches."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx2
import pytest
import trio
import trio.testing

from nimbus.logging_pipeline.keys import MAX_AGE_S, THROTTLE_S, KeySet
from nimbus.model.errors import Unauthorized, Unavailable
from nimbus.wire.tokens import Audience, SigningKey, new_ed25519_key, render_jwks, render_token


@dataclass
class Publisher:
    """A key set endpoint in memory."""

    keys: list[SigningKey] = field(default_factory=list)
    status: int = 200
    fetches: int = 0

    def answer(self, _request: httpx2.Request) -> httpx2.Response:
        self.fetches += 1
        body = json.dumps(render_jwks([key.verify_key() for key in self.keys]))
        return httpx2.Response(self.status, content=body)


@asynccontextmanager
async def open_keys(publisher: Publisher) -> AsyncIterator[KeySet]:
    async with httpx2.AsyncClient(transport=httpx2.MockTransport(publisher.answer)) as client:
        yield KeySet(client, "http://control-plane/.well-known/jwks.json")


def token(key: SigningKey) -> str:
    return render_token(key, subject="machine", audience=Audience.LOGS, now_s=time.time(), ttl_s=3600)


async def test_a_key_that_was_added_works_after_one_more_fetch(autojump_clock: trio.testing.MockClock) -> None:
    old, new = new_ed25519_key(), new_ed25519_key()
    publisher = Publisher([old])
    async with open_keys(publisher) as keys:
        await keys.verify(token(old), Audience.LOGS)
        publisher.keys.append(new)
        await trio.sleep(THROTTLE_S + 0.1)
        assert (await keys.verify(token(new), Audience.LOGS)).subject == "machine"
        await keys.verify(token(old), Audience.LOGS)
        assert publisher.fetches == 2


async def test_a_key_that_was_taken_out_stops_working_when_the_set_is_old(
    autojump_clock: trio.testing.MockClock,
) -> None:
    leaked, kept = new_ed25519_key(), new_ed25519_key()
    publisher = Publisher([leaked, kept])
    async with open_keys(publisher) as keys:
        await keys.verify(token(leaked), Audience.LOGS)
        publisher.keys.remove(leaked)
        await trio.sleep(MAX_AGE_S + 0.1)
        with pytest.raises(Unauthorized):
            await keys.verify(token(leaked), Audience.LOGS)
        await keys.verify(token(kept), Audience.LOGS)


async def test_known_keys_go_on_working_while_the_control_plane_is_away(
    autojump_clock: trio.testing.MockClock,
) -> None:
    key = new_ed25519_key()
    publisher = Publisher([key])
    async with open_keys(publisher) as keys:
        await keys.verify(token(key), Audience.LOGS)
        publisher.status = 503
        await trio.sleep(10 * MAX_AGE_S)
        await keys.verify(token(key), Audience.LOGS)


async def test_without_any_key_the_caller_waits_and_the_next_fetch_heals_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    key = new_ed25519_key()
    publisher = Publisher([key], status=500)
    async with open_keys(publisher) as keys:
        for _ in range(5):
            with pytest.raises(Unavailable):
                await keys.verify(token(key), Audience.LOGS)
        assert publisher.fetches == 1
        publisher.status = 200
        await trio.sleep(THROTTLE_S + 0.1)
        await keys.verify(token(key), Audience.LOGS)


async def test_a_flood_of_unknown_key_ids_makes_one_fetch_for_each_throttle(
    autojump_clock: trio.testing.MockClock,
) -> None:
    publisher = Publisher([new_ed25519_key()])
    async with open_keys(publisher) as keys:
        for _ in range(100):
            with pytest.raises(Unauthorized):
                await keys.verify(token(new_ed25519_key()), Audience.LOGS)
            await trio.sleep(0.1)
        assert publisher.fetches <= 1 + 10 / THROTTLE_S
