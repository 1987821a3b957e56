"""What a poll sees: repositories, runs, the jobs of each attempt, pages, tags and counts (facts 5.5, 5.6)."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio

from nimbus.sim.jobs import Conclusion
from nimbus.wire.github import parse_workflow_job
from tests.forge import INSTALLATION_ID, Sim, open_sim

REPO = "/repos/octo-org/hello/actions"
TWO = "jobs: {a: {runs-on: nimbus, steps: [{run: x}]}, b: {runs-on: nimbus, steps: [{run: x}]}}"
GATED = "jobs: {a: {runs-on: nimbus, environment: production, steps: [{run: x}]}}"
JIT = {"name": "nimbus-1-1", "runner_group_id": 1, "labels": ["nimbus"]}


@pytest.fixture
async def sim() -> AsyncIterator[Sim]:
    with trio.fail_after(60):
        async with open_sim() as running:
            yield running


async def start(sim: Sim, workflow: str = TWO, repo: str = "hello") -> dict[str, Any]:
    return dict((await sim.http.post(f"/sim/workflows?repo={repo}", content=workflow)).json())


async def get(sim: Sim, path: str) -> Any:
    answer = await sim.http.get(path, headers=await sim.token_headers())
    assert answer.status_code == 200, answer.text
    return answer.json()


async def runs(sim: Sim, status: str) -> list[int]:
    return [run["id"] for run in (await get(sim, f"{REPO}/runs?status={status}"))["workflow_runs"]]


def take(sim: Sim, job_id: int, name: str = "nimbus-1-1") -> None:
    """A runner comes, and the job is its."""
    forge = sim.world.forge
    runner = forge.register("octo-org/hello", name, ("nimbus",), 1, "_work")
    forge.go_online(runner)
    forge.accept(runner, job_id)


def end(sim: Sim, job_id: int, conclusion: Conclusion) -> None:
    job = sim.world.forge.job(job_id)
    assert job.runner is not None
    sim.world.forge.complete(job.runner, job_id, conclusion)


# -- repositories ------------------------------------------------------------------------------------------------


async def test_repositories_tell_when_they_were_pushed_to_and_whether_they_are_archived(sim: Sim) -> None:
    await start(sim, repo="busy")
    await sim.http.post("/sim/repos", json={"repo": "old", "archived": True})
    listed = await get(sim, "/installation/repositories")
    seen = [(each["full_name"], each["archived"], each["pushed_at"] is not None) for each in listed["repositories"]]
    assert seen == [("octo-org/hello", False, False), ("octo-org/busy", False, True), ("octo-org/old", True, False)]
    assert listed["total_count"] == 3


async def test_nothing_runs_in_an_archived_repository(sim: Sim) -> None:
    await sim.http.post("/sim/repos", json={"repo": "old", "archived": True})
    assert (await sim.http.post("/sim/workflows?repo=old", content=TWO)).status_code == 400
    await sim.http.post("/sim/repos", json={"repo": "old", "archived": False})
    assert (await sim.http.post("/sim/workflows?repo=old", content=TWO)).status_code == 201


# -- runs and jobs -----------------------------------------------------------------------------------------------


async def test_a_run_with_one_started_job_is_in_progress_while_its_sibling_is_queued(sim: Sim) -> None:
    run = await start(sim)
    assert (await runs(sim, "queued"), await runs(sim, "in_progress")) == ([run["run_id"]], [])
    take(sim, run["jobs"][0]["job_id"])
    assert (await runs(sim, "queued"), await runs(sim, "in_progress")) == ([], [run["run_id"]])
    jobs = (await get(sim, f"{REPO}/runs/{run['run_id']}/attempts/1/jobs"))["jobs"]
    assert [job["status"] for job in jobs] == ["in_progress", "queued"]
    for number, job in enumerate(run["jobs"]):
        if number:
            take(sim, job["job_id"], "nimbus-2-1")
        end(sim, job["job_id"], Conclusion.SUCCESS)
    assert await runs(sim, "completed") == [run["run_id"]]
    assert await runs(sim, "success") == [run["run_id"]]


async def test_a_run_whose_jobs_all_stand_at_a_gate_is_waiting(sim: Sim) -> None:
    run = await start(sim, GATED)
    assert (await runs(sim, "queued"), await runs(sim, "waiting")) == ([], [run["run_id"]])
    assert (await get(sim, f"{REPO}/jobs/{run['jobs'][0]['job_id']}"))["status"] == "waiting"


async def test_a_job_as_rest_tells_of_it_is_read_like_a_webhooks(sim: Sim) -> None:
    run = await start(sim)
    take(sim, run["jobs"][0]["job_id"])
    job = await get(sim, f"{REPO}/jobs/{run['jobs'][0]['job_id']}")
    repo = (await get(sim, f"{REPO}/runs/{run['run_id']}"))["repository"]
    event = parse_workflow_job(json.dumps({"action": job["status"], "workflow_job": job, "repository": repo}).encode())
    assert (event.forge_job_id, event.runner_name) == (run["jobs"][0]["job_id"], "nimbus-1-1")


async def test_what_is_not_there_or_in_another_repository_is_not_found(sim: Sim) -> None:
    run = await start(sim, repo="other")
    headers = await sim.token_headers()
    for path in (
        f"{REPO}/runs/{run['run_id']}",
        f"{REPO}/runs/{run['run_id']}/attempts/1/jobs",
        f"{REPO}/jobs/{run['jobs'][0]['job_id']}",
        f"/repos/octo-org/other/actions/runs/{run['run_id']}/attempts/2/jobs",
        f"/repos/octo-org/other/actions/runs/{run['run_id']}/attempts/0/jobs",
        "/repos/octo-org/nowhere/actions/runs",
    ):
        assert (await sim.http.get(path, headers=headers)).status_code == 404, path
    assert (await sim.http.get(f"{REPO}/runs?status=asleep", headers=headers)).status_code == 422


# -- another attempt ---------------------------------------------------------------------------------------------


async def test_a_rerun_of_the_failed_jobs_brings_new_ids_and_leaves_the_others(sim: Sim) -> None:
    run = await start(sim)
    good, bad = (job["job_id"] for job in run["jobs"])
    take(sim, good)
    end(sim, good, Conclusion.SUCCESS)
    take(sim, bad, "nimbus-2-1")
    end(sim, bad, Conclusion.FAILURE)
    again = await sim.http.post(f"/sim/runs/{run['run_id']}/rerun?jobs=failed")
    assert (again.status_code, again.json()["attempt"]) == (201, 2)
    root = f"{REPO}/runs/{run['run_id']}"
    first = (await get(sim, f"{root}/attempts/1/jobs"))["jobs"]
    second = (await get(sim, f"{root}/attempts/2/jobs"))["jobs"]
    assert [(job["id"], job["run_attempt"]) for job in first] == [(good, 1), (bad, 1)]
    assert [job["run_attempt"] for job in second] == [1, 2]
    assert second[0]["id"] == good
    assert second[1]["id"] not in {good, bad}
    assert (await get(sim, root))["run_attempt"] == 2
    assert len((await get(sim, f"{root}/jobs?filter=all"))["jobs"]) == 3
    told = json.loads(sim.world.deliveries.pending_and_newest(99)[-1].body)["workflow_job"]
    assert (told["id"], told["run_attempt"], told["status"]) == (second[1]["id"], 2, "queued")


async def test_a_rerun_of_all_jobs_leaves_none_of_the_first_attempt_in_the_second(sim: Sim) -> None:
    run = await start(sim, GATED)
    await sim.http.post(f"/sim/jobs/{run['jobs'][0]['job_id']}/cancel")
    again = (await sim.http.post(f"/sim/runs/{run['run_id']}/rerun")).json()
    assert [job["status"] for job in again["jobs"]] == ["waiting"]
    assert again["jobs"][0]["job_id"] != run["jobs"][0]["job_id"]


async def test_only_a_completed_run_is_run_again_and_only_where_something_failed(sim: Sim) -> None:
    run = await start(sim, GATED)
    path = f"/sim/runs/{run['run_id']}/rerun"
    assert (await sim.http.post(path)).status_code == 409
    await sim.http.post(f"/sim/jobs/{run['jobs'][0]['job_id']}/approve")
    take(sim, run["jobs"][0]["job_id"])
    end(sim, run["jobs"][0]["job_id"], Conclusion.SUCCESS)
    assert (await sim.http.post(f"{path}?jobs=failed")).status_code == 409
    assert (await sim.http.post(f"{path}?jobs=some")).status_code == 400
    assert (await sim.http.post("/sim/runs/1/rerun")).status_code == 404


# -- pages, tags, limits -----------------------------------------------------------------------------------------


async def test_a_list_is_walked_to_its_end_by_its_links(sim: Sim) -> None:
    started = [(await start(sim))["run_id"] for _ in range(5)]
    headers = await sim.token_headers()
    answer = await sim.http.get(f"{REPO}/runs?status=queued&per_page=2", headers=headers)
    seen = [run["id"] for run in answer.json()["workflow_runs"]]
    assert answer.links["last"]["url"].endswith("page=3")
    while "next" in answer.links:
        answer = await sim.http.get(answer.links["next"]["url"], headers=headers)
        assert answer.json()["total_count"] == 5
        seen += [run["id"] for run in answer.json()["workflow_runs"]]
    assert seen == started[::-1]


async def test_what_has_not_changed_is_not_sent_again_and_costs_nothing(sim: Sim) -> None:
    await start(sim)
    headers = await sim.token_headers()
    first = await sim.http.get(f"{REPO}/runs", headers=headers)
    again = await sim.http.get(f"{REPO}/runs", headers={**headers, "If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", first.headers["etag"])
    assert again.headers["x-ratelimit-remaining"] == first.headers["x-ratelimit-remaining"]
    await start(sim)
    changed = await sim.http.get(f"{REPO}/runs", headers={**headers, "If-None-Match": first.headers["etag"]})
    assert changed.status_code == 200
    assert int(changed.headers["x-ratelimit-remaining"]) == int(first.headers["x-ratelimit-remaining"]) - 1


async def test_every_answer_tells_of_the_limit(sim: Sim) -> None:
    headers = await sim.token_headers()
    for answer in (
        await sim.http.get("/app/installations", headers=sim.app_headers()),
        await sim.http.get("/app/hook/deliveries", headers=sim.app_headers()),
        await sim.http.get(f"{REPO}/runs/1", headers=headers),
        await sim.http.post(f"{REPO}/runners/generate-jitconfig", headers=headers, json={}),
        await sim.http.delete(f"{REPO}/runners/1", headers=headers),
    ):
        assert int(answer.headers["x-ratelimit-remaining"]) < 5000, answer.text


async def test_deliveries_are_walked_to_their_end_by_their_links(sim: Sim) -> None:
    with trio.fail_after(30):
        for _ in range(3):
            await start(sim, GATED)
        while len(sim.world.deliveries.newest(9, None)) < 3:  # noqa: ASYNC110 -- the sender rings no bell of ours
            await trio.sleep(0.02)
    answer = await sim.http.get("/app/hook/deliveries?per_page=2", headers=sim.app_headers())
    newest = [each["id"] for each in answer.json()]
    answer = await sim.http.get(answer.links["next"]["url"], headers=sim.app_headers())
    [oldest] = [each["id"] for each in answer.json()]
    assert newest == sorted(newest, reverse=True)
    assert oldest < min(newest)
    assert "next" not in answer.links
    answer = await sim.http.get("/app/hook/deliveries?cursor=yesterday", headers=sim.app_headers())
    assert answer.status_code == 422


# -- what was asked of it ----------------------------------------------------------------------------------------


async def test_calls_are_counted_by_installation_and_registrations_that_are_left_are_named(sim: Sim) -> None:
    headers = await sim.token_headers()
    path = f"{REPO}/runners/generate-jitconfig"
    minted = [await sim.http.post(path, headers=headers, json={**JIT, "name": name}) for name in ("a", "b", "b")]
    assert [answer.status_code for answer in minted] == [201, 201, 409]
    await sim.http.delete(f"{REPO}/runners/{minted[0].json()['runner']['id']}", headers=headers)
    etag = (await sim.http.get(f"{REPO}/runners", headers=headers)).headers["etag"]
    await sim.http.get(f"{REPO}/runners", headers={**headers, "If-None-Match": etag})
    stats = (await sim.http.get("/sim/stats")).json()
    assert stats["installations"] == [
        {
            "installation_id": INSTALLATION_ID, "owner": "octo-org", "writes": 4, "mints": 3, "minted": 2, "deletes": 1,
            "deleted": 1, "registration_tokens": 0, "reads": 2, "not_modified": 1, "access_tokens": 1,
        }
    ]  # fmt: skip
    assert [(each["name"], each["scope"], each["status"]) for each in stats["runners"]] == [
        ("b", "octo-org/hello", "offline")
    ]
    jit = "/repos/<owner>/<repo>/actions/runners/generate-jitconfig"
    counted = {(call["method"], call["route"], call["status"]): call["count"] for call in stats["calls"]}
    assert (counted["POST", jit, 201], counted["POST", jit, 409]) == (2, 1)
    assert (await sim.http.delete("/sim/stats")).status_code == 200
    assert (await sim.http.get("/sim/stats")).json()["calls"] == []
