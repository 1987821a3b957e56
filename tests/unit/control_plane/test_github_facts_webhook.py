"""What GitHub's `workflow_job` webhook is like, held against a control plane and a sim that run (facts 5.1).

test_github_facts.py is the list of all facts and where each is held.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
import trio
from quart import Response, request

from nimbus.control_plane.demand.demand import DemandRules
from nimbus.control_plane.demand.redelivery import RedeliveryRules
from nimbus.runtime.postgres import Transaction
from nimbus.runtime.serving import build_app, serve_app
from nimbus.sim.deliveries import ANSWER_WITHIN_S, WINDOW_S, WebhookTarget
from nimbus.sim.workflow import parse_workflow
from tests.forge import INSTALLATION_ID, open_sim
from tests.unit.control_plane.github_plane import SECRET, GithubPlane, job_event, open_github_plane

pytestmark = pytest.mark.services

ANOTHER_INSTALLATION = INSTALLATION_ID + 1000  # GitHub knows none such
ONE = "jobs: {a: {runs-on: [nimbus], steps: [{run: x}]}}"
GATED = "jobs: {a: {runs-on: [nimbus], environment: production, steps: [{run: x}]}}"
NEVER_ASSIGNED: dict[str, Any] = dict.fromkeys(
    ("head_branch", "workflow_name", "runner_id", "runner_name", "runner_group_id", "runner_group_name")
)


@pytest.fixture
async def github(database_dsn: str, redis_url: str) -> AsyncIterator[GithubPlane]:
    async with open_github_plane(database_dsn, redis_url) as running:
        yield running


async def delivered(github: GithubPlane, count: int) -> None:
    """Until GitHub's attempts to deliver have ended, so many in all; then they are processed."""
    while len(github.sim.world.deliveries.newest(1000, None)) < count:  # noqa: ASYNC110 - nothing but a look tells it
        await trio.sleep(0.01)
    await github.drain()


# -- actions, states, keys -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", ["waiting", "queued", "in_progress", "completed"])
async def test_each_of_githubs_four_actions_is_a_state_and_only_queued_boots(github: GithubPlane, action: str) -> None:
    await github.tell(action)
    assert [job["state"] for job in await github.jobs()] == [action]
    assert await github.states() == (["queued"] if action == "queued" else [])


async def test_an_approved_job_is_told_as_queued_once_more_and_boots_only_then(github: GithubPlane) -> None:
    [job] = github.sim.world.forge.start_run(parse_workflow(GATED), "hello").jobs
    await delivered(github, 1)
    assert ([row["state"] for row in await github.jobs()], await github.states()) == (["waiting"], [])
    github.sim.world.forge.approve(job.job_id)
    await delivered(github, 2)
    assert ([row["state"] for row in await github.jobs()], await github.states()) == (["queued"], ["queued"])


async def test_a_job_whose_status_lags_behind_its_action_is_in_progress(github: GithubPlane) -> None:
    await github.tell("in_progress", status="queued", runner_id=7, runner_name="theirs")
    assert [job["state"] for job in await github.jobs()] == ["in_progress"]


async def test_what_github_leaves_empty_is_missed_by_nobody(github: GithubPlane) -> None:
    await github.tell("queued", **NEVER_ASSIGNED)
    assert await github.delivery_states() == ["processed"]
    assert await github.states() == ["queued"]


@pytest.mark.parametrize("conclusion", ["success", "failure", "cancelled", "skipped", "stale", "some_day_another"])
async def test_a_conclusion_is_kept_whatever_github_calls_it(github: GithubPlane, conclusion: str) -> None:
    await github.tell("completed", conclusion=conclusion)
    assert [(job["state"], job["conclusion"]) for job in await github.jobs()] == [("completed", conclusion)]


async def test_started_at_of_a_queued_job_is_no_start(github: GithubPlane) -> None:
    await github.tell("queued", started_at="2026-11-21T08:00:00Z")
    assert [job["started_at"] for job in await github.jobs()] == [None]
    await github.tell("completed", conclusion="cancelled", started_at="2026-11-21T08:00:00Z")
    assert [job["started_at"] for job in await github.jobs()] == [None], "nobody ever picked it up"


async def test_a_job_cancelled_before_pickup_ends_without_a_runner_and_so_does_its_machine(github: GithubPlane) -> None:
    [job] = github.sim.world.forge.start_run(parse_workflow(ONE), "hello").jobs
    await delivered(github, 1)
    assert await github.states() == ["queued"]
    github.sim.world.forge.cancel(job.job_id)
    await delivered(github, 2)
    [row] = await github.jobs()
    assert (row["state"], row["conclusion"], row["runner_name"]) == ("completed", "cancelled", None)
    assert await github.states() == ["cancelled!"]


# -- whose installation --------------------------------------------------------------------------------------------


async def test_the_payload_names_the_installation_and_the_setting_is_only_a_default(
    database_dsn: str, redis_url: str
) -> None:
    rules = DemandRules(default_installation_id=ANOTHER_INSTALLATION)
    async with open_github_plane(database_dsn, redis_url, demand=rules) as github:
        agent = await github.plane.enrol()
        await github.tell("queued")
        assert (await github.mint(agent, await github.lease(agent))).status_code == 200
        assert [row["installation_id"] for row in await github.machines()] == [INSTALLATION_ID]


async def test_a_repositorys_own_hook_names_no_installation_and_the_setting_serves_it(
    database_dsn: str, redis_url: str
) -> None:
    rules = DemandRules(default_installation_id=INSTALLATION_ID)
    async with open_github_plane(database_dsn, redis_url, demand=rules) as github:
        agent = await github.plane.enrol()
        told = job_event("queued")
        del told["installation"]
        assert (await github.deliver(told)).status_code == 202
        await github.drain()
        assert (await github.mint(agent, await github.lease(agent))).status_code == 200


# -- labels --------------------------------------------------------------------------------------------------------


async def test_labels_are_a_set_whatever_their_case_and_order(github: GithubPlane) -> None:
    spellings = (["Nimbus", "X64"], ["x64", "NIMBUS"], ["nimbus", "x64", "Nimbus"])
    for job_id, labels in enumerate(spellings, start=1):
        await github.tell("queued", job_id, labels=labels)
    assert {tuple(job["labels"]) for job in await github.jobs()} == {("nimbus", "x64")}
    assert await github.states() == ["queued"] * 3
    await github.tell("completed", 2, labels=spellings[0], conclusion="cancelled")
    assert sorted(await github.states()) == ["cancelled!", "queued", "queued"], "they are one kind of demand"


async def test_a_runner_group_stands_in_no_payload_of_a_job_that_waits(github: GithubPlane) -> None:
    github.sim.world.forge.start_run(parse_workflow(ONE), "hello")
    await delivered(github, 1)
    [row] = await github.plane.sql("SELECT body FROM deliveries")
    job = json.loads(bytes(row["body"]))["workflow_job"]
    assert {name: value for name, value in job.items() if "group" in name} == {
        "runner_group_id": None,
        "runner_group_name": None,
    }
    assert await github.states() == ["queued"]


# -- headers -------------------------------------------------------------------------------------------------------


async def test_a_delivery_has_githubs_headers_and_no_timestamp() -> None:
    got: list[tuple[dict[str, str], bytes]] = []
    app, stop = build_app("receiver"), trio.Event()

    async def take() -> Response:
        body = cast("bytes", await request.get_data())
        got.append(({name.lower(): value for name, value in request.headers.items()}, body))
        stop.set()
        return Response("", 200)

    app.add_url_rule("/hook", "hook", take, methods=["POST"])
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            urls = await nursery.start(serve_app, app, ["127.0.0.1:0"], stop)
            async with open_sim(WebhookTarget(f"{urls[0]}/hook", SECRET)) as sim:
                sim.world.forge.start_run(parse_workflow(ONE), "hello")
                await stop.wait()
    [(headers, body)] = got
    assert headers["user-agent"].startswith("GitHub-Hookshot/")
    assert headers["x-github-event"] == "workflow_job"
    assert len(headers["x-github-delivery"]) == 36
    assert headers["x-hub-signature-256"] == f"sha256={hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()}"
    assert "x-hub-signature-timestamp" not in headers


async def test_the_old_signature_alone_proves_nothing(github: GithubPlane) -> None:
    body = json.dumps(job_event("queued")).encode()
    old = hmac.new(SECRET.encode(), body, "sha1").hexdigest()
    answer = await github.deliver(body, **{"X-Hub-Signature": f"sha1={old}", "X-Hub-Signature-256": ""})
    assert answer.status_code == 401
    both = await github.deliver(body, **{"X-Hub-Signature": f"sha1={old}"})
    assert both.status_code == 202


async def test_what_an_enterprise_server_adds_to_the_headers_is_no_hindrance(github: GithubPlane) -> None:
    headers = {"X-GitHub-Enterprise-Version": "3.15.0", "X-GitHub-Enterprise-Host": "github.example"}
    assert (await github.deliver(job_event("queued"), **headers)).status_code == 202
    await github.drain()
    assert await github.states() == ["queued"]


# -- delivery and redelivery ---------------------------------------------------------------------------------------


async def test_what_came_before_is_known_by_its_row_and_not_by_redis(database_dsn: str) -> None:
    guid = "72d3162e-cc78-11e3-81ab-4c9367dc0958"
    async with open_github_plane(database_dsn, "redis://127.0.0.1:1/0") as github:
        assert (await github.deliver(job_event("queued"), guid=guid)).json()["duplicate"] is False
        await github.drain()
        again = await github.deliver(job_event("queued"), guid=guid)
        assert (again.status_code, again.json()["duplicate"]) == (200, True)
        await github.drain()
        assert await github.states() == ["queued"]


async def test_an_answer_does_not_wait_for_the_work_behind_the_delivery(github: GithubPlane) -> None:
    """GitHub gives ten seconds, and sends nothing again by itself."""
    locked, done = trio.Event(), asyncio.Event()  # a transaction runs on asyncio's side

    async def lock_all_work(transaction: Transaction) -> None:
        await transaction.execute("LOCK TABLE jobs, machines, orgs IN ACCESS EXCLUSIVE MODE")
        locked.set()
        await done.wait()

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(github.plane.services.database.run, lock_all_work)
            await locked.wait()
            answer = await github.deliver(job_event("queued"))
            done.set()
    assert answer.status_code == 202
    await github.drain()
    assert await github.states() == ["queued"]


async def test_a_delivery_that_could_not_be_processed_is_taken_again_under_its_guid(github: GithubPlane) -> None:
    await github.plane.sql("ALTER TABLE jobs ADD CONSTRAINT nothing_goes CHECK (state <> 'queued')")
    github.sim.world.forge.start_run(parse_workflow(ONE), "hello")
    await delivered(github, 1)
    assert await github.delivery_states() == ["failed"]
    await github.plane.sql("ALTER TABLE jobs DROP CONSTRAINT nothing_goes")
    [first] = github.sim.world.deliveries.newest(10, None)
    again = github.sim.world.deliveries.redeliver(first.delivery_id)
    await delivered(github, 2)
    assert (again.guid, again.redelivery, again.status) == (first.guid, True, "OK")
    assert (await github.delivery_states(), await github.states()) == (["processed"], ["queued"])


async def test_the_sim_waits_as_long_for_an_answer_and_keeps_deliveries_as_long_as_github() -> None:
    await trio.lowlevel.checkpoint()
    assert (ANSWER_WITHIN_S, WINDOW_S) == (10.0, 3 * 86_400.0)
    assert RedeliveryRules().window_s == WINDOW_S, "what GitHub has forgotten is not worth a look"


async def test_deliveries_are_listed_and_asked_for_by_the_app_itself_alone(github: GithubPlane) -> None:
    github.sim.world.forge.start_run(parse_workflow(ONE), "hello")
    await delivered(github, 1)
    installations = await github.sim.token_headers()
    path = "/app/hook/deliveries"
    assert (await github.sim.http.get(path, headers=installations)).status_code == 401
    [seen] = (await github.sim.http.get(path, headers=github.sim.app_headers())).json()
    assert set(seen) >= {
        "id", "guid", "delivered_at", "status", "status_code", "event", "action", "installation_id", "redelivery",
    }  # fmt: skip
    attempts = f"{path}/{seen['id']}/attempts"
    assert (await github.sim.http.post(attempts, headers=installations)).status_code == 401
    assert (await github.sim.http.post(attempts, headers=github.sim.app_headers())).status_code == 202
