"""The routes of people and services: scoping by org, idempotency, limits, bad input, hostile tokens."""

from __future__ import annotations

import json
import logging
import re
import time

import pytest
from structlog.testing import capture_logs

from nimbus.control_plane.jobs.submission import parse_submission
from nimbus.control_plane.keys.ring import Purpose
from nimbus.control_plane.services import JobRules
from nimbus.model.errors import Refused
from nimbus.model.labels import Arch
from nimbus.model.vm import Shape
from nimbus.wire.tokens import Audience, SigningKey, render_token
from tests.unit.control_plane.plane import Plane, bearer, open_plane

pytestmark = pytest.mark.services


async def _org(plane: Plane, login: str, forge_id: int) -> int:
    rows = await plane.sql(
        "INSERT INTO orgs (forge, forge_id, login) VALUES ('github', $2, $1) RETURNING org_id", login, forge_id
    )
    return int(rows[0]["org_id"])


async def test_a_token_of_one_org_sees_nothing_of_another(database_dsn: str, redis_url: str) -> None:
    async with open_plane(database_dsn, redis_url) as plane:
        one, two = await _org(plane, "one", 1), await _org(plane, "two", 2)
        theirs = await plane.submit(org_id=two)
        path = f"/api/jobs/{theirs['job_id']}"
        mine = plane.admin(org_id=one)
        found = await plane.http.get(path, headers=mine)
        cancelled = await plane.http.post(path + "/cancel", headers=mine)
        listed = await plane.http.get("/api/jobs/recent", headers=mine)
        status = await plane.http.get("/api/status", headers=mine)
        pushed = await plane.http.post("/api/jobs", json={"argv": ["true"], "org_id": two}, headers=mine)
        own = await plane.http.post("/api/jobs", json={"argv": ["true"]}, headers=mine)
        seen = await plane.http.get(f"/api/jobs/{own.json()['job_id']}", headers=mine)
        still = await plane.job(theirs["job_id"])

    assert [found.status_code, cancelled.status_code, pushed.status_code] == [404, 404, 404]
    assert listed.json() == {"jobs": []}
    assert status.json()["machines"]["queued"] == 0
    assert status.json()["agents"] == []
    assert seen.json()["org_id"] == one
    assert still["state"] == "queued"


async def test_an_org_of_zero_in_a_token_is_not_all_orgs(database_dsn: str, redis_url: str) -> None:
    async with open_plane(database_dsn, redis_url) as plane:
        submitted = await plane.submit()
        found = await plane.http.get(f"/api/jobs/{submitted['job_id']}", headers=plane.admin(org_id=0))

    assert found.status_code == 404


async def test_the_same_idempotency_key_gives_the_same_job(database_dsn: str, redis_url: str) -> None:
    async with open_plane(database_dsn, redis_url) as plane:
        first = await plane.submit(idempotency_key="k", env={"A": "b"})
        second = await plane.submit(expect=200, idempotency_key="k", env={"A": "b"})
        other = await plane.submit(expect=409, idempotency_key="k", env={"A": "c"})
        elsewhere = await plane.submit(idempotency_key="k", org_id=await _org(plane, "one", 1))
        machines = await plane.sql("SELECT machine_id FROM machines")

    assert first == second
    assert other["error"] == "conflict"
    assert elsewhere["job_id"] != first["job_id"]
    assert len(machines) == 2


async def test_an_org_that_submits_too_often_is_told_to_wait(database_dsn: str, redis_url: str) -> None:
    async with open_plane(database_dsn, redis_url, rules=JobRules(rate_limit=2, rate_interval_s=60)) as plane:
        other = await _org(plane, "other", 1)
        await plane.submit()
        await plane.submit()
        third = await plane.http.post("/api/jobs", json={"argv": ["true"]}, headers=plane.admin())
        await plane.submit(org_id=other)
        metrics = await plane.http.get("/metrics")

    assert third.status_code == 429
    assert 1 <= int(third.headers["retry-after"]) <= 60
    assert "nimbus_control_plane_org_rate_limits_hit 1.0" in metrics.text


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({}, "argv"),
        ({"argv": ["a"], "cmd": "b"}, "argv"),
        ({"argv": []}, "at least one word"),
        ({"argv": "true"}, "argv"),
        ({"argv": ["a\0b"]}, "argv"),
        ({"argv": ["\ud800"]}, "argv"),
        ({"argv": ["a"], "env": {"A=B": "c"}}, "variable name"),
        ({"argv": ["a"], "env": {"A": 1}}, "env"),
        ({"argv": ["a"], "timeout_s": 0}, "timeout"),
        ({"argv": ["a"], "timeout_s": "1"}, "timeout_s"),
        ({"argv": ["a"], "mem_mib": 16}, "16 MiB"),
        ({"argv": ["a"], "cpus": 0}, "cpus"),
        ({"argv": ["a"], "cpus": 1.5}, "cpus"),
        ({"argv": ["a"], "image": "../../etc"}, "image"),
        ({"argv": ["a"], "image": "a b"}, "image"),
        ({"argv": ["a"], "memory": 512}, "'memory'"),
    ],
)
def test_a_bad_submission_is_told_which_field_is_wrong(body: dict[str, object], told: str) -> None:
    with pytest.raises(Refused, match=re.escape(told)):
        parse_submission(json.dumps(body).encode(), JobRules())


async def test_a_refused_submission_leaves_nothing(database_dsn: str, redis_url: str) -> None:
    async with open_plane(database_dsn, redis_url) as plane:
        wrong = await plane.submit(expect=400, argv=[])
        unknown = await plane.submit(expect=404, org_id=99999)
        left = await plane.sql("SELECT job_id FROM jobs UNION ALL SELECT machine_id FROM machines")

    assert wrong == {"error": "refused", "message": "a command needs at least one word"}
    assert unknown["message"] == "there is no org 99999"
    assert left == []


async def test_bodies_that_are_no_json_or_too_large_are_refused(database_dsn: str, redis_url: str) -> None:
    async with open_plane(database_dsn, redis_url) as plane:
        bad = [
            await plane.http.post("/api/jobs", content=raw, headers=plane.admin())
            for raw in (b"", b"null", b"[]", b"{", b"\xff", b"[" * 100000)
        ]
        large = await plane.http.post("/api/jobs", content=b" " * (25 * 1024 * 1024 + 1), headers=plane.admin())
        alive = await plane.http.get("/healthz")

    assert {reply.status_code for reply in bad} == {400}
    assert large.status_code == 413
    assert alive.status_code == 200


ROUTES = [
    ("GET", "/api/jobs/recent"), ("GET", "/api/jobs/1"), ("POST", "/api/jobs"), ("POST", "/api/jobs/1/cancel"),
    ("GET", "/api/status"), ("GET", "/api/internal/jobs/1/machines"), ("POST", "/api/agents/enrol"),
    ("GET", "/api/internal/jobs/machines?ids=1"), ("GET", "/api/internal/tokens/revoked"),
    ("POST", "/api/agents/lease"), ("POST", "/api/machines/1/renew"), ("POST", "/api/machines/1/finish"),
]  # fmt: skip


async def test_no_route_of_the_api_answers_without_its_own_kind_of_token(database_dsn: str, redis_url: str) -> None:
    async with open_plane(database_dsn, redis_url) as plane:
        access, keys = plane.services.access, plane.services.keys
        signers: list[SigningKey] = [*access.admin_keys, *access.enrolment_keys, *map(keys.current.signing, Purpose)]
        made = [
            bearer(render_token(key, subject="service:x", audience=audience, now_s=time.time(), ttl_s=60))
            for key in signers
            for audience in Audience
        ]
        strange = [{}, {"Authorization": "Basic YTpi"}, bearer("admin-secret-" + "x" * 32), bearer("a.b.c")]
        answers: dict[tuple[str, str], set[int]] = {}
        accepted: dict[tuple[str, str], int] = {}
        for method, path in ROUTES:
            replies = [await plane.http.request(method, path, headers=headers) for headers in strange]
            assert {reply.status_code for reply in replies} == {401}
            assert {reply.headers["www-authenticate"] for reply in replies} == {"Bearer"}
            codes = [(await plane.http.request(method, path, headers=headers)).status_code for headers in made]
            accepted[method, path] = len(codes) - codes.count(401)
            answers[method, path] = set(codes)

    assert accepted.pop(("POST", "/api/agents/enrol")) == 2  # an enrolment token, or an agent's own that still counts
    assert set(accepted.values()) == {1}  # one key for one audience; every other pair is refused
    assert not any(500 in codes for codes in answers.values())


async def test_a_reading_token_cannot_write(database_dsn: str, redis_url: str) -> None:
    async with open_plane(database_dsn, redis_url) as plane:
        submitted = await plane.submit()
        reader = plane.admin(role="read")
        posted = await plane.http.post("/api/jobs", json={"argv": ["true"]}, headers=reader)
        cancelled = await plane.http.post(f"/api/jobs/{submitted['job_id']}/cancel", headers=reader)
        read = await plane.http.get(f"/api/jobs/{submitted['job_id']}", headers=reader)

    assert [posted.status_code, cancelled.status_code, read.status_code] == [403, 403, 200]


async def test_ids_and_limits_out_of_range_are_refused(database_dsn: str, redis_url: str) -> None:
    ids = ["0", "-1", "x", str(2**63), "1e3", "\N{FULLWIDTH DIGIT ONE}", "..%2f1"]
    limits = ["0", "-1", "201", "abc", "1e2", "", "9" * 40, "\N{FULLWIDTH DIGIT ONE}"]
    async with open_plane(database_dsn, redis_url) as plane:
        await plane.submit()
        found = [await plane.http.get(f"/api/jobs/{each}", headers=plane.admin()) for each in ids]
        path = "/api/jobs/recent"
        listed = [await plane.http.get(path, params={"limit": each}, headers=plane.admin()) for each in limits]

    assert {each: reply.status_code for each, reply in zip(ids, found, strict=True)} == dict.fromkeys(ids, 404)
    assert {each: reply.status_code for each, reply in zip(limits, listed, strict=True)} == dict.fromkeys(limits, 400)


async def test_the_environment_of_a_job_is_neither_listed_nor_logged(
    database_dsn: str, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with capture_logs() as events:
        async with open_plane(database_dsn, redis_url) as plane:
            submitted = await plane.submit(env={"API_KEY": "hunter2-value"})
            shown = json.dumps(await plane.job(submitted["job_id"]))
            listed = (await plane.http.get("/api/jobs/recent", headers=plane.admin())).text
            agent = await plane.enrol()
            grant = await plane.lease(agent)

    assert grant is not None
    assert grant["command"]["env"] == {"API_KEY": "hunter2-value"}
    assert "hunter2" not in shown + listed + repr(events) + caplog.text


async def test_a_job_is_found_by_the_forges_number_too(database_dsn: str, redis_url: str) -> None:
    async with open_plane(database_dsn, redis_url) as plane:
        await plane.sql(
            "INSERT INTO jobs (org_id, source, forge_job_id, state) VALUES (1, 'github', 29679449526, 'queued')"
        )
        found = await plane.http.get("/api/jobs/29679449526", headers=plane.admin())
        cancelled = await plane.http.post("/api/jobs/29679449526/cancel", headers=plane.admin())

    assert found.json()["forge_job_id"] == 29679449526
    assert cancelled.status_code == 400
    assert "GitHub" in cancelled.json()["message"]


async def test_the_logging_pipeline_learns_every_lease_of_a_job(database_dsn: str, redis_url: str) -> None:
    async with open_plane(database_dsn, redis_url) as plane:
        agent = await plane.enrol()
        submitted = await plane.submit()
        path = f"/api/internal/jobs/{submitted['job_id']}/machines"
        before = await plane.http.get(path, headers=plane.service())
        for _ in range(2):
            await plane.lease(agent)
            await plane.pass_deadlines()
        after = await plane.http.get(path, headers=plane.service())

    machine = submitted["machine_id"]
    assert before.json()["machines"] == []
    assert after.json() == {
        "org_id": 1, "job_id": submitted["job_id"], "repo_id": None, "state": "queued",
        "machines": [{"machine_id": machine, "fence": 1}, {"machine_id": machine, "fence": 2}],
    }  # fmt: skip


async def test_the_output_of_many_jobs_is_found_by_one_question(database_dsn: str, redis_url: str) -> None:
    async with open_plane(database_dsn, redis_url) as plane:
        agent = await plane.enrol()
        first, second = await plane.submit(), await plane.submit()
        await plane.lease(agent)
        path = "/api/internal/jobs/machines?ids="
        asked = f"{path}{first['job_id']},{second['job_id']},999"
        told = await plane.http.get(asked, headers=plane.service())
        bad = ["", ",", "1,", "x", "-1", "1" * 20, "9" * 19 + "9", ",".join(["1"] * 201), "\u0661", "1 OR 1=1"]
        refused = [(await plane.http.get(path + ids, headers=plane.service())).status_code for ids in bad]
        by_person = await plane.http.get(asked, headers=plane.admin())

    jobs = {entry["job_id"]: entry for entry in told.json()["jobs"]}
    assert set(jobs) == {first["job_id"], second["job_id"]}
    assert sorted(len(entry["machines"]) for entry in jobs.values()) == [0, 1]
    assert {(entry["org_id"], entry["repo_id"]) for entry in jobs.values()} == {(1, None)}
    assert refused == [400] * len(bad)
    assert by_person.status_code == 401


async def test_metrics_are_for_loopback_and_not_for_what_a_proxy_forwards(database_dsn: str, redis_url: str) -> None:
    async with open_plane(database_dsn, redis_url) as plane:
        near = await plane.http.get("/metrics")
        forwarded = await plane.http.get("/metrics", headers={"X-Forwarded-For": "203.0.113.9"})
        jwks = await plane.http.get("/.well-known/jwks.json")

    assert 'nimbus_control_plane_machines{state="queued"} 0.0' in near.text
    assert forwarded.status_code == 401
    assert set(jwks.json()["keys"][0]) == {"kty", "crv", "x", "kid", "use", "alg"}


async def test_metrics_behind_a_trusted_proxy_are_for_whoever_stands_behind_it(
    database_dsn: str, redis_url: str
) -> None:
    async with open_plane(database_dsn, redis_url, trusted_proxies="127.0.0.0/8") as plane:
        near = await plane.http.get("/metrics", headers={"X-Forwarded-For": "127.0.0.1"})
        far = await plane.http.get("/metrics", headers={"X-Forwarded-For": "127.0.0.1, 203.0.113.9"})
        other = await plane.http.get("/metrics", headers={"Forwarded": "for=127.0.0.1"})

    assert (near.status_code, far.status_code, other.status_code) == (200, 401, 401)


async def test_an_agent_renews_by_its_own_token_long_after_its_enrolment_token_ran_out(
    database_dsn: str, redis_url: str
) -> None:
    async with open_plane(database_dsn, redis_url) as plane:
        agent = await plane.enrol("one")
        asked = {"version": "1", "boot_id": "b", "cpus": 1, "mem_mib": 512}
        renewed = await plane.http.post("/api/agents/enrol", json=asked, headers=agent)
        following = await plane.http.post("/api/agents/enrol", json=asked, headers=bearer(renewed.json()["token"]))

    assert (renewed.status_code, following.status_code) == (200, 200)
    assert following.json()["agent_id"] == "one"


async def test_an_agent_that_enrols_too_often_is_told_to_wait(database_dsn: str, redis_url: str) -> None:
    async with open_plane(database_dsn, redis_url) as plane:
        for _ in range(100):
            await plane.enrol("busy")
        key = plane.services.access.enrolment_keys[0]
        token = render_token(key, subject="busy", audience=Audience.AGENT_ENROLMENT, now_s=time.time(), ttl_s=60)
        asked = {"version": "1", "boot_id": "b", "cpus": 1, "mem_mib": 512}
        refused = await plane.http.post("/api/agents/enrol", json=asked, headers=bearer(token))
        await plane.enrol("other")

    assert refused.status_code == 429
    assert 1 <= int(refused.headers["Retry-After"]) <= 60


# --- sizes, priorities, keys ---------------------------------------------------------------------------------------


def test_a_size_stands_for_a_machine_as_a_label_does() -> None:
    submission = parse_submission(b'{"argv": ["a"], "size": "4cpu-8gb-20gb-disk-arm64"}', JobRules())
    assert submission.shape == Shape(4, 8192, 20480)
    assert submission.arch is Arch.ARM64
    assert parse_submission(b'{"argv": ["a"], "size": "2cpu-1gb", "arch": "x64"}', JobRules()).arch is Arch.X64


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"size": "4cpus"}, "job: size: 4cpus is no size: write it like 4cpu-8gb"),
        ({"size": "nimbus-4cpu-8gb"}, "is no size"),
        ({"size": "65cpu-1gb"}, "job: size: 65 CPUs are more than the 64 that a job may ask for here"),
        ({"size": "1cpu-257gb"}, "NIMBUS_LABEL_MAX_MEMORY_GB"),
        ({"size": "1cpu-1gb", "cpus": 2}, "either size or cpus"),
        ({"size": "1cpu-1gb-arm64", "arch": "x64"}, "size says arm64 and arch says x64"),
        ({"mem_mib": 2**20}, "mem_mib"),
        ({"disk_mib": 2**21}, "NIMBUS_LABEL_MAX_DISK_GB"),
        ({"priority": 101}, "priority must be a whole number from -100 to 100"),
        ({"priority": True}, "priority"),
        ({"env": {"A": "\u00e4" * 65536}}, "job: env must hold no text of more than 131071 bytes"),
        ({"env": {f"A{n}": "x" * 100_000 for n in range(10)}}, "argv and env take"),
        ({"timeout_s": 8 * 24 * 3600}, "timeout_s must be a number from 0.001 to 604800"),
    ],
)
def test_what_a_machine_cannot_be_is_told_by_its_field(body: dict[str, object], told: str) -> None:
    with pytest.raises(Refused, match=re.escape(told)):
        parse_submission(json.dumps({"argv": ["a"]} | body).encode(), JobRules())


async def test_a_tenant_may_put_its_job_behind_others_of_its_org_and_not_before_them(
    database_dsn: str, redis_url: str
) -> None:
    async with open_plane(database_dsn, redis_url) as plane:
        tenant = plane.admin(org_id=await _org(plane, "one", 1))
        lower = await plane.http.post("/api/jobs", json={"argv": ["a"], "priority": -5}, headers=tenant)
        raised = await plane.http.post("/api/jobs", json={"argv": ["a"], "priority": 1}, headers=tenant)
        operators = await plane.submit(priority=100)
        kept = await plane.sql("SELECT j.priority, m.priority AS machines FROM jobs j JOIN machines m USING (job_id)")
        shown = await plane.job(operators["job_id"])

    assert (lower.status_code, raised.status_code) == (201, 403)
    assert "priority" in raised.json()["message"]
    assert sorted((row["priority"], row["machines"]) for row in kept) == [(-5, -5), (100, 100)]
    assert shown["priority"] == 100


async def test_the_key_of_a_submission_is_told_back_and_stands_for_its_priority_too(
    database_dsn: str, redis_url: str
) -> None:
    async with open_plane(database_dsn, redis_url) as plane:
        keyed = await plane.submit(idempotency_key="k", priority=3)
        again = await plane.submit(expect=200, idempotency_key="k", priority=3)
        bare = await plane.submit()
        await plane.submit(expect=409, idempotency_key="k", priority=4)

    assert (keyed["idempotency_key"], bare["idempotency_key"]) == ("k", None)
    assert again == keyed


# --- cancelling ----------------------------------------------------------------------------------------------------


async def test_cancelling_says_what_happens_and_may_be_said_again(database_dsn: str, redis_url: str) -> None:
    async with open_plane(database_dsn, redis_url) as plane:
        agent = await plane.enrol()
        running = await plane.submit()
        grant = await plane.lease(agent)
        assert grant is not None
        waiting = await plane.submit()

        async def cancel(job: dict[str, object]) -> dict[str, object]:
            reply = await plane.http.post(f"/api/jobs/{job['job_id']}/cancel", headers=plane.admin())
            assert reply.status_code == 200
            return dict(reply.json())

        told = [await cancel(waiting), await cancel(waiting), await cancel(running), await cancel(running)]
        await plane.finish(agent, grant, "cancelled")
        ended = await cancel(running)
        cause = (await plane.job(int(waiting["job_id"])))["cause"]

    assert [each["happens"] for each in [*told, ended]] == [
        "it is cancelled: no host had begun it",
        "nothing: it had ended before",
        "its host is asked to stop it, and does so when it next renews its lease",
        "its host is asked again to stop it: it was asked before",
        "nothing: it had ended before",
    ]
    assert (told[0]["state"], told[2]["state"], ended["conclusion"]) == ("completed", "queued", "cancelled")
    assert cause == "cancelled by tester"
