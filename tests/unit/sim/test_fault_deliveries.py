"""Webhooks on a bad day, over real sockets: lost, doubled, late, overtaken, never made, never heard of."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import pytest
import trio
from quart import Response, request

from nimbus.model.errors import NotFound
from nimbus.runtime.http import open_http
from nimbus.runtime.serving import build_app, serve_app
from nimbus.sim.bell import Bell
from nimbus.sim.deliveries import Deliveries, WebhookTarget
from tests.forge import Sim, open_sim

WORKFLOW = "jobs: {a: {runs-on: nimbus, steps: [{run: 'true'}]}}"


@dataclass
class Arrived:
    """One webhook as its receiver had it."""

    guid: str
    action: str
    job_id: int


@dataclass
class Line:
    """A sim and the receiver of its webhooks, which answers once its gate is open for the job."""

    sim: Sim
    got: list[Arrived]
    closed: dict[int, trio.Event]
    bell: Bell

    async def arrived(self, count: int) -> None:
        while len(self.got) < count:
            await self.bell.wait()

    async def faults(self, **kinds: object) -> None:
        answer = await self.sim.http.post("/sim/faults", json={"deliveries": kinds})
        assert answer.status_code == 200, answer.text

    async def job(self) -> int:
        answer = await self.sim.http.post("/sim/workflows", content=WORKFLOW)
        return int(answer.json()["jobs"][0]["job_id"])

    async def cancel(self, job_id: int) -> None:
        assert (await self.sim.http.post(f"/sim/jobs/{job_id}/cancel")).status_code == 202

    async def listed(self, count: int) -> list[dict[str, Any]]:
        """What GitHub lists, newest first, once that many attempts have ended."""
        while True:
            answer = await self.sim.http.get("/app/hook/deliveries?per_page=100", headers=self.sim.app_headers())
            if len(answer.json()) >= count:
                return list(answer.json())
            await trio.sleep(0.02)

    async def listed_all(self, count: int) -> list[dict[str, Any]]:
        """The same over all pages: GitHub's cursor is in the Link header."""
        while True:
            found, path = [], "/app/hook/deliveries?per_page=100"
            while path:
                answer = await self.sim.http.get(path, headers=self.sim.app_headers())
                found += answer.json()
                path = answer.links.get("next", {}).get("url", "")
            if len(found) >= count:
                return found
            await trio.sleep(0.05)

    async def redeliver(self, delivery_id: int) -> None:
        path = f"/app/hook/deliveries/{delivery_id}/attempts"
        assert (await self.sim.http.post(path, headers=self.sim.app_headers())).status_code == 202

    async def struck(self) -> dict[str, int]:
        return dict((await self.sim.http.get("/sim/faults")).json()["struck"])


@asynccontextmanager
async def open_line() -> AsyncIterator[Line]:
    got: list[Arrived] = []
    closed: dict[int, trio.Event] = {}
    bell = Bell()
    app, stop = build_app("receiver"), trio.Event()

    async def receive() -> Response:
        body = json.loads(cast("bytes", await request.get_data()))
        job_id = body["workflow_job"]["id"]
        got.append(Arrived(request.headers["X-GitHub-Delivery"], body["action"], job_id))
        bell.ring()
        if job_id in closed:
            await closed[job_id].wait()
        return Response("", 202)

    app.add_url_rule("/", "receive", receive, methods=["POST"])
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            serve = partial(serve_app, app, ["127.0.0.1:0"], stop, graceful_s=1.0)
            urls: list[str] = await nursery.start(serve)
            async with open_sim(WebhookTarget(f"{urls[0]}/", "x" * 32)) as sim:
                yield Line(sim, got, closed, bell)
            stop.set()


@pytest.fixture
async def line() -> AsyncIterator[Line]:
    async with open_line() as opened:
        yield opened


async def test_a_lost_delivery_is_listed_as_failed_and_comes_with_its_guid_when_asked_for(line: Line) -> None:
    await line.faults(lost=1)
    await line.job()
    [failed] = await line.listed(1)
    assert (failed["status_code"], failed["status"], line.got) == (502, "failed to connect to host", [])
    await line.faults()
    await line.redeliver(failed["id"])
    newest, _ = await line.listed(2)
    assert (newest["status"], newest["redelivery"]) == ("OK", True)
    assert [arrived.guid for arrived in line.got] == [failed["guid"]]


async def test_a_redelivery_may_be_lost_as_well_unless_redeliveries_are_spared(line: Line) -> None:
    await line.faults(lost=1)
    await line.job()
    [failed] = await line.listed(1)
    await line.redeliver(failed["id"])
    assert [each["status_code"] for each in await line.listed(2)] == [502, 502]
    await line.faults(lost=1, redeliveries_pass=True)
    await line.redeliver(failed["id"])
    assert [each["status_code"] for each in await line.listed(3)] == [202, 502, 502]
    assert await line.struck() == {"deliveries.lost": 2}


async def test_an_unlisted_delivery_is_nowhere(line: Line) -> None:
    await line.faults(unlisted=1)
    silent = await line.job()
    await line.faults()
    told = await line.job()
    assert len(await line.listed(1)) == 1
    assert [arrived.job_id for arrived in line.got] == [told]
    assert silent in line.sim.world.forge.jobs
    assert await line.struck() == {"deliveries.unlisted": 1}


async def test_a_doubled_delivery_comes_twice_under_one_guid(line: Line) -> None:
    await line.faults(duplicated=1)
    await line.job()
    listed = await line.listed(2)
    assert [each["redelivery"] for each in listed] == [False, False]
    assert len({each["id"] for each in listed}) == 2
    assert {each["guid"] for each in listed} == {arrived.guid for arrived in line.got}
    assert len(line.got) == 2


async def test_an_overtaken_delivery_comes_after_the_jobs_next(line: Line) -> None:
    await line.faults(reordered=1, reorder_within_s=3600)
    job_id = await line.job()
    await line.faults()
    await line.cancel(job_id)
    await line.listed(2)
    assert [arrived.action for arrived in line.got] == ["completed", "queued"]


async def test_a_delivery_that_nothing_overtakes_comes_in_the_end(line: Line) -> None:
    await line.faults(reordered=1, reorder_within_s=0.2)
    await line.job()
    await line.listed(1)
    assert [arrived.action for arrived in line.got] == ["queued"]


async def test_a_late_delivery_is_listed_by_the_moment_it_was_sent(line: Line) -> None:
    await line.faults(late=1, late_s=[4, 4])
    job_id = await line.job()
    await line.faults()
    await line.cancel(job_id)
    newest, older = await line.listed(2)
    assert [arrived.action for arrived in line.got] == ["completed", "queued"]
    assert (newest["action"], older["action"]) == ("queued", "completed")
    path = f"/app/hook/deliveries?cursor={newest['id']}"
    assert (await line.sim.http.get(path, headers=line.sim.app_headers())).json() == [older]


async def test_an_answer_that_comes_too_late_is_a_time_out_for_a_delivery_that_arrived(line: Line) -> None:
    await line.faults(answered_late=1)
    await line.job()
    [timed_out] = await line.listed(1)
    assert (timed_out["status"], timed_out["status_code"], timed_out["duration"]) == ("timed out", 504, 10.0)
    assert len(line.got) == 1


async def test_a_slow_receiver_holds_up_its_own_jobs_deliveries_and_nobody_elses(line: Line) -> None:
    slow = await line.job()
    await line.listed(1)
    opened = line.closed[slow] = trio.Event()
    await line.cancel(slow)
    quick = await line.job()
    await line.cancel(quick)
    await line.listed(3)
    opened.set()
    await line.listed(4)
    assert [arrived.action for arrived in line.got if arrived.job_id == quick] == ["queued", "completed"]


async def test_the_deliveries_of_one_job_keep_their_order_whatever_the_receiver_does(line: Line) -> None:
    await line.faults(late=1, late_s=[0.5, 0.5])
    job_id = await line.job()
    opened = line.closed[job_id] = trio.Event()
    await line.arrived(1)
    await line.faults()
    await line.cancel(job_id)
    told = await line.job()
    await line.listed(1)
    assert [(arrived.action, arrived.job_id) for arrived in line.got] == [("queued", job_id), ("queued", told)]
    opened.set()
    await line.listed(3)
    assert line.got[-1].action == "completed"


async def test_hundreds_of_deliveries_arrive_each_once_and_in_the_order_of_their_jobs(line: Line) -> None:
    jobs = [await line.job() for _ in range(60)]
    for job_id in jobs:
        await line.cancel(job_id)
    await line.arrived(120)
    for job_id in jobs:
        assert [each.action for each in line.got if each.job_id == job_id] == ["queued", "completed"]
    assert len({each.guid for each in line.got}) == 120


async def test_what_is_older_than_the_window_is_neither_listed_nor_sent_again() -> None:
    deliveries, ended = Deliveries(None, window_s=60), trio.Event()
    with trio.fail_after(30):
        async with open_http() as client, trio.open_nursery() as nursery:
            nursery.start_soon(deliveries.run_sender, client, trio.lowlevel.checkpoint)
            deliveries.add("ping", None, {})
            deliveries.changed = ended.set
            await ended.wait()
            nursery.cancel_scope.cancel()
    [old] = deliveries.newest(9, None)
    old.delivered_at_s = time.time() - 61
    assert deliveries.newest(9, None) == []
    with pytest.raises(NotFound):
        deliveries.redeliver(old.delivery_id)
    deliveries.add("ping", None, {})
    assert [each.delivery_id for each in deliveries.pending_and_newest(9)] != [old.delivery_id]
    assert len(deliveries.pending_and_newest(9)) == 1


async def test_whatever_a_storm_does_redelivery_brings_each_event_that_was_ever_listed(line: Line) -> None:
    await line.faults(
        lost=0.3,
        unlisted=0.1,
        duplicated=0.2,
        reordered=0.2,
        reorder_within_s=0.3,
        late=0.2,
        late_s=[0.1, 1],
        answered_late=0.1,
        redeliveries_pass=True,
    )
    for _ in range(60):
        await line.cancel(await line.job())
    struck = await line.struck()
    made = 120 - struck["deliveries.unlisted"] + struck["deliveries.duplicated"]
    listed = await line.listed_all(made)
    ended = {each["guid"]: each for each in listed if each["status"] != "OK"}
    arrived = {each["guid"] for each in listed if each["status"] == "OK"}
    missed = [each for guid, each in ended.items() if guid not in arrived]
    assert len(missed) > 10
    for each in missed:
        await line.redeliver(each["id"])
    await line.listed_all(made + len(missed))
    assert len({each.guid for each in line.got}) == 120 - struck["deliveries.unlisted"]
    assert (await line.struck())["deliveries.lost"] > 20
