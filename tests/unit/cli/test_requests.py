"""What every command that speaks to the control plane does with its token, its words and a wrong answer."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio

from nimbus.cli.command import run_command
from tests.unit.cli.test_jobs import Said, nimbus_cli
from tests.unit.control_plane.plane import ADMIN_SECRET, Plane, open_plane

NO_TEXT = "\udcff"  # a byte that is no UTF-8, as Python reads it from a command line
LATER_S = 400.0  # longer than a command's token is good for


@pytest.fixture
async def plane(database_dsn: str, redis_url: str) -> AsyncIterator[Plane]:
    async with open_plane(database_dsn, redis_url) as opened:
        yield opened


@asynccontextmanager
async def running(status: list[int], *words: str) -> AsyncIterator[None]:
    """The command beside the block, until it ends by itself."""

    async def run() -> None:
        status.append(await trio.to_thread.run_sync(partial(run_command, words)))

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            yield


async def wait_asked(plane: Plane, sql: str) -> None:
    while not await plane.sql(sql):  # noqa: ASYNC110 - another thread does it
        await trio.sleep(0.05)


@pytest.mark.services
async def test_waiting_for_a_job_outlives_the_token_that_it_began_with(
    plane: Plane, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NIMBUS_JWT_SECRET", ADMIN_SECRET)
    status: list[int] = []
    agent, began, real = await plane.enrol(), time.time(), time.time
    async with running(status, "jobs", "submit", "--base-url", plane.url, "--wait", "--", "true"):
        await wait_asked(plane, "SELECT FROM jobs")
        monkeypatch.setattr(time, "time", lambda: real() + LATER_S)
        grant = await plane.lease(agent, wait_s=20)
        assert grant is not None
        await plane.finish(agent, grant, "done", exit_code=0)

    assert time.time() - began > LATER_S
    assert (status, capsys.readouterr().err) == ([0], "")


@pytest.mark.services
async def test_watching_a_drain_outlives_the_token_that_it_began_with(
    plane: Plane, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NIMBUS_JWT_SECRET", ADMIN_SECRET)
    status: list[int] = []
    agent, real = await plane.enrol("host-1"), time.time
    await plane.submit()
    grant = await plane.lease(agent)
    assert grant is not None
    async with running(status, "hosts", "drain", "host-1", "--base-url", plane.url, "--wait"):
        await wait_asked(plane, "SELECT FROM agents WHERE wanted = 'drained'")
        monkeypatch.setattr(time, "time", lambda: real() + LATER_S)
        await plane.finish(agent, grant, "done", exit_code=0)

    said = capsys.readouterr()
    assert (status, said.err) == ([0], "")
    assert said.out.endswith("host host-1 is drained: nothing is left on it\n")


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("hosts", ("show", NO_TEXT)),
        ("jobs", ("list", "--org", NO_TEXT)),
        ("jobs", ("submit", "--cmd", NO_TEXT)),
        ("jobs", ("submit", "--", "echo", NO_TEXT)),
        ("jobs", ("submit", "--env", f"A={NO_TEXT}", "--", "true")),
        ("admin", ("keys", "revoke", NO_TEXT)),
        ("admin", ("token", "revoke", NO_TEXT)),
        ("admin", ("token", "mint", "--subject", "a", "--org", NO_TEXT)),
        ("jobs", ("list", "--token", "a.b.ü")),
        ("jobs", ("list", "--token", "a.b.c\nd")),
        ("jobs", ("list", "--since", "999999d")),
        ("jobs", ("submit", "--timeout", "nan", "--", "true")),
        ("jobs", ("submit", "--timeout", "inf", "--", "true")),
    ],
)
def test_a_word_that_no_request_could_carry_is_told_in_one_line(module: str, words: tuple[str, ...]) -> None:
    said = nimbus_cli(module, *words, NIMBUS_JWT_SECRET=ADMIN_SECRET, NIMBUS_CONTROL_PLANE_URL="http://127.0.0.1:9")
    assert (said.status, said.err.count("\n"), said.err[:8]) == (2, 1, "nimbus: ")


@pytest.mark.services
async def test_an_answer_that_is_no_json_is_told_in_one_line(plane: Plane) -> None:
    # a page of metrics stands where somebody took one service for another
    url = f"{plane.url}/metrics?"

    def ask() -> Said:
        return nimbus_cli("jobs", "status", NIMBUS_JWT_SECRET=ADMIN_SECRET, NIMBUS_CONTROL_PLANE_URL=url)

    said = await trio.to_thread.run_sync(ask)
    assert (said.status, said.err.count("\n")) == (1, 1)
