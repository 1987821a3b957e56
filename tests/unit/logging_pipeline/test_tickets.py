"""Tickets: a minute's way in to one stream or download for a browser. Tokens never stand in addresses."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import httpx2
import pytest
import structlog
import trio
from hypercorn.config import Config
from structlog.testing import capture_logs

from nimbus.logging_pipeline.app import build_logging_pipeline
from nimbus.logging_pipeline.engine.child import Endpoint
from nimbus.logging_pipeline.tickets import TICKET_S, Reader, read_ticket, render_ticket
from nimbus.model.errors import Forbidden, NimbusError, Unauthorized
from nimbus.runtime.hidden import find_hidden, hide_parameters
from nimbus.runtime.listening import start_hypercorn
from nimbus.wire.tokens import Audience, hmac_key, new_ed25519_key, render_token
from tests.unit.logging_pipeline.rig import SECRET, Rig, bearer, open_rig, row

NOW_S = 1_800_000_000.0
PATH = "/logs/jobs/100/follow"
KEY, OTHER_KEY = hmac_key(SECRET), hmac_key("another-secret-that-is-long-enough-0123456789")
READER = Reader("alice", 7, int(NOW_S) + 3600, "the-token")


def opened(text: str, *, path: str = PATH, now_s: float = NOW_S) -> Reader | type[NimbusError]:
    try:
        return read_ticket(text, [KEY], path, now_s)
    except NimbusError as error:
        return Unauthorized if isinstance(error, Unauthorized) else type(error)


def test_a_ticket_says_whose_it_is_and_ends_with_the_token_that_it_was_made_for() -> None:
    assert opened(render_ticket(KEY, READER, PATH, NOW_S).text) == READER
    nobody = Reader("operator", None, int(NOW_S) + 5)
    ticket = render_ticket(KEY, nobody, PATH, NOW_S)
    assert (opened(ticket.text), ticket.expires_at_s) == (nobody, int(NOW_S) + 5)


def test_a_ticket_is_good_for_a_minute_and_for_its_own_path() -> None:
    text = render_ticket(KEY, READER, PATH, NOW_S).text

    assert opened(text, now_s=NOW_S + TICKET_S - 1) == READER
    assert opened(text, now_s=NOW_S + TICKET_S) is Unauthorized
    for path in ("/logs/jobs/101/follow", "/logs/jobs/100/download", "/logs/jobs/100", "/logs/machines/100/follow"):
        assert opened(text, path=path) is Forbidden


@pytest.mark.parametrize("audience", sorted(set(Audience) - {Audience.LOGS_TICKET}))
def test_no_token_of_another_kind_is_a_ticket(audience: Audience) -> None:
    claims: dict[str, object] = {"path": PATH, "until": int(NOW_S) + 60, "org_id": 7}
    text = render_token(KEY, subject="x", audience=audience, now_s=NOW_S, ttl_s=60, claims=claims)

    assert opened(text) is Unauthorized


def test_a_ticket_of_another_secret_or_without_its_claims_is_none() -> None:
    bare = render_token(KEY, subject="x", audience=Audience.LOGS_TICKET, now_s=NOW_S, ttl_s=60)

    assert opened(render_ticket(OTHER_KEY, READER, PATH, NOW_S).text) is Unauthorized
    assert [opened(text) for text in ("", "x", "a.b.c", "x" * 10_000, bare)] == [Unauthorized] * 5


# --- by HTTP -----------------------------------------------------------------------------------------------------


async def get_ticket(rig: Rig, org: int = 1, **wish: object) -> httpx2.Response:
    return await rig.client.post(f"{rig.url}/logs/tickets", json=wish, headers=bearer(rig.read_token(org)))


async def test_a_browser_follows_a_job_by_its_ticket_without_any_header(tmp_path: Path, engine: Endpoint) -> None:
    with trio.fail_after(60):
        async with open_rig(tmp_path, engine) as rig:
            rig.control.add_job(100, 1, "completed", [(7, 1)])
            await rig.ingest([row(0), row(1, "", "end")])
            made = await get_ticket(rig, job_id=100)
            told = made.json()
            async with rig.follow("/logs/jobs/100", ticket=told["ticket"]) as events:
                seen = [event async for event in events]
            assert (made.status_code, made.headers["cache-control"]) == (201, "no-store")
            assert told["url"] == f"/logs/jobs/100/follow?ticket={told['ticket']}"
            assert 0 < told["expires_at"] - time.time() <= TICKET_S
            assert [event["event"] for event in seen] == ["message", "message", "end"]


async def test_a_ticket_opens_its_stream_and_nothing_else(tmp_path: Path, engine: Endpoint) -> None:
    with trio.fail_after(60):
        async with open_rig(tmp_path, engine) as rig:
            rig.control.add_job(100, 1, "completed", [(7, 1)])
            rig.control.add_job(101, 1, "completed", [(7, 1)])
            ticket = (await get_ticket(rig, job_id=100)).json()["ticket"]
            by_path = {
                path: (await rig.client.get(f"{rig.url}{path}", params={"ticket": ticket})).status_code
                for path in ("/logs/jobs/101/follow", "/logs/machines/7/follow", "/logs/jobs/100", "/logs/machines/7")
            }
            made_with_it = await rig.client.post(f"{rig.url}/logs/tickets?ticket={ticket}", json={"job_id": 100})
            both = await rig.client.get(
                f"{rig.url}/logs/jobs/100/follow?ticket={ticket}", headers=bearer(rig.read_token())
            )
            assert by_path == {
                "/logs/jobs/101/follow": 403, "/logs/machines/7/follow": 403, "/logs/jobs/100": 400,
                "/logs/machines/7": 400,
            }  # fmt: skip
            assert (made_with_it.status_code, both.status_code) == (400, 400)


async def test_no_ticket_is_made_for_what_the_reader_does_not_see_or_what_is_no_stream(
    tmp_path: Path, engine: Endpoint
) -> None:
    with trio.fail_after(60):
        async with open_rig(tmp_path, engine) as rig:
            rig.control.add_job(200, 12, "completed", [(8, 1)])
            foreign, absent = await get_ticket(rig, job_id=200), await get_ticket(rig, job_id=999)
            wrong = [
                (await get_ticket(rig, **wish)).status_code
                for wish in (
                    {}, {"job_id": 200, "machine_id": 8}, {"job_id": "200"}, {"machine_id": -1}, {"job_id": True},
                    {"machine_id": 8, "use": "delete"}, {"machine_id": 8, "path": "/metrics"},
                    {"machine_id": 8, "org_id": 12},
                )
            ]  # fmt: skip
            without = await rig.client.post(f"{rig.url}/logs/tickets", json={"machine_id": 8})
            by_machine = await rig.client.post(
                f"{rig.url}/logs/tickets", json={"machine_id": 8}, headers=bearer(rig.machine_token())
            )
            assert (foreign.status_code, absent.status_code) == (404, 404)
            assert foreign.json()["message"].replace("200", "") == absent.json()["message"].replace("999", "")
            assert wrong == [400] * len(wrong)
            assert (without.status_code, by_machine.status_code) == (401, 401)


async def test_a_ticket_for_another_orgs_machine_shows_nothing_of_it(tmp_path: Path, engine: Endpoint) -> None:
    with trio.fail_after(60):
        async with open_rig(tmp_path, engine) as rig:
            await rig.ingest([row(0, "of twelve"), row(1, "", "end")], org=12, machine=8)
            await rig.ingest([row(0, "of one"), row(1, "", "end")], org=1, machine=8)
            ticket = (await get_ticket(rig, org=1, machine_id=8)).json()["ticket"]
            async with rig.follow("/logs/machines/8", ticket=ticket) as events:
                seen = [event async for event in events]
            assert [event.get("message") for event in seen] == ["of one", "line 1", None]


# --- nothing of it is written down -------------------------------------------------------------------------------


async def test_a_token_in_an_address_is_refused_with_what_to_do_instead(tmp_path: Path, engine: Endpoint) -> None:
    with trio.fail_after(60):
        async with open_rig(tmp_path, engine) as rig:
            rig.control.add_job(100, 1, "completed", [(7, 1)])
            token = rig.read_token()
            for path in ("/logs/jobs/100", "/logs/jobs/100/follow", "/logs/machines/7/follow"):
                for headers in ({}, bearer(token)):
                    reply = await rig.client.get(f"{rig.url}{path}?token={token}", headers=headers)
                    assert reply.status_code == 400
                    assert "/logs/tickets" in reply.text
                    assert token not in reply.text


def scope_after(query: bytes) -> tuple[bytes, dict[str, str]]:
    scope: dict[str, object] = {"type": "http", "query_string": query}
    hide_parameters(scope, {"ticket", "token"})
    return scope["query_string"], dict(find_hidden(scope))  # type: ignore[return-value]


def test_what_opens_something_is_struck_out_of_the_address_however_it_is_written() -> None:
    assert scope_after(b"after=7.1.3&ticket=abc&x=1") == (b"after=7.1.3&ticket=***&x=1", {"ticket": "abc"})
    assert scope_after(b"%74icket=a%2Eb") == (b"%74icket=***", {"ticket": "a.b"})
    assert scope_after(b"ticket=a&ticket=b&token=c") == (
        b"ticket=***&ticket=***&token=***", {"ticket": "a", "token": "c"}
    )  # fmt: skip
    assert scope_after(b"tickets=a&q=ticket%3Dx&ticket") == (b"tickets=a&q=ticket%3Dx&ticket=***", {"ticket": ""})
    assert scope_after(b"") == (b"", {})
    assert scope_after(b"\xff=\xfe&ticket=\xff") == (b"\xff=\xfe&ticket=***", {"ticket": "\xff"})


async def test_our_own_logs_hold_neither_tickets_nor_tokens(tmp_path: Path, engine: Endpoint) -> None:
    with trio.fail_after(60), capture_logs() as logged:
        async with open_rig(tmp_path, engine) as rig:
            rig.control.add_job(100, 1, "completed", [(7, 1)])
            made = (await get_ticket(rig, job_id=100)).json()["ticket"]
            await rig.client.get(f"{rig.url}/logs/jobs/100/follow?ticket={made}")
            await rig.client.get(f"{rig.url}/logs/jobs/101/follow?ticket={made}")
            structlog.get_logger().info("seen")
    assert made not in repr(logged)
    assert logged
    assert new_ed25519_key().kid not in repr(logged)


async def test_the_servers_own_access_log_holds_no_ticket_and_no_token(
    tmp_path: Path, engine: Endpoint, caplog: pytest.LogCaptureFixture
) -> None:
    with trio.fail_after(60), caplog.at_level(logging.INFO, logger="access-of-tests"):
        async with open_rig(tmp_path, engine) as rig, trio.open_nursery() as nursery:
            config = Config()
            config.bind = ["127.0.0.1:0"]
            config.accesslog = logging.getLogger("access-of-tests")
            config.access_log_format = "%(R)s | %(Uq)s | %(q)s"
            stop = trio.Event()
            urls = await start_hypercorn(nursery, build_logging_pipeline(rig.services), config, stop.wait, "")
            ticket, token = (await get_ticket(rig, machine_id=7)).json()["ticket"], rig.read_token()
            await rig.client.head(f"{urls[0]}/logs/machines/7/follow?after=&ticket={ticket}")
            await rig.client.get(f"{urls[0]}/logs/machines/7?token={token}&limit=1")
            stop.set()
    assert "ticket=***" in caplog.text
    assert "token=***&limit=1" in caplog.text
    assert ticket not in caplog.text
    assert token not in caplog.text
