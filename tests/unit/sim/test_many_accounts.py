"""One App on several organisations: nobody reaches another's, and each is suspended and removed by itself."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio

from tests.forge import INSTALLATION_ID, Sim, open_sim

WORKFLOW = "jobs: {a: {runs-on: nimbus, steps: [{run: 'true'}]}}"
ACME = INSTALLATION_ID + 1


@pytest.fixture
async def sim() -> AsyncIterator[Sim]:
    with trio.fail_after(60):
        async with open_sim(more_owners=("acme", "umbrella")) as running:
            yield running


async def start(sim: Sim, owner: str, repo: str = "hello") -> dict[str, Any]:
    answer = await sim.http.post(f"/sim/workflows?owner={owner}&repo={repo}", content=WORKFLOW)
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def told(sim: Sim) -> list[tuple[str, str | None, int | None]]:
    """What the App was told: event, action, installation; the oldest first."""
    made = sim.world.deliveries.pending_and_newest(100)
    return [(each.event, each.action, each.installation_id) for each in made]


async def test_the_app_lists_its_installations_page_by_page(sim: Sim) -> None:
    answer = await sim.http.get("/app/installations?per_page=2", headers=sim.app_headers())
    assert [each["account"]["login"] for each in answer.json()] == ["octo-org", "acme"]
    following = answer.links["next"]["url"]
    answer = await sim.http.get(following, headers=sim.app_headers())
    assert [(each["id"], each["account"]["login"]) for each in answer.json()] == [(ACME + 1, "umbrella")]
    assert "next" not in answer.links
    assert set(answer.links) == {"prev", "first"}


async def test_a_token_of_one_installation_finds_nothing_of_another(sim: Sim) -> None:
    run = await start(sim, "acme")
    ours, theirs = await sim.token_headers(), await sim.token_headers(installation_id=ACME)
    path = f"/repos/acme/hello/actions/runs/{run['run_id']}"
    assert (await sim.http.get(path, headers=theirs)).status_code == 200
    assert (await sim.http.get(path, headers=ours)).status_code == 404
    assert (await sim.http.get("/orgs/acme/actions/runners", headers=ours)).status_code == 404


async def test_each_event_names_the_installation_of_its_organisation(sim: Sim) -> None:
    await start(sim, "acme")
    await start(sim, "octo-org")
    assert told(sim) == [("workflow_job", "queued", ACME), ("workflow_job", "queued", INSTALLATION_ID)]


async def test_no_two_jobs_of_any_organisations_have_the_same_id(sim: Sim) -> None:
    runs = [await start(sim, owner) for owner in ("acme", "umbrella", "octo-org", "acme")]
    assert len({run["run_id"] for run in runs} | {run["jobs"][0]["job_id"] for run in runs}) == 8


async def test_jobs_of_every_organisation_are_shown_and_cancelled_alike(sim: Sim) -> None:
    run = await start(sim, "umbrella")
    assert (await sim.http.get(f"/sim/runs/{run['run_id']}")).json() == run
    assert (await sim.http.get("/sim/runs")).json() == {"runs": [run]}
    cancelled = await sim.http.post(f"/sim/jobs/{run['jobs'][0]['job_id']}/cancel")
    assert cancelled.json()["conclusion"] == "cancelled"


async def test_a_runner_of_one_organisation_gets_no_job_of_another(sim: Sim) -> None:
    accounts = sim.world.accounts
    runner = accounts.named("acme").forge.register("acme", "r", ("nimbus",), 1, "_work")
    accounts.named("acme").forge.go_online(runner)
    await start(sim, "octo-org")
    assert runner.offered is None
    await start(sim, "acme")
    assert runner.offered is not None


async def test_an_unknown_organisation_is_named(sim: Sim) -> None:
    answer = await sim.http.post("/sim/workflows?owner=else", content=WORKFLOW)
    assert (answer.status_code, answer.json()["message"]) == (404, "there is no organisation 'else'")


async def test_each_installation_has_a_limit_of_its_own() -> None:
    async with open_sim(more_owners=("acme",), rate_limit=1) as sim:
        ours, theirs = await sim.token_headers(), await sim.token_headers(installation_id=ACME)
        await sim.http.get("/orgs/octo-org/actions/runners", headers=ours)
        assert (await sim.http.get("/orgs/octo-org/actions/runners", headers=ours)).status_code == 403
        assert (await sim.http.get("/orgs/acme/actions/runners", headers=theirs)).status_code == 200


# -- suspended and removed ---------------------------------------------------------------------------------------


async def test_a_suspension_is_told_listed_and_of_one_account_alone(sim: Sim) -> None:
    ours, theirs = await sim.token_headers(), await sim.token_headers(installation_id=ACME)
    answer = await sim.http.post("/sim/installation", json={"owner": "acme", "suspended": True})
    assert (answer.json()["installation_id"], answer.json()["suspended"]) == (ACME, True)
    listed = (await sim.http.get("/app/installations", headers=sim.app_headers())).json()
    assert [each["suspended_at"] is not None for each in listed] == [False, True, False]
    assert (await sim.http.get("/orgs/octo-org/actions/runners", headers=ours)).status_code == 200
    refused = await sim.http.get("/orgs/acme/actions/runners", headers=theirs)
    assert (refused.status_code, refused.json()["message"]) == (403, "This installation has been suspended")
    await sim.http.post("/sim/installation", json={"owner": "acme", "suspended": False})
    assert (await sim.http.get("/orgs/acme/actions/runners", headers=theirs)).status_code == 200
    assert told(sim) == [("installation", "suspend", ACME), ("installation", "unsuspend", ACME)]


async def test_a_suspended_app_is_not_told_of_jobs_and_not_told_later_either(sim: Sim) -> None:
    await sim.http.post("/sim/installation", json={"owner": "acme", "suspended": True})
    await start(sim, "acme")
    await sim.http.post("/sim/installation", json={"owner": "acme", "suspended": False})
    assert [event for event, _, _ in told(sim)] == ["installation", "installation"]


async def test_said_twice_a_suspension_is_told_once(sim: Sim) -> None:
    for _ in range(2):
        await sim.http.post("/sim/installation", json={"owner": "acme", "suspended": True})
    assert told(sim) == [("installation", "suspend", ACME)]


async def test_a_removed_app_has_no_installation_no_token_and_no_events_there(sim: Sim) -> None:
    theirs = await sim.token_headers(installation_id=ACME)
    await sim.http.post("/sim/installation", json={"owner": "acme", "installed": False})
    await start(sim, "acme")
    assert told(sim) == [("installation", "deleted", ACME)]
    assert (await sim.http.get("/orgs/acme/actions/runners", headers=theirs)).status_code == 401
    for path in (f"/app/installations/{ACME}", "/orgs/acme/installation"):
        assert (await sim.http.get(path, headers=sim.app_headers())).status_code == 404
    minted = await sim.http.post(f"/app/installations/{ACME}/access_tokens", headers=sim.app_headers())
    assert minted.status_code == 404


async def test_an_app_that_is_installed_again_has_another_id(sim: Sim) -> None:
    await sim.http.post("/sim/installation", json={"owner": "acme", "installed": False})
    again = await sim.http.post("/sim/installation", json={"owner": "acme", "installed": True})
    assert again.json()["installation_id"] == ACME + 2
    assert told(sim) == [("installation", "deleted", ACME), ("installation", "created", ACME + 2)]


async def test_an_installation_event_names_account_and_repositories_as_githubs_does(sim: Sim) -> None:
    await sim.http.post("/sim/installation", json={"owner": "acme", "suspended": True})
    [delivery] = sim.world.deliveries.pending_and_newest(9)
    payload = delivery.body.decode()
    assert '"action": "suspend"' in payload
    assert '"full_name": "acme/hello"' in payload


async def test_a_permission_that_an_owner_grants_at_last_is_told(sim: Sim) -> None:
    await sim.http.post("/sim/account", json={"owner": "acme", "states": ["no_permission"]})
    await sim.http.post("/sim/account", json={"owner": "acme", "states": [], "repo": "hello"})
    assert told(sim) == []
    await sim.http.post("/sim/account", json={"owner": "acme", "states": []})
    assert told(sim) == [("installation", "new_permissions_accepted", ACME)]


async def test_a_ping_is_of_no_installation_and_has_no_action(sim: Sim) -> None:
    assert (await sim.http.post("/sim/ping")).status_code == 202
    assert told(sim) == [("ping", None, None)]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/sim/installation", {}),
        ("/sim/installation", {"suspended": "yes"}),
        ("/sim/installation", {"suspend": True}),
        ("/sim/installation", {"suspended": True, "owner": 7}),
        ("/sim/account", {"states": "suspended"}),
        ("/sim/account", {"states": ["asleep"]}),
        ("/sim/account", {"states": ["suspended"], "repo": "hello"}),
        ("/sim/account", {"states": [], "repo": "../x"}),
        ("/sim/repos", {"repo": "hello"}),
        ("/sim/repos", {"archived": True}),
    ],
)
async def test_a_change_that_is_none_is_refused_with_a_reason(sim: Sim, path: str, body: dict[str, object]) -> None:
    answer = await sim.http.post(path, json=body)
    assert (answer.status_code, answer.json()["error"]) == (400, "refused")
