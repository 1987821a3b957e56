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

from nimbus.logging_pipeline.keys import LONGEST_S, MAX_AGE_S, THROTTLE_S, KeySet, read_max_age_s
from nimbus.model.errors import Unauthorized, Unavailable
from nimbus.wire.tokens import Audience, SigningKey, new_ed25519_key, render_jwks, render_token


@dataclass
class Publisher:
    """A key set endpoint in memory."""

    keys: list[SigningKey] = field(default_factory=list)
    status: int = 200
    cache_control: str = "public, max-age=300"
    tag: str | None = None
    fetches: int = 0
    bodies: int = 0

    def answer(self, request: httpx2.Request) -> httpx2.Response:
        self.fetches += 1
        headers = {"Cache-Control": self.cache_control} | ({} if self.tag is None else {"ETag": self.tag})
        if self.tag is not None and request.headers.get("if-none-match") == self.tag:
            return httpx2.Response(304, headers=headers)
        self.bodies += 1
        body = json.dumps(render_jwks([key.verify_key() for key in self.keys]))
        return httpx2.Response(self.status, content=body, headers=headers)


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


async def test_a_control_plane_that_hangs_holds_one_request_up_and_not_one_after_the_other(
    autojump_clock: trio.testing.MockClock,
) -> None:
    key = new_ed25519_key()
    publisher = Publisher([key])
    hangs = trio.Event()
    waited_s: list[float] = []

    async def answer(request: httpx2.Request) -> httpx2.Response:
        if hangs.is_set():
            await trio.sleep_forever()
        return publisher.answer(request)

    async def verify(keys: KeySet) -> None:
        began = trio.current_time()
        await keys.verify(token(key), Audience.LOGS)
        waited_s.append(trio.current_time() - began)

    async with httpx2.AsyncClient(transport=httpx2.MockTransport(answer)) as client:
        keys = KeySet(client, "http://control-plane/.well-known/jwks.json")
        await verify(keys)
        hangs.set()
        await trio.sleep(MAX_AGE_S + 0.1)
        await verify(keys)  # only now is it known to be away
        del waited_s[:]
        async with trio.open_nursery() as nursery:
            for _ in range(60):
                nursery.start_soon(verify, keys)
                await trio.sleep(0.5)

    assert len(waited_s) == 60
    assert sum(wait > 0 for wait in waited_s) <= 30 / THROTTLE_S  # those that look themselves
    assert max(waited_s) < 10


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
    refused = 0

    async def show_one() -> None:
        nonlocal refused
        with pytest.raises(Unauthorized):
            await keys.verify(token(new_ed25519_key()), Audience.LOGS)
        refused += 1

    async with open_keys(publisher) as keys, trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(show_one)
            await trio.sleep(0.1)
    assert refused == 100
    assert publisher.fetches <= 2 + 10 / THROTTLE_S


async def test_a_key_made_a_moment_after_the_last_look_is_waited_for_and_not_refused(
    autojump_clock: trio.testing.MockClock,
) -> None:
    publisher = Publisher([new_ed25519_key()])
    async with open_keys(publisher) as keys:
        await keys.verify(token(publisher.keys[0]), Audience.LOGS)
        emergency = new_ed25519_key()
        publisher.keys = [emergency]
        began = trio.current_time()
        assert (await keys.verify(token(emergency), Audience.LOGS)).subject == "machine"
        assert trio.current_time() - began <= THROTTLE_S


async def test_an_unknown_key_keeps_no_known_one_waiting(autojump_clock: trio.testing.MockClock) -> None:
    known = new_ed25519_key()
    async with open_keys(Publisher([known])) as keys, trio.open_nursery() as nursery:
        await keys.verify(token(known), Audience.LOGS)
        nursery.start_soon(_refuse, keys, token(new_ed25519_key()))
        await trio.testing.wait_all_tasks_blocked()
        began = trio.current_time()
        await keys.verify(token(known), Audience.LOGS)
        assert trio.current_time() == began


async def _refuse(keys: KeySet, shown: str) -> None:
    with pytest.raises(Unauthorized):
        await keys.verify(shown, Audience.LOGS)


async def test_a_token_of_an_unknown_key_is_not_judged_while_the_control_plane_is_away(
    autojump_clock: trio.testing.MockClock,
) -> None:
    known, unknown = new_ed25519_key(), new_ed25519_key()
    publisher = Publisher([known])
    async with open_keys(publisher) as keys:
        await keys.verify(token(known), Audience.LOGS)
        publisher.status = 503
        for _ in range(3):
            with pytest.raises(Unavailable):
                await keys.verify(token(unknown), Audience.LOGS)
        await keys.verify(token(known), Audience.LOGS)
        publisher.status, publisher.keys = 200, [known, unknown]
        await keys.verify(token(unknown), Audience.LOGS)


async def test_what_no_key_could_make_good_is_refused_without_a_fetch(autojump_clock: trio.testing.MockClock) -> None:
    known, strange = new_ed25519_key(), new_ed25519_key()
    publisher = Publisher([known])
    async with open_keys(publisher) as keys:
        await keys.verify(token(known), Audience.LOGS)
        for shown in (
            render_token(strange, subject="x", audience=Audience.AGENT, now_s=time.time(), ttl_s=60),
            render_token(strange, subject="x", audience=Audience.LOGS, now_s=time.time() - 3600, ttl_s=60),
            "a.b.c",
        ):
            with pytest.raises(Unauthorized):
                await keys.verify(shown, Audience.LOGS)
        assert publisher.fetches == 1


async def test_the_set_is_kept_for_as_long_as_it_says(autojump_clock: trio.testing.MockClock) -> None:
    leaked = new_ed25519_key()
    publisher = Publisher([leaked], cache_control="public, max-age=10")
    async with open_keys(publisher) as keys:
        await keys.verify(token(leaked), Audience.LOGS)
        publisher.keys = [new_ed25519_key()]
        await trio.sleep(9.9)
        await keys.verify(token(leaked), Audience.LOGS)
        await trio.sleep(0.2)
        with pytest.raises(Unauthorized):
            await keys.verify(token(leaked), Audience.LOGS)


async def test_a_set_that_has_not_changed_is_not_sent_again(autojump_clock: trio.testing.MockClock) -> None:
    key = new_ed25519_key()
    publisher = Publisher([key], tag='"one"')
    async with open_keys(publisher) as keys:
        for _ in range(3):
            await keys.verify(token(key), Audience.LOGS)
            await trio.sleep(MAX_AGE_S + 1)
    assert (publisher.fetches, publisher.bodies) == (3, 1)


@pytest.mark.parametrize(
    ("header", "kept_s"),
    [
        ("max-age=60", 60.0), ("public, max-age=60, immutable", 60.0), ("MAX-AGE=60", 60.0), ("max-age=0", 1.0),
        ("max-age=999999999", LONGEST_S), ("", MAX_AGE_S), ("no-store", MAX_AGE_S), ("s-maxage=5", MAX_AGE_S),
        ("max-age=-5", MAX_AGE_S), ("max-age=\u0665", MAX_AGE_S), ("max-age=" + "9" * 40, MAX_AGE_S),
    ],
)  # fmt: skip
def test_how_long_a_set_may_be_kept_is_read_with_care(header: str, kept_s: float) -> None:
    assert read_max_age_s(header) == kept_s
