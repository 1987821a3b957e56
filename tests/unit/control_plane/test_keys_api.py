"""The routes of keys: who reaches them, what a verifier reads, and that no key is ever shown."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import trio

from nimbus.control_plane.keys.ring import Purpose
from nimbus.control_plane.keys.shared import list_shared_keys
from nimbus.runtime.settings import SharedSecret
from nimbus.wire.cachetokens import derive_cache_key
from nimbus.wire.tokens import Audience, hmac_key, parse_jwks, render_token
from tests.unit.control_plane.keychains import let_pass
from tests.unit.control_plane.plane import (
    ADMIN_SECRET,
    AGENT_SECRET,
    CACHE_SECRET,
    Plane,
    bearer,
    open_plane,
    open_services,
    serve_plane,
)

pytestmark = pytest.mark.services
JWKS = "/.well-known/jwks.json"
ROUTES = (("GET", "/api/admin/keys"), ("POST", "/api/admin/keys/rotate"), ("POST", "/api/admin/keys/revoke"))


@asynccontextmanager
async def open_with(dsn: str, redis_url: str, **policy: Any) -> AsyncIterator[Plane]:
    """A control plane that lets others in than usual."""
    with trio.fail_after(60):
        async with open_services(dsn, redis_url) as services:
            changed = replace(services, access=replace(services.access, **policy))
            async with serve_plane(changed) as plane:
                yield plane


async def test_the_key_set_holds_six_fields_of_each_public_key_and_nothing_else(
    database_dsn: str, redis_url: str
) -> None:
    async with open_plane(database_dsn, redis_url) as plane:
        reply = await plane.http.post("/api/admin/keys/rotate", json={}, headers=plane.admin())
        assert reply.status_code == 200, reply.text
        await let_pass(plane.services, 601)
        await plane.http.post("/api/admin/keys/rotate", json={"family": "agent"}, headers=plane.admin())

        reply = await plane.http.get(JWKS)

        keys = reply.json()["keys"]
        assert reply.headers["cache-control"] == "public, max-age=300"
        assert [set(key) for key in keys] == [
            {"kty", "crv", "x", "kid", "use", "alg"}
        ] * 5  # 3 of agents, 2 of machines
        assert {(key["kty"], key["crv"], key["use"], key["alg"]) for key in keys} == {
            ("OKP", "Ed25519", "sig", "EdDSA")
        }
        ring = plane.services.keys.current
        known = {key.kid for purpose in Purpose for key in ring.accepted(purpose)}
        assert {key.kid for key in parse_jwks(reply.content)} == known
        for secret in (ADMIN_SECRET, AGENT_SECRET, CACHE_SECRET):
            assert secret not in reply.text
            assert hmac_key(secret).kid not in reply.text


async def test_a_verifier_that_has_the_key_set_is_not_sent_it_again(database_dsn: str, redis_url: str) -> None:
    async with open_plane(database_dsn, redis_url) as plane:
        tag = (await plane.http.get(JWKS)).headers["etag"]
        for shown in (tag, f"W/{tag}", f'"other", {tag}'):
            same = await plane.http.get(JWKS, headers={"If-None-Match": shown})
            assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", tag)
            assert same.headers["cache-control"] == "public, max-age=300"
        await plane.http.post("/api/admin/keys/rotate", json={}, headers=plane.admin())
        changed = await plane.http.get(JWKS, headers={"If-None-Match": tag})
        assert (changed.status_code, changed.headers["etag"] != tag) == (200, True)


async def test_only_an_operator_reaches_the_keys(database_dsn: str, redis_url: str) -> None:
    async with open_plane(database_dsn, redis_url) as plane:
        for method, path in ROUTES:
            for headers, status in (
                ({}, 401), (plane.admin(org_id=1), 403), (plane.admin(role="read"), 403), (plane.service(), 401),
                (await plane.enrol(), 401),
            ):  # fmt: skip
                reply = await plane.http.request(method, path, json=None if method == "GET" else {}, headers=headers)
                assert (reply.status_code, method, path) == (status, method, path)


async def test_a_subject_that_is_not_allowed_does_not_reach_the_keys(database_dsn: str, redis_url: str) -> None:
    async with open_with(database_dsn, redis_url, allowed_subjects=frozenset({"somebody"})) as plane:
        for method, path in ROUTES:
            reply = await plane.http.request(method, path, headers=plane.admin())
            assert reply.status_code == 403


async def test_the_list_says_what_each_key_is_and_shows_none(database_dsn: str, redis_url: str) -> None:
    secrets = [
        SharedSecret("NIMBUS_JWT_SECRET", ADMIN_SECRET, next="n" * 40),
        SharedSecret("NIMBUS_AGENT_TOKEN_SECRET", AGENT_SECRET, previous="p" * 40),
        SharedSecret("NIMBUS_CACHE_SHARED_SECRET", CACHE_SECRET),
    ]
    async with open_with(database_dsn, redis_url, shared_keys=list_shared_keys(secrets)) as plane:
        await plane.http.post("/api/admin/keys/rotate", json={"family": "machine"}, headers=plane.admin())
        reply = await plane.http.get("/api/admin/keys", headers=plane.admin())
        listed = [(key["family"], key["role"], key["source"]) for key in reply.json()["keys"]]
        assert sorted(listed) == [
            ("NIMBUS_AGENT_TOKEN_SECRET", "current", "NIMBUS_AGENT_TOKEN_SECRET"),
            ("NIMBUS_AGENT_TOKEN_SECRET", "previous", "NIMBUS_AGENT_TOKEN_SECRET_PREVIOUS"),
            ("NIMBUS_CACHE_SHARED_SECRET", "current", "NIMBUS_CACHE_SHARED_SECRET"),
            ("NIMBUS_JWT_SECRET", "current", "NIMBUS_JWT_SECRET"),
            ("NIMBUS_JWT_SECRET", "next", "NIMBUS_JWT_SECRET_NEXT"),
            ("agent", "current", "database"),
            ("machine", "current", "database"),
            ("machine", "next", "database"),
        ]
        kids = {key["kid"] for key in reply.json()["keys"]}
        assert {hmac_key(ADMIN_SECRET).kid, derive_cache_key(CACHE_SECRET).kid} <= kids
        rows = await plane.sql("SELECT private_pem FROM signing_keys")
        for material in (ADMIN_SECRET, AGENT_SECRET, CACHE_SECRET, "n" * 40, "p" * 40):
            assert material not in reply.text
        for line in {line for row in rows for line in row["private_pem"].splitlines() if not line.startswith("-")}:
            assert line not in reply.text


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("rotate", {"family": "cache"}, 400), ("rotate", {"family": 7}, 400), ("rotate", {"kid": "a"}, 400),
        ("rotate", [], 400), ("revoke", {}, 400), ("revoke", {"kid": "a" * 65}, 400), ("revoke", {"kid": "a\0"}, 400),
        ("revoke", {"kid": "' OR true --"}, 404), ("revoke", {"kid": "../../etc/passwd"}, 404),
    ],
)  # fmt: skip
async def test_an_order_that_makes_no_sense_changes_nothing(
    database_dsn: str, redis_url: str, path: str, body: object, status: int
) -> None:
    async with open_plane(database_dsn, redis_url) as plane:
        before = (await plane.http.get(JWKS)).content
        reply = await plane.http.post(f"/api/admin/keys/{path}", json=body, headers=plane.admin())
        assert (reply.status_code, (await plane.http.get(JWKS)).content) == (status, before)


# --- what is signed with them ------------------------------------------------------------------------------------


async def test_an_agents_token_outlives_a_rotation_and_no_revocation(database_dsn: str, redis_url: str) -> None:
    async with open_plane(database_dsn, redis_url) as plane:
        agent = await plane.enrol()
        await plane.http.post("/api/admin/keys/rotate", json={}, headers=plane.admin())
        await let_pass(plane.services, 601)
        assert await plane.lease(agent) is None
        fresh = await plane.enrol()
        (old,) = [key["kid"] for key in await listed(plane) if key["role"] == "previous" and key["family"] == "agent"]
        reply = await plane.http.post("/api/admin/keys/revoke", json={"kid": old}, headers=plane.admin())
        assert reply.json()["was"] == "previous"
        body = {"wait_s": 0, "free": {"cpus": 1, "mem_mib": 512, "slots": 1}, "labels": []}
        codes = [
            (await plane.http.post("/api/agents/lease", json=body, headers=headers)).status_code
            for headers in (agent, fresh)
        ]
        assert codes == [401, 204]


async def listed(plane: Plane) -> list[dict[str, str]]:
    return list((await plane.http.get("/api/admin/keys", headers=plane.admin())).json()["keys"])


async def test_every_accepted_secret_opens_and_the_first_one_signs(database_dsn: str, redis_url: str) -> None:
    def token(secret: str, audience: Audience) -> dict[str, str]:
        claims = {"role": "admin"}
        return bearer(
            render_token(hmac_key(secret), subject="a-1", audience=audience, now_s=time.time(), ttl_s=60, claims=claims)
        )

    coming, gone, strange = ("n" * 40, "p" * 40, "s" * 40)
    keys = tuple(map(hmac_key, (ADMIN_SECRET, coming, gone)))
    async with open_with(database_dsn, redis_url, admin_keys=keys, enrolment_keys=keys) as plane:
        asked = {"version": "0.1.0", "boot_id": "b", "cpus": 8, "mem_mib": 8192}
        for secret, wanted in ((ADMIN_SECRET, 200), (coming, 200), (gone, 200), (strange, 401)):
            admin = await plane.http.get("/api/status", headers=token(secret, Audience.ADMIN))
            enrolled = await plane.http.post(
                "/api/agents/enrol", json=asked, headers=token(secret, Audience.AGENT_ENROLMENT)
            )
            assert (admin.status_code, enrolled.status_code) == (wanted, wanted)
