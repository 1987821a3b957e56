"""Why GitHub refuses an App with a good token, in GitHub's words: who must act is read from them."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx2
import pytest
import trio

from tests.forge import Sim, open_sim

REPO = "/repos/octo-org/hello/actions"
ORG = "/orgs/octo-org/actions/runners"
JIT = {"name": "nimbus-1-1", "runner_group_id": 1, "labels": ["nimbus"]}


@pytest.fixture
async def sim() -> AsyncIterator[Sim]:
    with trio.fail_after(60):
        async with open_sim() as running:
            yield running


async def set_states(sim: Sim, *states: str, repo: str | None = None) -> None:
    answer = await sim.http.post("/sim/account", json={"states": states, "repo": repo})
    assert answer.status_code == 200, answer.text


async def ask(sim: Sim, method: str, path: str) -> httpx2.Response:
    body = JIT if path.endswith("generate-jitconfig") else None
    return await sim.http.request(method, path, headers=await sim.token_headers(), json=body)


@pytest.mark.parametrize("path", [f"{REPO}/runs", f"{REPO}/runners", ORG, "/installation/repositories"])
async def test_an_ip_allow_list_refuses_everything(sim: Sim, path: str) -> None:
    await set_states(sim, "ip_allow_list")
    refused = await ask(sim, "GET", path)
    assert refused.status_code == 403
    assert "IP allow list enabled, and your IP address is not permitted" in refused.json()["message"]


@pytest.mark.parametrize("path", [f"{REPO}/runs", f"{REPO}/runners", ORG])
async def test_actions_that_are_disabled_refuse_what_belongs_to_them(sim: Sim, path: str) -> None:
    await set_states(sim, "actions_disabled")
    refused = await ask(sim, "GET", path)
    assert (refused.status_code, "Actions is disabled" in refused.json()["message"]) == (403, True)
    assert (await ask(sim, "GET", "/installation/repositories")).status_code == 200


@pytest.mark.parametrize("path", ["runners/generate-jitconfig", "runners/registration-token"])
async def test_disabled_runners_of_repositories_say_so_in_errors_alone(sim: Sim, path: str) -> None:
    await set_states(sim, "runners_disabled")
    refused = await ask(sim, "POST", f"{REPO}/{path}")
    assert (refused.status_code, refused.json()["message"]) == (403, "Forbidden")
    assert "self-hosted runners are disabled" in refused.json()["errors"]


async def test_disabled_runners_of_repositories_leave_the_organisations_and_reading(sim: Sim) -> None:
    await set_states(sim, "runners_disabled")
    assert (await ask(sim, "POST", f"{ORG}/generate-jitconfig")).status_code == 201
    assert (await ask(sim, "GET", f"{REPO}/runners")).status_code == 200


async def test_a_repository_that_the_app_may_not_see_is_refused_and_not_listed(sim: Sim) -> None:
    await set_states(sim, "no_permission", repo="Hello")
    refused = await ask(sim, "GET", f"{REPO}/runs")
    assert (refused.status_code, refused.json()["message"]) == (403, "Resource not accessible by integration")
    assert (await ask(sim, "GET", "/repos/octo-org/other/actions/runners")).status_code == 200
    assert (await ask(sim, "GET", "/installation/repositories")).json()["repositories"] == []


@pytest.mark.parametrize(("states", "group_id"), [(["group_full"], 1), ([], 3)])
async def test_a_full_group_takes_no_runner(sim: Sim, states: list[str], group_id: int) -> None:
    await set_states(sim, *states)
    body = {**JIT, "runner_group_id": group_id}
    headers = await sim.token_headers()
    refused = await sim.http.post(f"{REPO}/runners/generate-jitconfig", headers=headers, json=body)
    said = f"Invalid Argument - Runner group {group_id} has reached max limit of 10000 runners."
    assert (refused.status_code, refused.json()["message"]) == (422, said)


async def test_what_is_not_named_again_ends(sim: Sim) -> None:
    await set_states(sim, "suspended", "group_full")
    shown = (await sim.http.get("/sim/account")).json()["accounts"][0]
    assert (shown["suspended"], shown["refusals"]) == (True, {"": ["group_full"]})
    await set_states(sim)
    shown = (await sim.http.get("/sim/account")).json()["accounts"][0]
    assert (shown["suspended"], shown["refusals"]) == (False, {})
    assert (await ask(sim, "POST", f"{REPO}/runners/generate-jitconfig")).status_code == 201


async def test_a_narrower_token_reads_and_writes_only_what_it_names(sim: Sim) -> None:
    headers = await sim.token_headers({"permissions": {"actions": "read"}, "repositories": ["Hello"]})
    assert (await sim.http.get(f"{REPO}/runs", headers=headers)).status_code == 200
    assert (await sim.http.get(f"{REPO}/runners", headers=headers)).status_code == 403
    assert (await sim.http.get("/repos/octo-org/other/actions/runs", headers=headers)).status_code == 403
    headers = await sim.token_headers({"permissions": {"administration": "read"}})
    assert (await sim.http.get(f"{REPO}/runners", headers=headers)).status_code == 200
    assert (await sim.http.get(f"{REPO}/runs", headers=headers)).status_code == 403
    refused = await sim.http.post(f"{REPO}/runners/generate-jitconfig", headers=headers, json=JIT)
    assert refused.status_code == 403
