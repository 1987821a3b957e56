"""The fake GitHub over a real socket: App auth, just-in-time runners, deliveries, the rehearsal's own routes."""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator
from typing import Any, cast

import jwt
import pytest
import trio
from quart import Response, request

from nimbus.runtime.serving import build_app, serve_app
from nimbus.sim.deliveries import WebhookTarget
from nimbus.wire.github import decode_jit_config, parse_webhook_headers, verify_signature
from tests.forge import APP_ID, INSTALLATION_ID, Sim, app_key, open_sim

TOKENS = f"/app/installations/{INSTALLATION_ID}/access_tokens"
RUNNERS = "/repos/octo-org/hello/actions/runners"
JIT = f"{RUNNERS}/generate-jitconfig"
WORKFLOW = "jobs: {a: {runs-on: nimbus, steps: [{run: 'true'}]}}"


def jit_body(**fields: object) -> dict[str, object]:
    return {"name": "nimbus-1-1", "runner_group_id": 1, "labels": ["Nimbus"], **fields}


@pytest.fixture
async def sim() -> AsyncIterator[Sim]:
    with trio.fail_after(60):
        async with open_sim() as running:
            yield running


# -- 5.2 App auth ----------------------------------------------------------------------------------------------


async def test_an_app_jwt_buys_an_installation_token_for_one_hour(sim: Sim) -> None:
    answer = await sim.http.post(TOKENS, headers=sim.app_headers())
    assert answer.status_code == 201
    assert answer.json()["token"].startswith("ghs_")
    assert answer.json()["permissions"]["administration"] == "write"
    life_s = sim.world.auth.check_token(answer.json()["token"]).expires_at_s - time.time()
    assert 3590 < life_s <= 3600


@pytest.mark.parametrize(
    "wrong",
    [{"exp": -1}, {"exp": 3600}, {"iat": 600, "exp": 700}, {"iss": "4712"}, {"exp": "soon"}],
)
async def test_an_app_jwt_that_is_old_long_lived_early_or_anothers_is_unauthorized(
    sim: Sim, wrong: dict[str, Any]
) -> None:
    now = int(time.time())  # not the time at which the tests were collected: an hour may lie between
    claims = {name: now + value if isinstance(value, int) else value for name, value in wrong.items()}
    answer = await sim.http.post(TOKENS, headers=sim.app_headers(**claims))
    assert answer.status_code == 401


async def test_a_jwt_without_signature_or_signed_with_the_public_key_is_unauthorized(sim: Sim) -> None:
    now = int(time.time())
    claims = {"iat": now - 60, "exp": now + 300, "iss": APP_ID}
    unsigned = jwt.encode(claims, "", algorithm="none")
    head, body, _ = jwt.encode(claims, "x" * 32, algorithm="HS256").split(".")
    mac = hmac.new(app_key().public_pem.encode(), f"{head}.{body}".encode(), hashlib.sha256).digest()
    confused = f"{head}.{body}.{urlsafe_b64encode(mac).rstrip(b'=').decode()}"
    for token in (unsigned, confused, "not-a-jwt"):
        answer = await sim.http.post(TOKENS, headers={"Authorization": f"Bearer {token}"})
        assert answer.status_code == 401


async def test_permissions_may_be_narrowed_and_not_widened(sim: Sim) -> None:
    headers = await sim.token_headers({"permissions": {"actions": "read"}})
    assert (await sim.http.post(JIT, headers=headers, json=jit_body())).status_code == 403
    wider = {"permissions": {"contents": "write"}}
    assert (await sim.http.post(TOKENS, headers=sim.app_headers(), json=wider)).status_code == 422


async def test_more_than_five_hundred_repositories_are_refused(sim: Sim) -> None:
    body = {"repositories": ["r"] * 501}
    assert (await sim.http.post(TOKENS, headers=sim.app_headers(), json=body)).status_code == 422


async def test_a_suspended_installation_is_forbidden_and_says_so(sim: Sim) -> None:
    headers = await sim.token_headers()
    await sim.http.post("/sim/installation", json={"suspended": True})
    for answer in (
        await sim.http.post(TOKENS, headers=sim.app_headers()),
        await sim.http.get(RUNNERS, headers=headers),
    ):
        assert (answer.status_code, answer.json()["message"]) == (403, "This installation has been suspended")


async def test_the_installation_is_found_by_its_organisation(sim: Sim) -> None:
    answer = await sim.http.get("/orgs/Octo-Org/installation", headers=sim.app_headers())
    assert answer.json()["id"] == INSTALLATION_ID
    assert (await sim.http.get("/orgs/else/installation", headers=sim.app_headers())).status_code == 404


# -- 5.3 just-in-time runners ----------------------------------------------------------------------------------


async def test_a_jit_config_is_made_with_the_runner_it_belongs_to(sim: Sim) -> None:
    answer = await sim.http.post(JIT, headers=await sim.token_headers(), json=jit_body())
    assert answer.status_code == 201
    runner = answer.json()["runner"]
    assert (runner["name"], runner["status"], runner["busy"]) == ("nimbus-1-1", "offline", False)
    assert [label["name"] for label in runner["labels"]] == ["nimbus"]
    files = decode_jit_config(answer.json()["encoded_jit_config"])
    assert json.loads(files[".runner"])["serverUrl"] == sim.url
    assert json.loads(files[".credentials"])["token"]


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"runner_group_id": None}, 422),
        ({"runner_group_id": 2}, 403),
        ({"runner_group_id": 99}, 404),
        ({"labels": []}, 422),
        ({"labels": ["x"] * 101}, 422),
        ({"labels": "nimbus"}, 422),
        ({"name": ""}, 422),
        ({"name": "x" * 65}, 422),
    ],
)
async def test_a_wrong_group_label_or_name_gets_githubs_status(
    sim: Sim, fields: dict[str, object], status: int
) -> None:
    answer = await sim.http.post(JIT, headers=await sim.token_headers(), json=jit_body(**fields))
    assert answer.status_code == status


async def test_a_duplicate_name_is_a_409(sim: Sim) -> None:
    headers = await sim.token_headers()
    assert (await sim.http.post(JIT, headers=headers, json=jit_body())).status_code == 201
    again = await sim.http.post(JIT, headers=headers, json=jit_body())
    assert (again.status_code, again.json()["message"].split(" - ")[0]) == (409, "Already exists")


async def test_only_an_installation_token_reaches_runners(sim: Sim) -> None:
    for headers in ({}, sim.app_headers(), {"Authorization": "Basic Zm9vOmJhcg=="}, {"Authorization": "Bearer ghs_0"}):
        assert (await sim.http.post(JIT, headers=headers, json=jit_body())).status_code == 401


async def test_another_accounts_runners_are_not_found(sim: Sim) -> None:
    headers = await sim.token_headers()
    assert (await sim.http.get("/repos/else/hello/actions/runners", headers=headers)).status_code == 404


# -- 5.4 list and delete; 5.6 limits ---------------------------------------------------------------------------


async def test_runners_are_listed_by_page_and_by_name(sim: Sim) -> None:
    headers = await sim.token_headers()
    for number in range(3):
        await sim.http.post(JIT, headers=headers, json=jit_body(name=f"nimbus-{number}-1"))
    page = (await sim.http.get(f"{RUNNERS}?per_page=2&page=2", headers=headers)).json()
    assert (page["total_count"], [each["name"] for each in page["runners"]]) == (3, ["nimbus-2-1"])
    named = (await sim.http.get(f"{RUNNERS}?name=nimbus-1-1", headers=headers)).json()
    assert [each["name"] for each in named["runners"]] == ["nimbus-1-1"]


async def test_an_idle_runner_is_deleted_once_and_then_not_found(sim: Sim) -> None:
    headers = await sim.token_headers()
    runner_id = (await sim.http.post(JIT, headers=headers, json=jit_body())).json()["runner"]["id"]
    assert (await sim.http.delete(f"{RUNNERS}/{runner_id}", headers=headers)).status_code == 204
    assert (await sim.http.delete(f"{RUNNERS}/{runner_id}", headers=headers)).status_code == 404


async def test_a_busy_runner_is_not_deleted(sim: Sim) -> None:
    headers = await sim.token_headers()
    runner_id = (await sim.http.post(JIT, headers=headers, json=jit_body())).json()["runner"]["id"]
    runner = sim.world.forge.runners[runner_id]
    run = (await sim.http.post("/sim/workflows", content=WORKFLOW)).json()
    sim.world.forge.go_online(runner)
    sim.world.forge.accept(runner, run["jobs"][0]["job_id"])
    assert (await sim.http.delete(f"{RUNNERS}/{runner_id}", headers=headers)).status_code == 422
    shown = (await sim.http.get(f"{RUNNERS}/{runner_id}", headers=headers)).json()
    assert (shown["status"], shown["busy"]) == ("online", True)


async def test_the_hourly_limit_is_told_in_headers_and_ends_in_a_403() -> None:
    async with open_sim(rate_limit=2) as sim:
        headers = await sim.token_headers()
        assert (await sim.http.get(RUNNERS, headers=headers)).headers["x-ratelimit-remaining"] == "1"
        await sim.http.get(RUNNERS, headers=headers)
        limited = await sim.http.get(RUNNERS, headers=headers)
        assert (limited.status_code, limited.headers["x-ratelimit-remaining"]) == (403, "0")
        assert int(limited.headers["x-ratelimit-reset"]) > time.time()


# -- deliveries ------------------------------------------------------------------------------------------------


class Receiver:
    """A webhook's other end: remembers what it got and answers with `status`."""

    def __init__(self) -> None:
        self.status = 200
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.app = build_app("receiver")
        self.app.add_url_rule("/hook", "hook", self.take, methods=["POST"])

    async def take(self) -> Response:
        body = cast("bytes", await request.get_data())
        self.got.append((dict(request.headers.items()), body))
        return Response("", self.status)


async def wait_delivered(sim: Sim, count: int) -> list[dict[str, Any]]:
    """The list of deliveries as the App sees it, once `count` attempts have ended."""
    while True:
        answer = await sim.http.get("/app/hook/deliveries?per_page=100", headers=sim.app_headers())
        if len(answer.json()) >= count:
            return list(answer.json())
        await trio.sleep(0.02)


async def test_deliveries_are_signed_and_a_redelivery_carries_the_same_guid() -> None:
    receiver, stop = Receiver(), trio.Event()
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            urls = await nursery.start(serve_app, receiver.app, ["127.0.0.1:0"], stop)
            async with open_sim(WebhookTarget(f"{urls[0]}/hook", "hook-secret")) as sim:
                receiver.status = 500
                await sim.http.post("/sim/workflows", content=WORKFLOW)
                [failed] = await wait_delivered(sim, 1)
                assert (failed["status_code"], failed["status"]) == (500, "Invalid HTTP Response: 500")
                receiver.status = 200
                again = await sim.http.post(f"/app/hook/deliveries/{failed['id']}/attempts", headers=sim.app_headers())
                assert again.status_code == 202
                newest, _ = await wait_delivered(sim, 2)
                assert (newest["status"], newest["redelivery"], newest["guid"]) == ("OK", True, failed["guid"])
            stop.set()
    assert len(receiver.got) == 2
    for headers, body in receiver.got:
        parsed = parse_webhook_headers(headers)
        assert (parsed.event, parsed.guid, parsed.timestamp) == ("workflow_job", failed["guid"], None)
        verify_signature(["hook-secret"], body, parsed.signature)


async def test_a_receiver_that_is_away_is_recorded_and_never_tried_again_by_itself() -> None:
    with trio.fail_after(30):
        async with open_sim(WebhookTarget("http://127.0.0.1:1/hook", "s")) as sim:
            await sim.http.post("/sim/workflows", content=WORKFLOW)
            [failed] = await wait_delivered(sim, 1)
            assert (failed["status"], failed["redelivery"]) == ("failed to connect to host", False)


async def test_deliveries_are_paged_by_cursor_newest_first() -> None:
    with trio.fail_after(30):
        async with open_sim() as sim:
            for _ in range(3):
                await sim.http.post("/sim/workflows", content=WORKFLOW)
            newest, second, oldest = await wait_delivered(sim, 3)
            answer = await sim.http.get(
                f"/app/hook/deliveries?per_page=1&cursor={newest['id']}", headers=sim.app_headers()
            )
            assert answer.json() == [second]
            assert oldest["id"] < second["id"] < newest["id"]


# -- the rehearsal's own routes --------------------------------------------------------------------------------


async def test_a_run_tells_of_its_jobs_and_a_cancelled_job_is_completed(sim: Sim) -> None:
    started = await sim.http.post("/sim/workflows", content=WORKFLOW)
    assert started.status_code == 201
    job = started.json()["jobs"][0]
    assert (job["status"], job["labels"]) == ("queued", ["nimbus"])
    assert (await sim.http.post(f"/sim/jobs/{job['job_id']}/cancel")).status_code == 202
    run = (await sim.http.get(f"/sim/runs/{started.json()['run_id']}")).json()
    assert (run["status"], run["conclusion"]) == ("completed", "cancelled")
    assert [line["what"] for line in run["jobs"][0]["history"]] == ["queued", "completed cancelled"]
    assert (await sim.http.post(f"/sim/jobs/{job['job_id']}/cancel")).status_code == 409


@pytest.mark.parametrize(
    ("body", "query"), [(b"jobs: 5", ""), (b"\xff\xfe", ""), (WORKFLOW.encode(), "?repo=../x"), (b"x" * 300_000, "")]
)
async def test_a_workflow_that_is_none_is_refused_with_a_reason(sim: Sim, body: bytes, query: str) -> None:
    answer = await sim.http.post(f"/sim/workflows{query}", content=body)
    assert (answer.status_code, answer.json()["error"]) == (400, "refused")


async def test_an_unknown_run_and_job_are_not_found(sim: Sim) -> None:
    assert (await sim.http.get("/sim/runs/1")).status_code == 404
    assert (await sim.http.post("/sim/jobs/1/approve")).status_code == 404


async def test_a_control_token_where_one_is_set_is_needed_even_from_this_machine() -> None:
    async with open_sim(control_token="let-me-in") as sim:
        assert (await sim.http.get("/sim/runs")).status_code == 401
        assert (await sim.http.get("/sim/runs", headers={"Authorization": "Bearer else"})).status_code == 401
        assert (await sim.http.get("/sim/runs", headers={"Authorization": "Bearer let-me-in"})).status_code == 200
