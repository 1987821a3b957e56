"""A sim that ends by SIGKILL in every state of a job, and the one that takes up its file."""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import pytest
import structlog
import trio
from quart import Response, request

from nimbus.model.errors import HostFault
from nimbus.model.job import JobState
from nimbus.runtime.serving import build_app, serve_app
from nimbus.sim.accounts import Refusal
from nimbus.sim.deliveries import WebhookTarget
from nimbus.sim.forge import ForgePolicy
from nimbus.sim.jobs import Conclusion, Job, Runner
from nimbus.sim.memory import FILE
from nimbus.sim.workflow import parse_workflow
from nimbus.sim.world import World, WorldPlan
from tests.forge import open_sim
from tests.unit.sim.rig import Clock

WORKFLOW = "jobs: {a: {runs-on: nimbus, %s steps: [{run: 'true'}, {run: 'false'}]}}"


@dataclass
class Life:
    """One sim after another on the same folder, under one clock; each ends without any last word."""

    folder: Path
    clock: Clock = field(default_factory=Clock)
    owner: str = "octo-org"
    more_owners: tuple[str, ...] = ()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[World]:
        plan = WorldPlan(self.owner, "hello", "1", "", 7, "", None, policy=ForgePolicy(), state_dir=self.folder)
        world = World(replace(plan, more_owners=self.more_owners), self.clock)
        await world.memory.recall()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.memory.run_writer)
            yield world
            nursery.cancel_scope.cancel()


@pytest.fixture
def life(tmp_path: Path) -> Life:
    return Life(tmp_path / "sim")


def start(world: World, extra: str = "") -> Job:
    return world.forge.start_run(parse_workflow(WORKFLOW % extra), "hello").jobs[0]


def online(world: World, name: str = "nimbus-1-1") -> Runner:
    runner = world.forge.register("octo-org/hello", name, ("nimbus",), 1, "_work")
    world.forge.go_online(runner)
    return runner


def actions(world: World) -> list[str]:
    sent = world.deliveries.pending_and_newest(100)
    return [json.loads(delivery.body)["action"] for delivery in sent]


# -- every state of a job --------------------------------------------------------------------------------------


async def test_a_queued_job_is_queued_and_goes_to_the_first_runner_that_comes(life: Life) -> None:
    async with life.open() as world:
        job_id = start(world).job_id
        await world.memory.wait_written()
    async with life.open() as world:
        job = world.forge.job(job_id)
        assert (job.state, job.offered_to) == (JobState.QUEUED, None)
        runner = online(world)
        assert world.forge.offer(runner) is job


async def test_a_waiting_job_still_waits_at_its_gate(life: Life) -> None:
    async with life.open() as world:
        job_id = start(world, "environment: production,").job_id
        await world.memory.wait_written()
    async with life.open() as world:
        assert world.forge.job(job_id).state is JobState.WAITING
        runner = online(world)
        assert world.forge.offer(runner) is None
        assert world.forge.offer(runner) is not world.forge.approve(job_id)
        assert world.forge.offer(runner) is world.forge.job(job_id)


async def test_a_job_on_offer_is_offered_again_to_the_runner_once_it_calls(life: Life) -> None:
    async with life.open() as world:
        job_id, token = start(world).job_id, online(world).token
        assert world.forge.job(job_id).offered_to is not None
        await world.memory.wait_written()
    async with life.open() as world:
        [runner] = world.forge.runners.values()
        assert (runner.online, world.forge.job(job_id).offered_to) == (False, None)
        assert world.forge.authenticate(token) is runner
        assert (runner.online, world.forge.offer(runner)) == (True, world.forge.job(job_id))


async def test_a_job_in_progress_goes_on_with_its_runner_where_it_was(life: Life) -> None:
    async with life.open() as world:
        job_id, runner = start(world).job_id, online(world)
        job = world.forge.accept(runner, job_id)
        world.forge.start_step(job, 1)
        world.forge.finish_step(job, 1, Conclusion.SUCCESS)
        world.forge.start_step(job, 2)
        await world.memory.wait_written()
    async with life.open() as world:
        life.clock.now_s += 59.0
        again = world.forge.authenticate(runner.token)
        life.clock.now_s += 599.0
        world.forge.sweep()
        job = world.forge.job_of(again, job_id)
        assert [step.state for step in job.steps] == [JobState.COMPLETED, JobState.IN_PROGRESS]
        world.forge.complete(again, job_id, Conclusion.SUCCESS)
        assert actions(world) == ["queued", "in_progress", "completed"]
        assert world.forge.runs[job.run.run_id].conclusion is Conclusion.SUCCESS


async def test_a_job_in_progress_whose_runner_stays_away_fails_with_its_webhook(life: Life) -> None:
    async with life.open() as world:
        job_id, runner = start(world).job_id, online(world)
        world.forge.accept(runner, job_id)
        await world.memory.wait_written()
    async with life.open() as world:
        life.clock.now_s += 60.0
        world.forge.sweep()
        assert world.forge.job(job_id).state is JobState.IN_PROGRESS
        life.clock.now_s += 1.0
        world.forge.sweep()
        assert world.forge.job(job_id).conclusion is Conclusion.FAILURE
        assert actions(world) == ["queued", "in_progress", "completed"]
        assert world.forge.runners == {}


async def test_a_runner_that_is_awaited_over_two_restarts_has_the_whole_time_after_the_second(life: Life) -> None:
    async with life.open() as world:
        job_id, runner = start(world).job_id, online(world)
        world.forge.accept(runner, job_id)
        await world.memory.wait_written()
    async with life.open() as world:
        life.clock.now_s += 50.0
        start(world)
        await world.memory.wait_written()
    async with life.open() as world:
        life.clock.now_s += 50.0
        world.forge.sweep()
        assert world.forge.job(job_id).state is JobState.IN_PROGRESS
        life.clock.now_s += 11.0
        world.forge.sweep()
        assert world.forge.job(job_id).conclusion is Conclusion.FAILURE


async def test_a_runner_that_missed_the_answer_to_its_acceptance_may_say_it_again(life: Life) -> None:
    async with life.open() as world:
        job_id, runner = start(world).job_id, online(world)
        world.forge.accept(runner, job_id)
        await world.memory.wait_written()
    async with life.open() as world:
        again = world.forge.authenticate(runner.token)
        assert world.forge.accept(again, job_id) is world.forge.job_of(again, job_id)
        assert actions(world) == ["queued", "in_progress"]


async def test_a_job_asked_to_stop_still_ends_cancelled(life: Life) -> None:
    async with life.open() as world:
        job_id, runner = start(world).job_id, online(world)
        world.forge.accept(runner, job_id)
        world.forge.cancel(job_id)
        await world.memory.wait_written()
    async with life.open() as world:
        job = world.forge.complete(world.forge.authenticate(runner.token), job_id, Conclusion.FAILURE)
        assert job.conclusion is Conclusion.CANCELLED


async def test_a_completed_job_stays_completed_and_its_runner_unknown(life: Life) -> None:
    async with life.open() as world:
        job_id, runner = start(world).job_id, online(world)
        world.forge.complete(runner, world.forge.accept(runner, job_id).job_id, Conclusion.SUCCESS)
        await world.memory.wait_written()
    async with life.open() as world:
        job = world.forge.job(job_id)
        assert (job.state, job.conclusion, world.forge.runners) == (JobState.COMPLETED, Conclusion.SUCCESS, {})
        assert job.runner is not None
        assert job.runner.name == runner.name


async def test_a_just_in_time_config_that_nobody_has_used_yet_still_holds(life: Life) -> None:
    async with life.open() as world:
        token = world.forge.register("octo-org/hello", "nimbus-1-1", ("nimbus",), 1, "_work").token
        await world.memory.wait_written()
    async with life.open() as world:
        life.clock.now_s += 3600.0
        world.forge.sweep()
        assert world.forge.authenticate(token).online is False


async def test_no_id_is_given_twice_even_where_the_clock_went_back(life: Life) -> None:
    async with life.open() as world:
        start(world)
        used = {*world.forge.runs, *world.forge.jobs}
        await world.memory.wait_written()
    life.clock.now_s -= 86_400.0
    async with life.open() as world:
        job = start(world)
        assert not used & {job.job_id, job.run.run_id}


async def test_every_organisation_is_as_it_was_and_ids_go_on(life: Life) -> None:
    life.more_owners = ("acme", "umbrella")
    async with life.open() as world:
        acme, umbrella = world.accounts.named("acme"), world.accounts.named("umbrella")
        first = acme.forge.start_run(parse_workflow(WORKFLOW % ""), "hello")
        runner = acme.forge.register("acme/hello", "r", ("nimbus",), 1, "_work")
        acme.refuse("hello", frozenset({Refusal.GROUP_FULL}))
        acme.forge.archive("old", archived=True)
        world.accounts.install(umbrella, installed=False)
        world.accounts.install(umbrella, installed=True)
        registration = world.registrations.issue("acme", removes=False)
        world.memory.note()
        await world.memory.wait_written()
        before = world.memory.render()
    async with life.open() as world:
        assert world.memory.render() == before
        acme, umbrella = world.accounts.named("acme"), world.accounts.named("umbrella")
        assert (acme.installation_id, umbrella.installation_id) == (8, 10)
        assert list(acme.forge.runs) == [first.run_id]
        assert (list(world.forge.runs), list(umbrella.forge.runs)) == ([], [])
        assert acme.forge.authenticate(runner.token).name == "r"
        assert acme.refuses(Refusal.GROUP_FULL, "Hello")
        assert acme.forge.archived == {"old"}
        assert world.registrations.check(registration.token, removes=False) == registration
        assert start(world).job_id > first.jobs[0].job_id


async def test_an_organisation_that_is_named_no_more_is_kept_and_its_id_given_to_nobody(life: Life) -> None:
    life.more_owners = ("acme",)
    async with life.open() as world:
        world.accounts.named("acme").forge.start_run(parse_workflow(WORKFLOW % ""), "hello")
        await world.memory.wait_written()
    life.more_owners = ("umbrella",)
    async with life.open() as world:
        assert {account.owner: account.installation_id for account in world.accounts} == {
            "octo-org": 7,
            "umbrella": 9,
            "acme": 8,
        }
        assert len(world.accounts.named("acme").forge.runs) == 1


async def test_what_the_previous_sim_wrote_of_its_only_installation_still_holds(life: Life) -> None:
    life.folder.mkdir()
    header = b'{"header":{"format":"nimbus-sim/1","owner":"octo-org","last_id":7,"suspended":true}}\n{"end":1}\n'
    (life.folder / FILE).write_bytes(header)
    async with life.open() as world:
        assert world.accounts.first.suspended_at_s is not None


async def test_a_suspended_installation_stays_suspended(life: Life) -> None:
    async with life.open() as world:
        world.accounts.suspend(world.accounts.first, life.clock())
        world.memory.note()
        await world.memory.wait_written()
    async with life.open() as world:
        assert world.accounts.first.suspended_at_s == life.clock()


# -- the file --------------------------------------------------------------------------------------------------


async def test_the_file_is_for_its_owner_only_and_leaves_no_torn_ones_beside_it(life: Life) -> None:
    life.folder.mkdir()
    (life.folder / f".{FILE}.abc").write_bytes(b"half")
    async with life.open() as world:
        start(world)
        await world.memory.wait_written()
    assert os.listdir(life.folder) == [FILE]
    assert stat.S_IMODE((life.folder / FILE).stat().st_mode) == 0o600


@pytest.mark.parametrize("change", ["torn", "foreign", "of another owner"])
async def test_a_file_that_cannot_be_taken_up_is_put_aside_and_said(life: Life, change: str) -> None:
    async with life.open() as world:
        start(world)
        await world.memory.wait_written()
    whole = (life.folder / FILE).read_bytes()
    data = {"torn": whole[:-9], "foreign": b"\x7fELF", "of another owner": whole}[change]
    (life.folder / FILE).write_bytes(data)
    life.owner = "acme" if change == "of another owner" else life.owner
    with structlog.testing.capture_logs() as logs:
        async with life.open() as world:
            assert (world.forge.runs, world.deliveries.pending_and_newest(9)) == ({}, [])
            start(world)
            await world.memory.wait_written()
    [said] = [line for line in logs if line["event"] == "sim.memory_unreadable"]
    assert said["log_level"] == "error"
    [aside] = life.folder.glob(f"{FILE}.unreadable-*")
    assert (said["kept_as"], aside.read_bytes()) == (str(aside), data)
    assert (life.folder / FILE).read_bytes() != data


async def test_a_folder_that_cannot_be_had_ends_the_sim_and_names_the_setting(life: Life) -> None:
    life.folder.write_text("a file")
    with pytest.raises(HostFault, match="NIMBUS_SIM_STATE_DIR"):
        async with life.open():
            pass


async def test_a_write_that_fails_is_said_and_the_next_one_holds_everything(life: Life) -> None:
    async with life.open() as world:
        away = life.folder.rename(life.folder.with_name("away"))
        with structlog.testing.capture_logs() as logs:
            first = start(world).job_id
            await world.memory.wait_written()
        away.rename(life.folder)
        second = start(world).job_id
        await world.memory.wait_written()
    assert [line["event"] for line in logs] == ["sim.memory_not_written"]
    async with life.open() as world:
        assert set(world.forge.jobs) == {first, second}


async def test_nothing_is_written_where_nothing_changed(life: Life) -> None:
    async with life.open() as world:
        start(world)
        await world.memory.wait_written()
        before = (life.folder / FILE).stat().st_ino
        world.forge.sweep()
        await world.memory.wait_written()
        assert (life.folder / FILE).stat().st_ino == before


# -- over real sockets -----------------------------------------------------------------------------------------


@asynccontextmanager
async def open_receiver() -> AsyncIterator[tuple[WebhookTarget, trio.MemoryReceiveChannel[str]]]:
    """A place for webhooks; hands over the GUID of each, and answers once it is taken."""
    send, arrived = trio.open_memory_channel[str](0)
    app, stop = build_app("receiver"), trio.Event()

    async def receive() -> Response:
        await send.send(request.headers["X-GitHub-Delivery"])
        return Response("", 202)

    app.add_url_rule("/", "receive", receive, methods=["POST"])
    async with trio.open_nursery() as nursery:
        serve = partial(serve_app, app, ["127.0.0.1:0"], stop, graceful_s=1.0)
        urls: list[str] = await nursery.start(serve)
        yield WebhookTarget(f"{urls[0]}/", "x" * 32), arrived
        stop.set()


async def test_what_was_answered_and_told_is_in_the_file(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with open_receiver() as (webhook, arrived), open_sim(webhook, state_dir=tmp_path) as sim:
            answer = await sim.http.post("/sim/workflows", content=(WORKFLOW % "").encode())
            assert f'"run_id":{answer.json()["run_id"]}' in (tmp_path / FILE).read_text()
            guid = await arrived.receive()
            assert guid in (tmp_path / FILE).read_text()


async def test_a_webhook_that_was_not_sent_is_sent_by_the_next_sim_under_its_guid(life: Life) -> None:
    async with life.open() as world:
        start(world)
        [unsent] = world.deliveries.pending_and_newest(9)
        await world.memory.wait_written()
    with trio.fail_after(60):
        async with open_receiver() as (webhook, arrived), open_sim(webhook, state_dir=life.folder):
            assert await arrived.receive() == unsent.guid


async def test_an_old_delivery_can_be_sent_again_after_a_restart(life: Life) -> None:
    async with life.open() as world:
        start(world)
        [old] = world.deliveries.pending_and_newest(9)
        old.delivered_at_s, old.status, old.status_code = time.time(), "failed to connect to host", 502
        world.memory.note()
        await world.memory.wait_written()
    async with life.open() as world:
        again = world.deliveries.redeliver(old.delivery_id)
        assert (again.guid, again.redelivery, again.delivery_id > old.delivery_id) == (old.guid, True, True)
