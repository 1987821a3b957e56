"""Runners on a bad day, over real sockets: stolen, lost, dropped, busy when they are not, listed late."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
import trio

from nimbus.model.job import JobState
from nimbus.sim.faults import Faults, parse_plan
from nimbus.sim.faults_runners import BadRunners
from tests.forge import Sim, open_sim
from tests.unit.sim.rig import Stage

RUNNERS = "/repos/octo-org/hello/actions/runners"


@dataclass
class Guest:
    """A registered runner, as its own side speaks for it."""

    sim: Sim
    runner_id: int
    token: str

    async def ask(self, method: str, path: str, body: str = "-") -> tuple[int, list[str]]:
        headers = {"Authorization": f"Bearer {self.token}"}
        content = body if method == "POST" else None
        answer = await self.sim.http.request(method, f"/_runner{path}", headers=headers, content=content)
        return answer.status_code, answer.text.splitlines()

    async def online(self) -> None:
        assert (await self.ask("POST", "/session"))[0] == 200

    async def offered(self) -> int | None:
        """The job that it is offered now."""
        _, lines = await self.ask("GET", "/job?wait=0")
        return int(lines[0].split()[1]) if lines[0].startswith("job ") else None

    async def accept(self, job_id: int) -> int:
        return (await self.ask("POST", f"/jobs/{job_id}/accept"))[0]

    async def delete(self) -> int:
        headers = await self.sim.token_headers()
        return (await self.sim.http.delete(f"{RUNNERS}/{self.runner_id}", headers=headers)).status_code


@pytest.fixture
async def sim() -> AsyncIterator[Sim]:
    with trio.fail_after(60):
        async with open_sim() as running:
            yield running


async def faults(sim: Sim, **kinds: object) -> None:
    answer = await sim.http.post("/sim/faults", json={"runners": kinds})
    assert answer.status_code == 200, answer.text


async def struck(sim: Sim) -> dict[str, int]:
    return dict((await sim.http.get("/sim/faults")).json()["struck"])


async def job(sim: Sim, labels: str = "nimbus") -> int:
    text = f"jobs: {{a: {{runs-on: [{labels}], steps: [{{run: 'true'}}]}}}}"
    answer = await sim.http.post("/sim/workflows", content=text)
    return int(answer.json()["jobs"][0]["job_id"])


async def guest(sim: Sim, *labels: str, name: str = "nimbus-1-1") -> Guest:
    body = {"name": name, "runner_group_id": 1, "labels": labels or ["nimbus"]}
    answer = await sim.http.post(f"{RUNNERS}/generate-jitconfig", headers=await sim.token_headers(), json=body)
    assert answer.status_code == 201, answer.text
    runner_id = int(answer.json()["runner"]["id"])
    return Guest(sim, runner_id, sim.world.forge.runners[runner_id].token)


async def listed(sim: Sim) -> list[dict[str, Any]]:
    return list((await sim.http.get(RUNNERS, headers=await sim.token_headers())).json()["runners"])


async def statuses(sim: Sim) -> list[str]:
    return [each["status"] for each in await listed(sim)]


async def test_a_runner_that_comes_online_is_stolen_by_a_foreign_job_that_it_serves_as_well(sim: Sim) -> None:
    mine = await job(sim, "nimbus, gpu")
    await faults(sim, stolen=1)
    runner = await guest(sim, "nimbus", "gpu")
    await runner.online()
    foreign = await runner.offered()
    assert foreign not in {mine, None}
    assert sim.world.forge.jobs[foreign or 0].spec.labels == ("nimbus",)
    assert await runner.accept(foreign or 0) == 200
    assert sim.world.forge.jobs[mine].state is JobState.QUEUED
    script = await runner.ask("GET", f"/jobs/{foreign}/steps/1/script")
    assert script[1] == ["exit 0"]
    assert (await runner.ask("POST", f"/jobs/{foreign}/complete", "success"))[0] == 200
    told = [(each.event, each.action) for each in sim.world.deliveries.pending_and_newest(9)]
    assert told == [("workflow_job", action) for action in ("queued", "queued", "in_progress", "completed")]
    assert await struck(sim) == {"runners.stolen": 1}


async def test_a_runner_is_stolen_once_only_and_another_takes_the_job_it_was_made_for(sim: Sim) -> None:
    mine = await job(sim)
    await faults(sim, stolen=1)
    first = await guest(sim)
    await first.online()
    await first.online()
    await first.offered()
    await faults(sim)
    second = await guest(sim, name="nimbus-2-1")
    await second.online()
    assert await second.offered() == mine
    assert (await struck(sim), len(sim.world.forge.jobs)) == ({"runners.stolen": 1}, 2)


async def test_a_runner_that_seems_idle_may_take_a_job_before_it_is_deleted(sim: Sim) -> None:
    await faults(sim, taken_before_delete=1)
    runner = await guest(sim)
    await runner.online()
    assert await runner.offered() is None
    assert [await runner.delete(), await runner.delete()] == [422, 422]
    foreign = await runner.offered()
    assert foreign is not None
    assert await runner.accept(foreign) == 200
    assert await runner.delete() == 422
    assert (await runner.ask("POST", f"/jobs/{foreign}/complete", "success"))[0] == 200
    assert await runner.delete() == 404
    assert await struck(sim) == {"runners.taken_before_delete": 1}


async def test_a_runner_that_never_came_online_is_not_taken(sim: Sim) -> None:
    await faults(sim, taken_before_delete=1)
    assert await (await guest(sim)).delete() == 204


async def test_the_deletion_of_an_idle_runner_may_be_refused_for_a_while(sim: Sim) -> None:
    await faults(sim, busy_refused=1, busy_refused_s=1)
    runner = await guest(sim)
    assert await runner.delete() == 422
    while True:
        if await runner.delete() == 204:
            break
        await trio.sleep(0.1)
    assert (await listed(sim), await struck(sim)) == ([], {"runners.busy_refused": 1})


async def test_a_runner_may_lose_its_job_to_another_and_stay_idle(sim: Sim) -> None:
    mine = await job(sim)
    await faults(sim, assignment_lost=1)
    runner = await guest(sim)
    await runner.online()
    assert await runner.offered() == mine
    assert await runner.accept(mine) == 409
    assert await runner.offered() is None
    assert [(each["status"], each["busy"]) for each in await listed(sim)] == [("online", False)]
    await faults(sim)
    other = await guest(sim, name="nimbus-2-1")
    await other.online()
    assert await other.offered() == mine
    assert await other.accept(mine) == 200
    assert await struck(sim) == {"runners.assignment_lost": 1}


async def test_an_idle_runner_may_be_dropped(sim: Sim) -> None:
    await faults(sim, idle_dropped=1, idle_dropped_s=0)
    runner = await guest(sim)
    await runner.online()
    with trio.fail_after(30):
        status, lines = await runner.ask("GET", "/job?wait=20")
    assert (status, lines) in ((200, ["gone"]), (401, lines))
    assert await listed(sim) == []
    assert await struck(sim) == {"runners.idle_dropped": 1}


async def test_a_busy_runner_is_never_dropped(sim: Sim) -> None:
    mine = await job(sim)
    await faults(sim, idle_dropped=1, idle_dropped_s=0)
    runner = await guest(sim)
    await runner.online()
    assert await runner.accept(mine) == 200
    sim.world.sweep()
    assert [each["busy"] for each in await listed(sim)] == [True]


async def test_a_new_runner_may_be_listed_late(sim: Sim) -> None:
    await faults(sim, listed_late=1, list_lag_s=[3600, 3600])
    runner = await guest(sim)
    await runner.online()
    assert await listed(sim) == []
    headers = await sim.token_headers()
    assert (await sim.http.get(f"{RUNNERS}/{runner.runner_id}", headers=headers)).status_code == 200
    assert (await sim.http.get(f"{RUNNERS}?name=nimbus-1-1", headers=headers)).json()["total_count"] == 0
    await faults(sim)
    assert await statuses(sim) == ["online"]
    assert await struck(sim) == {"runners.listed_late": 1}


async def test_a_runner_may_be_listed_as_offline_for_a_while(sim: Sim) -> None:
    await faults(sim, listed_offline=1, list_lag_s=[3600, 3600])
    runner = await guest(sim)
    await runner.online()
    assert await statuses(sim) == ["offline"]
    await faults(sim)
    assert await statuses(sim) == ["online"]
    assert await struck(sim) == {"runners.listed_offline": 1}


@pytest.mark.parametrize(("kind", "shown"), [("listed_late", [[], []]), ("listed_offline", [[False], [False]])])
def test_the_list_lags_for_its_time_and_no_longer(kind: str, shown: list[list[bool]]) -> None:
    stage = Stage()
    runner = stage.online()
    bad = BadRunners(Faults(parse_plan(f'{{"runners": {{"{kind}": 1, "list_lag_s": [5, 5]}}}}')))
    seen_at = [[each.online for each in bad.seen([runner], stage.clock.now_s + s)] for s in (0, 4.9, 5)]
    assert seen_at == [*shown, [True]]
    assert runner.online  # it is the list alone that is behind
