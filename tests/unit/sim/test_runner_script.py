"""The guest's runner script, run for real by busybox on this machine against a live sim (no VM)."""

from __future__ import annotations

import math
import os
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

import nimbus.sim
from nimbus.wire.github import encode_jit_config
from tests.forge import Sim, open_sim
from tests.runner_script import Ended, ScriptFolder, needs_busybox, open_script_folder

JIT = "/repos/octo-org/hello/actions/runners/generate-jitconfig"
pytestmark = needs_busybox


@dataclass(frozen=True)
class Guest:
    """A live sim and a folder to run the script in."""

    sim: Sim
    script: ScriptFolder

    @property
    def folder(self) -> Path:
        return self.script.folder

    async def jit_config(self) -> str:
        body = {"name": "nimbus-1-1", "runner_group_id": 1, "labels": ["nimbus"]}
        answer = await self.sim.http.post(JIT, headers=await self.sim.token_headers(), json=body)
        return str(answer.json()["encoded_jit_config"])

    async def run(self, config: str, **more: str) -> Ended:
        return await self.script.run(config, **more)

    async def start(self, workflow: str) -> int:
        answer = await self.sim.http.post("/sim/workflows", content=workflow)
        assert answer.status_code == 201, answer.text
        return int(answer.json()["run_id"])

    async def report(self, run_id: int) -> dict[str, Any]:
        return dict((await self.sim.http.get(f"/sim/runs/{run_id}")).json())

    async def run_workflow(self, workflow: str) -> tuple[Ended, dict[str, Any]]:
        run_id = await self.start(workflow)
        ended = await self.run(await self.jit_config())
        return ended, (await self.report(run_id))["jobs"][0]


@pytest.fixture
def script() -> Iterator[ScriptFolder]:
    with open_script_folder() as folder:
        yield folder


@pytest.fixture
async def guest(script: ScriptFolder) -> AsyncIterator[Guest]:
    with trio.fail_after(120):
        async with open_sim() as sim:
            yield Guest(sim, script)


async def wait_until(condition: Callable[[], bool]) -> None:
    """Return once another process brought the condition about; the fixture limits the wait."""
    while not condition():  # noqa: ASYNC110 -- a process without a connection to us rings no event
        await trio.sleep(0.02)


def is_running(pid: str) -> bool:
    """Whether the process runs; a zombie that nobody reaps in this container does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def test_a_job_runs_its_steps_and_the_runner_is_deregistered(guest: Guest) -> None:
    workflow = """
env: {GREETING: "it's a \\"quoted\\" $HOME `id` value"}
jobs:
  a:
    runs-on: nimbus
    steps:
      - {name: Say it, run: 'echo "<$GREETING>"'}
      - name: Look around
        run: |
          echo "$GITHUB_REPOSITORY $GITHUB_ACTIONS"
          test "$PWD" = "$GITHUB_WORKSPACE"
          test -z "${ACTIONS_RUNNER_INPUT_JITCONFIG:-}"
"""
    ended, job = await guest.run_workflow(workflow)
    assert ended.status == 0, ended.err
    assert '<it\'s a "quoted" $HOME `id` value>' in ended.out
    assert "octo-org/hello true" in ended.out
    assert ended.out.index("=> Say it") < ended.out.index("=> Look around")
    assert (job["status"], job["conclusion"], job["runner_name"]) == ("completed", "success", "nimbus-1-1")
    assert [step["conclusion"] for step in job["steps"]] == ["success", "success"]
    assert guest.sim.world.forge.runners == {}


async def test_a_failing_step_ends_the_job_and_only_always_and_failure_steps_follow(guest: Guest) -> None:
    workflow = """
jobs:
  a:
    runs-on: nimbus
    steps:
      - {name: breaks, run: "false\\necho not reached"}
      - {name: next, run: echo not reached}
      - {name: cleanup, run: echo cleaning, if: always()}
      - {name: alarm, run: exit 3, if: failure()}
      - {name: last, run: echo not reached}
"""
    ended, job = await guest.run_workflow(workflow)
    assert ended.status == 0, ended.err
    assert "not reached" not in ended.out
    assert "cleaning" in ended.out
    assert "=> exit status 3" in ended.out
    assert job["conclusion"] == "failure"
    assert [step["conclusion"] for step in job["steps"]] == ["failure", "skipped", "success", "failure", "skipped"]


async def test_a_cancelled_job_stops_its_step_and_all_that_it_started(guest: Guest) -> None:
    mark = guest.folder / "pids"
    workflow = f"""
jobs:
  a:
    runs-on: nimbus
    steps:
      - name: hangs
        run: |
          sleep 600 &
          echo $! $$ > {mark}.new
          mv {mark}.new {mark}
          wait
      - {{name: cleanup, run: echo cleaning, if: always()}}
      - {{name: next, run: echo not reached}}
"""
    run_id = await guest.start(workflow)
    config = await guest.jit_config()
    ended: list[Ended] = []
    async with trio.open_nursery() as nursery:

        async def run() -> None:
            ended.append(await guest.run(config))

        nursery.start_soon(run)
        await wait_until(mark.exists)
        job_id = (await guest.report(run_id))["jobs"][0]["job_id"]
        await guest.sim.http.post(f"/sim/jobs/{job_id}/cancel")
    job = (await guest.report(run_id))["jobs"][0]
    assert ended[0].status == 0, ended[0].err
    assert "cleaning" in ended[0].out
    assert "not reached" not in ended[0].out
    assert job["conclusion"] == "cancelled"
    assert [step["conclusion"] for step in job["steps"]] == ["cancelled", "success", "skipped"]
    for pid in mark.read_text().split():
        assert not is_running(pid)


async def test_a_runner_waits_for_a_job_that_comes_later(guest: Guest) -> None:
    config = await guest.jit_config()
    ended: list[Ended] = []
    async with trio.open_nursery() as nursery:

        async def run() -> None:
            ended.append(await guest.run(config))

        nursery.start_soon(run)
        await wait_until(lambda: any(runner.online for runner in guest.sim.world.forge.runners.values()))
        run_id = await guest.start("jobs: {a: {runs-on: nimbus, steps: [{run: 'true'}]}}")
    assert ended[0].status == 0, ended[0].err
    assert (await guest.report(run_id))["conclusion"] == "success"


async def test_a_runner_deleted_while_idle_exits_without_a_job(guest: Guest) -> None:
    config = await guest.jit_config()
    ended: list[Ended] = []
    async with trio.open_nursery() as nursery:

        async def run() -> None:
            ended.append(await guest.run(config))

        nursery.start_soon(run)
        [runner] = guest.sim.world.forge.runners.values()
        # its poll, and not only its session, has come: deleted between the two it would be a stranger
        await wait_until(lambda: (runner.seen_at_s or 0) > (runner.online_at_s or math.inf))
        guest.sim.world.forge.delete_runner(runner.scope, runner.runner_id)
    assert (ended[0].status, "without a job" in ended[0].out) == (0, True)


async def test_a_runner_that_the_server_does_not_know_says_so_and_fails(guest: Guest) -> None:
    config = await guest.jit_config()
    guest.sim.world.forge.runners.clear()
    ended = await guest.run(config)
    assert ended.status == 1
    assert "does not know this runner" in ended.err


async def test_a_runner_without_a_config_or_with_a_broken_one_says_so_and_fails(guest: Guest) -> None:
    unfinished = encode_jit_config({".runner": b"{}", ".credentials": b"{}"})
    for config in ("", "not base64!", unfinished):
        ended = await guest.run(config)
        assert ended.status == 1
        assert "ACTIONS_RUNNER_INPUT_JITCONFIG" in ended.err


async def test_a_runner_told_to_stop_takes_its_step_along_and_goes_offline(guest: Guest) -> None:
    mark = guest.folder / "pid"
    run_id = await guest.start(
        f"jobs: {{a: {{runs-on: nimbus, steps: [{{run: 'echo $$ > {mark}.new; mv {mark}.new {mark}; sleep 600'}}]}}}}"
    )
    environment = guest.script.environment(await guest.jit_config())
    async with trio.open_nursery() as nursery:
        start = partial(trio.run_process, guest.script.command, env=environment, capture_stdout=True, check=False)
        process: trio.Process = await nursery.start(start)
        await wait_until(mark.exists)
        process.terminate()
    assert process.returncode == 143
    step = mark.read_text().strip()
    await wait_until(lambda: not is_running(step))
    [runner] = guest.sim.world.forge.runners.values()
    assert not runner.online
    assert (await guest.report(run_id))["status"] == "in_progress"


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: only root can become another user")
async def test_steps_of_a_root_runner_run_as_the_runners_user_and_cannot_enter_its_folder(guest: Guest) -> None:
    run_id = await guest.start(
        "jobs: {a: {runs-on: nimbus, steps: [{run: 'id -u; ls /tmp/nimbus-runner.*/ 2>&1 | grep -c denied'}]}}"
    )
    ended = await guest.run(await guest.jit_config(), NIMBUS_RUNNER_USER="nobody")
    assert ended.out.splitlines()[3:5] == ["65534", "1"], (ended.out, ended.err)
    assert (await guest.report(run_id))["conclusion"] == "success"


async def test_the_bundled_workflow_succeeds_with_busyboxs_tools_alone(guest: Guest) -> None:
    text = (Path(nimbus.sim.__file__).parent / "workflows" / "hello.yml").read_text()
    ended, job = await guest.run_workflow(text)
    assert (ended.status, job["conclusion"]) == (0, "success"), (ended.out, ended.err)
    assert "Hello from a throw-away microVM" in ended.out
    assert "step 10 of 10: total 55" in ended.out


async def hang_up_until(port: int, wanted: bytes) -> None:
    """Close every connection to the port without an answer, until one asks for what is wanted."""
    [listener] = await trio.open_tcp_listeners(port, host="127.0.0.1")
    async with listener:
        heard = b""
        while wanted not in heard:
            async with await listener.accept() as stream:
                heard = await stream.receive_some()


async def test_a_job_ends_as_its_steps_did_although_the_server_was_away(script: ScriptFolder, tmp_path: Path) -> None:
    begun, door = tmp_path / "begun", tmp_path / "door"
    os.mkfifo(door)
    ended: list[Ended] = []

    async def run(guest: Guest, config: str) -> None:
        ended.append(await guest.run(config))

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            async with open_sim(state_dir=tmp_path) as sim:
                guest = Guest(sim, script)
                step = f"{{run: touch {begun}; cat {door}}}"
                run_id = await guest.start(f"jobs: {{a: {{runs-on: nimbus, steps: [{step}, {{run: echo after}}]}}}}")
                nursery.start_soon(run, guest, await guest.jit_config())
                await wait_until(begun.exists)
            port = int(sim.url.rpartition(":")[2])
            os.close(await trio.to_thread.run_sync(os.open, door, os.O_WRONLY))  # once the step reads; then it ends
            await hang_up_until(port, b"/steps/1/finish")
            async with open_sim(state_dir=tmp_path, bind=f"127.0.0.1:{port}") as again:
                await wait_until(lambda: bool(ended))
                job = (await Guest(again, script).report(run_id))["jobs"][0]
    assert (ended[0].status, job["conclusion"]) == (0, "success"), ended[0].err
    assert [step["conclusion"] for step in job["steps"]] == ["success", "success"]
