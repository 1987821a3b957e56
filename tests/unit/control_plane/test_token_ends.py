"""What ends a token before its time: one use, the end of its lease, a dropped key, an operator."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace

import pytest
import trio

from nimbus.control_plane.keys.denylist import DenyList
from nimbus.control_plane.keys.revocation import follow_denied
from nimbus.wire.cachetokens import BoundLease, derive_cache_key, plan_claims, render_cache_token
from nimbus.wire.tokens import SigningKey, hmac_key
from tests.services import RedisServer
from tests.unit.control_plane.doors import Doors, cache_token, open_doors, reopened, sign, statuses
from tests.unit.control_plane.plane import Plane, open_plane

pytestmark = pytest.mark.services


@pytest.fixture
async def doors(database_dsn: str, redis_url: str) -> AsyncIterator[Doors]:
    async with open_plane(database_dsn, redis_url) as plane, open_doors(plane) as doors:
        yield doors


# --- nonces -------------------------------------------------------------------------------------------------------

SUBMIT = {"argv": ["true"]}


async def submit(plane: Plane, headers: dict[str, str]) -> int:
    return (await plane.http.post("/api/jobs", json=SUBMIT, headers=headers)).status_code


async def test_a_nonce_is_good_once_and_the_same_one_of_another_org_is_another(
    database_dsn: str, redis_url: str
) -> None:
    async with open_plane(database_dsn, redis_url) as plane:
        await plane.sql(
            "INSERT INTO orgs (forge, forge_id, login) SELECT 'github', n, 'o' || n FROM generate_series(1, 2) n"
        )
        one, two = (
            row["org_id"] for row in await plane.sql("SELECT org_id FROM orgs WHERE forge = 'github' ORDER BY 1")
        )
        seen = [await submit(plane, plane.admin(nonce="n", org_id=org_id)) for org_id in (one, two, one, two)]
        seen += [await submit(plane, plane.admin(nonce="n")), await submit(plane, plane.admin(nonce="n"))]
        jobs = await plane.sql("SELECT count(*) AS made FROM jobs")

    assert seen == [201, 201, 409, 409, 201, 409]
    assert jobs[0]["made"] == 3


async def test_of_twenty_calls_at_once_with_one_nonce_in_two_control_planes_one_is_made(
    database_dsn: str, redis_url: str
) -> None:
    seen: list[int] = []
    async with (
        open_plane(database_dsn, redis_url, prefix="test:nonce:") as left,
        open_plane(database_dsn, redis_url, prefix="test:nonce:") as right,
    ):
        once = left.admin(nonce=f"n{time.time_ns()}")

        async def call(plane: Plane) -> None:
            seen.append(await submit(plane, once))

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(call, left)
                nursery.start_soon(call, right)

    assert sorted(seen) == [201] + [409] * 19


async def test_reading_does_not_use_a_nonce_up_and_a_refusal_of_the_role_neither(
    database_dsn: str, redis_url: str
) -> None:
    async with open_plane(database_dsn, redis_url) as plane:
        once = plane.admin(nonce="n")
        reads = [(await plane.http.get("/api/status", headers=once)).status_code for _ in range(3)]
        refused = await submit(plane, plane.admin(nonce="n", role="read"))
        made = await submit(plane, once)
        after = (await plane.http.get("/api/status", headers=once)).status_code

    assert (reads, refused, made, after) == ([200, 200, 200], 403, 201, 200)


async def test_without_redis_a_token_that_is_good_once_changes_nothing_and_others_do(
    database_dsn: str, redis_server: RedisServer
) -> None:
    async with open_plane(database_dsn, redis_server.url) as plane:
        redis_server.stop()
        once = await plane.http.post("/api/jobs", json=SUBMIT, headers=plane.admin(nonce="n"))
        read = await plane.http.get("/api/status", headers=plane.admin(nonce="n"))
        plain = await submit(plane, plane.admin())
        redis_server.start()
        again = await submit(plane, plane.admin(nonce="n"))

    assert (once.status_code, read.status_code, plain) == (503, 200, 201)
    assert int(once.headers["retry-after"]) >= 1
    assert again == 201


async def test_a_nonce_or_an_id_that_is_none_of_ours_is_a_401(doors: Doors) -> None:
    words: list[object] = ["", " ", "n" * 129, "a b", "\N{GRINNING FACE}", "a\nb", 7, ["n"], True, {"n": 1}, "*", "a/b"]
    for word in words:
        admin = doors.jwt[0]
        assert [await admin.show(admin.token(nonce=word)), await admin.show(admin.token(jti=word))] == [401, 401]


# --- what ends a token --------------------------------------------------------------------------------------------


async def test_the_token_of_a_finished_job_is_a_401(doors: Doors) -> None:
    plane = doors.plane
    agent = await plane.enrol()
    await plane.submit()
    grant = await plane.lease(agent)
    assert grant is not None
    token, name = grant["cache_token"]["token"], f"org-{grant['org_id']}"

    while_running = [await doors.reach(token, name, method) for method in ("GET", "PUT")]
    await plane.renew(agent, grant)
    finished = await plane.finish(agent, grant)
    when_done = [await doors.reach(token, name, method) for method in ("GET", "PUT")]

    assert (while_running, finished.status_code, when_done) == ([200, 200], 200, [401, 401])


async def test_the_token_of_a_lease_that_ran_out_is_a_401_and_stays_one_under_the_next_fence(doors: Doors) -> None:
    plane = doors.plane
    agent = await plane.enrol()
    await plane.submit()
    first = await plane.lease(agent)
    assert first is not None
    await plane.sql("UPDATE machines SET deadline = clock_timestamp() - interval '1 s'")
    late = await doors.reach(first["cache_token"]["token"], f"org-{first['org_id']}")
    await plane.pass_deadlines()
    second = await plane.lease(agent)
    assert second is not None
    seen = [await doors.reach(grant["cache_token"]["token"], f"org-{grant['org_id']}") for grant in (first, second)]

    assert second["fence"] > first["fence"]
    assert (late, seen) == (401, [401, 200])


async def test_a_token_that_names_another_orgs_lease_or_none_that_ever_was_is_a_401(doors: Doors) -> None:
    plane = doors.plane
    agent = await plane.enrol()
    await plane.submit()
    grant = await plane.lease(agent)
    assert grant is not None
    theirs = BoundLease(grant["machine_id"], grant["fence"])
    stolen = cache_token(grant["org_id"] + 1, lease=theirs)
    missing = cache_token(grant["org_id"], lease=BoundLease(10**15, 1))
    later = cache_token(grant["org_id"], lease=replace(theirs, fence=grant["fence"] + 1))

    assert await doors.reach(stolen, f"org-{grant['org_id'] + 1}") == 401
    assert [await doors.reach(token, f"org-{grant['org_id']}") for token in (missing, later)] == [401, 401]


async def test_a_renewal_gives_a_cache_token_to_whoever_asks_and_to_nobody_else(doors: Doors) -> None:
    plane = doors.plane
    agent = await plane.enrol()
    await plane.submit()
    grant = await plane.lease(agent)
    assert grant is not None
    path = f"/api/machines/{grant['machine_id']}/renew"
    body = {"lease_id": grant["lease_id"], "fence": grant["fence"], "state": "running"}
    asked = await plane.http.post(path, json=body | {"wants_cache_token": True}, headers=agent)
    silent = await plane.http.post(path, json=body, headers=agent)
    stranger = await plane.http.post(path, json=body | {"wants_cache_token": True}, headers=await plane.enrol("other"))

    assert await doors.reach(asked.json()["cache_token"]["token"], f"org-{grant['org_id']}") == 200
    assert "cache_token" not in silent.json()
    assert (stranger.status_code, "token" in stranger.text) == (409, False)


async def test_a_previous_key_is_taken_during_the_overlap_and_a_401_after_it(database_dsn: str, redis_url: str) -> None:
    before, coming = hmac_key("b" * 40), hmac_key("n" * 40)
    async with open_plane(database_dsn, redis_url) as plane:
        access = plane.services.access
        overlapping = replace(
            access,
            admin_keys=(*access.admin_keys, before, coming),
            enrolment_keys=(*access.enrolment_keys, before, coming),
        )
        async with reopened(replace(plane.services, access=overlapping)) as wider, open_doors(wider) as doors:
            during = await show_signed_by(doors, before, coming)
        async with open_doors(plane) as doors:
            after = await show_signed_by(doors, before, coming)

    assert during == [200] * 12
    assert after == [401] * 12


async def show_signed_by(doors: Doors, *keys: SigningKey) -> list[int]:
    """What the doors of shared secrets answer to tokens of these keys, with their ids and without."""
    return [
        await door.show(sign(key, {"alg": "HS256"} | named, door.payload()))
        for door in doors.jwt[:3]
        for key in keys
        for named in ({"kid": key.kid}, {})
    ]


async def test_a_previous_cache_secret_is_taken_during_the_overlap_and_a_401_after_it(doors: Doors) -> None:
    previous = derive_cache_key("p" * 40)
    token = render_cache_token(previous, plan_claims(1, now_s=time.time(), ttl_s=60))
    doors.cache_keys.append(previous)
    during = await doors.reach(token)
    doors.cache_keys.remove(previous)

    assert (during, await doors.reach(token)) == (200, 401)


class Telling(DenyList):
    """A deny list that tells when it holds an id."""

    def __init__(self, awaited: str) -> None:
        self.told = trio.Event()
        self._awaited = awaited
        super().__init__()

    def replace(self, token_ids: Iterable[str]) -> None:
        super().replace(token_ids)
        if self.holds(self._awaited):
            self.told.set()


async def test_a_revoked_id_is_a_401_at_every_door_that_reads_ids_and_in_every_control_plane(
    database_dsn: str, redis_url: str
) -> None:
    denied = Telling("gone")
    async with (
        open_plane(database_dsn, redis_url, prefix="test:deny:") as left,
        open_plane(database_dsn, redis_url, prefix="test:deny:") as other,
        reopened(replace(other.services, access=replace(other.services.access, denied=denied))) as right,
        open_doors(right) as doors,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(follow_denied, right.services)
        before = await statuses(doors, jti="gone")
        answer = await left.http.post("/api/admin/tokens/revoke", json={"jti": "gone"}, headers=left.admin())
        await denied.told.wait()  # the bell, or the next look; open_plane's own limit stands around it
        while not doors.revoked.holds("gone"):  # noqa: ASYNC110 - a service asks now and then
            await trio.sleep(0.01)
        after = await statuses(doors, jti="gone")
        others = await statuses(doors, jti="other")
        nursery.cancel_scope.cancel()

    assert (answer.status_code, before["admin"]) == (200, 200)
    assert {name for name, status in after.items() if status == 401} == {"admin", "internal", "enrolment", "reader"}
    assert others == before


async def test_who_reads_or_belongs_to_an_org_revokes_nobodys_token(doors: Doors) -> None:
    plane = doors.plane
    for headers in (plane.admin(role="read"), plane.admin(org_id=1), plane.admin(org_id=0)):
        answer = await plane.http.post("/api/admin/tokens/revoke", json={"jti": "x"}, headers=headers)
        assert answer.status_code == 403
    for body in (
        {},
        {"jti": ""},
        {"jti": "a b"},
        {"jti": 7},
        {"jti": "x" * 129},
        {"jti": "x", "exp": "1"},
        {"jti": "x", "y": 1},
    ):
        assert (await plane.http.post("/api/admin/tokens/revoke", json=body, headers=plane.admin())).status_code == 400
    assert await plane.sql("SELECT jti FROM revoked_tokens") == []


async def test_services_are_told_the_revoked_ids_and_that_they_are_as_they_were(
    database_dsn: str, redis_url: str
) -> None:
    async with open_plane(database_dsn, redis_url) as plane:
        path = "/api/internal/tokens/revoked"
        before = await plane.http.get(path, headers=plane.service())
        for jti in ("b", "a"):
            await plane.http.post("/api/admin/tokens/revoke", json={"jti": jti}, headers=plane.admin())
        after = await plane.http.get(path, headers=plane.service())
        same = await plane.http.get(path, headers={**plane.service(), "If-None-Match": after.headers["etag"]})
        other = await plane.http.get(path, headers={**plane.service(), "If-None-Match": before.headers["etag"]})
        by_person = await plane.http.get(path, headers=plane.admin())

    assert (before.json(), after.json(), other.json()) == ({"jtis": []}, {"jtis": ["a", "b"]}, {"jtis": ["a", "b"]})
    assert (same.status_code, same.content, by_person.status_code) == (304, b"", 401)
