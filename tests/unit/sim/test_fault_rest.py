"""REST calls on a bad day, over real sockets: what is refused has no effect, what is lost had one."""

from __future__ import annotations

import json
import os
import re
import textwrap
import time
from collections.abc import AsyncIterator

import httpx2
import pytest
import trio

from nimbus.model.errors import Refused
from nimbus.sim.settings import SimSettings
from tests.forge import Sim, app_key, open_sim
from tests.readme import ROOT

PAGE = ROOT / "docs" / "rehearsal.md"
RUNNERS = "/repos/octo-org/hello/actions/runners"
JIT = f"{RUNNERS}/generate-jitconfig"


@pytest.fixture
async def sim() -> AsyncIterator[Sim]:
    with trio.fail_after(60):
        async with open_sim(more_owners=("acme",)) as running:
            yield running


async def rest_faults(sim: Sim, **kinds: object) -> None:
    answer = await sim.http.post("/sim/faults", json={"rest": kinds})
    assert answer.status_code == 200, answer.text


async def mint(sim: Sim, headers: dict[str, str], name: str = "nimbus-1-1") -> httpx2.Response:
    body = {"name": name, "runner_group_id": 1, "labels": ["nimbus"]}
    return await sim.http.post(JIT, headers=headers, json=body)


def names(sim: Sim) -> list[str]:
    """The runners that GitHub has."""
    return [runner.name for runner in sim.world.forge.runners.values()]


async def struck(sim: Sim) -> dict[str, int]:
    return dict((await sim.http.get("/sim/faults")).json()["struck"])


@pytest.mark.parametrize(("kind", "status"), [("secondary_limit", 403), ("too_many", 429)])
async def test_a_secondary_limit_says_when_to_come_again_and_did_nothing(sim: Sim, kind: str, status: int) -> None:
    headers = await sim.token_headers()
    await rest_faults(sim, **{kind: 1, "retry_after_s": 7})
    answer = await mint(sim, headers)
    assert (answer.status_code, answer.headers["retry-after"]) == (status, "7")
    assert "secondary rate limit" in answer.json()["message"]
    assert "x-ratelimit-remaining" not in answer.headers
    assert (names(sim), await struck(sim)) == ([], {f"rest.{kind}": 1})


async def test_a_secondary_limit_may_say_nothing_of_when(sim: Sim) -> None:
    headers = await sim.token_headers()
    await rest_faults(sim, secondary_limit_unsaid=1)
    answer = await mint(sim, headers)
    assert (answer.status_code, "retry-after" in answer.headers, names(sim)) == (403, False, [])


async def test_the_primary_limit_leaves_nothing_and_says_when_it_is_over(sim: Sim) -> None:
    headers = await sim.token_headers()
    await rest_faults(sim, primary_limit=1, primary_reset_s=30)
    answer = await mint(sim, headers)
    assert (answer.status_code, answer.headers["x-ratelimit-remaining"]) == (403, "0")
    assert 0 < int(answer.headers["x-ratelimit-reset"]) - time.time() <= 31
    assert answer.json()["message"].startswith("API rate limit exceeded for installation")
    assert names(sim) == []


async def test_a_limit_holds_for_its_installation_alone_and_who_does_not_wait_is_counted(sim: Sim) -> None:
    ours, theirs = await sim.token_headers(), await sim.token_headers(installation_id=78)
    await rest_faults(sim, secondary_limit=1, retry_after_s=600)
    assert (await mint(sim, ours)).status_code == 403
    await rest_faults(sim)
    again = await mint(sim, ours)
    assert (again.status_code, int(again.headers["retry-after"]) > 500) == (403, True)
    assert (await sim.http.get("/orgs/acme/actions/runners", headers=theirs)).status_code == 200
    assert (await sim.http.get("/app/installations", headers=sim.app_headers())).status_code == 200
    assert await struck(sim) == {"rest.limit_ignored": 1, "rest.secondary_limit": 1}


async def test_a_limit_that_was_waited_for_is_over(sim: Sim) -> None:
    headers = await sim.token_headers()
    await rest_faults(sim, secondary_limit=1, retry_after_s=1)
    refused = await mint(sim, headers)
    await rest_faults(sim)
    await trio.sleep(float(refused.headers["retry-after"]))
    assert (await mint(sim, headers)).status_code == 201
    assert await struck(sim) == {"rest.secondary_limit": 1}


async def test_an_outage_answers_with_errors_and_pages_and_does_nothing(sim: Sim) -> None:
    headers = await sim.token_headers()
    await rest_faults(sim, outage=1)
    answers = [await mint(sim, headers) for _ in range(20)]
    assert {answer.status_code for answer in answers} == {500, 502, 503}
    assert {answer.headers["content-type"] for answer in answers} == {"application/json", "text/html"}
    assert names(sim) == []


async def test_a_token_that_expired_in_between_is_void_and_a_new_one_is_good(sim: Sim) -> None:
    headers = await sim.token_headers()
    await rest_faults(sim, token_expired=1)
    answer = await mint(sim, headers)
    assert (answer.status_code, answer.json()["message"]) == (401, "Bad credentials")
    await rest_faults(sim)
    assert (await mint(sim, headers)).status_code == 401
    assert (await mint(sim, await sim.token_headers())).status_code == 201


async def test_an_answer_that_is_lost_was_to_something_that_happened(sim: Sim) -> None:
    headers = await sim.token_headers()
    await rest_faults(sim, dropped=1)
    with pytest.raises(httpx2.RemoteProtocolError):
        await mint(sim, headers)
    assert names(sim) == ["nimbus-1-1"]
    [runner] = sim.world.forge.runners.values()
    with pytest.raises(httpx2.RemoteProtocolError):  # an answer without a body is lost as well
        await sim.http.delete(f"{RUNNERS}/{runner.runner_id}", headers=headers)
    assert names(sim) == []
    await rest_faults(sim)
    assert (await mint(sim, headers)).status_code == 201
    assert await struck(sim) == {"rest.dropped": 2}


async def test_an_answer_that_is_slow_may_come_after_its_caller_has_gone(sim: Sim) -> None:
    headers = await sim.token_headers()
    await rest_faults(sim, slow=1, slow_s=[3600, 3600])
    async with trio.open_nursery() as impatient:
        impatient.start_soon(mint, sim, headers)
        while not names(sim):
            await sim.world.bell.wait()
        impatient.cancel_scope.cancel()
    assert names(sim) == ["nimbus-1-1"]


async def test_a_slow_answer_comes(sim: Sim) -> None:
    headers = await sim.token_headers()
    await rest_faults(sim, slow=1, slow_s=[0.5, 0.5])
    began = trio.current_time()
    assert (await mint(sim, headers)).status_code == 201
    assert trio.current_time() - began >= 0.5


async def test_an_answer_that_is_no_json_was_to_something_that_happened(sim: Sim) -> None:
    headers = await sim.token_headers()
    await rest_faults(sim, no_json=1)
    answer = await mint(sim, headers)
    assert answer.status_code == 201
    with pytest.raises(json.JSONDecodeError):
        answer.json()
    assert names(sim) == ["nimbus-1-1"]
    listed = await sim.http.get(RUNNERS, headers=headers)
    with pytest.raises(json.JSONDecodeError):
        listed.json()


async def test_the_rehearsals_own_routes_and_the_runners_protocol_are_spared(sim: Sim) -> None:
    await rest_faults(sim, outage=1, dropped=1, no_json=1)
    assert (await sim.http.get("/healthz")).json() == {"status": "ok"}
    assert (await sim.http.get("/sim/runs")).json() == {"runs": []}
    assert (await sim.http.post("/_runner/session")).status_code == 401


async def test_faults_are_set_seen_and_ended_by_the_control_api_alone(sim: Sim) -> None:
    shown = (await sim.http.post("/sim/faults", json={"seed": 5, "rest": {"slow": 0.5}})).json()
    assert shown == (await sim.http.get("/sim/faults")).json()
    assert (shown["plan"]["seed"], shown["plan"]["rest"]["slow"], shown["plan"]["deliveries"]["lost"]) == (5, 0.5, 0)
    refused = await sim.http.post("/sim/faults", json={"rest": {"slwo": 0.5}})
    assert (refused.status_code, refused.json()["message"][:9]) == (400, "rest.slwo")
    assert (await sim.http.get("/sim/faults")).json() == shown  # what was refused changed nothing
    assert (await sim.http.post("/sim/faults", json={})).json()["plan"]["rest"]["slow"] == 0


async def test_a_stranger_may_not_set_faults() -> None:
    with trio.fail_after(60):
        async with open_sim(control_token="c" * 32) as sim:
            assert (await sim.http.post("/sim/faults", json={})).status_code == 401
            assert (await sim.http.get("/sim/faults")).status_code == 401


def test_the_environment_may_hold_the_faults_to_start_with() -> None:
    def settings(**more: object) -> SimSettings:
        return SimSettings.model_validate({"sim_app_public_key": app_key().public_pem, **more})

    plan = settings(sim_faults='{"deliveries": {"lost": 0.3}}', sim_delivery_window_s=60).world_plan()
    assert (plan.faults.deliveries.lost, plan.delivery_window_s) == (0.3, 60)
    assert settings().world_plan().faults.deliveries.lost == 0
    with pytest.raises(Refused, match=r"^NIMBUS_SIM_FAULTS: deliveries\.lost"):
        settings(sim_faults='{"deliveries": {"lost": 3}}').world_plan()


async def test_the_commands_that_the_page_on_rehearsals_shows_do_what_it_says() -> None:
    page = PAGE.read_text().partition("## Bad days")[2].partition("\n## ")[0]
    commands = [textwrap.dedent(block) for block in re.findall(r"(?:^ {4}.*\n)+", page, flags=re.MULTILINE)]
    shown = []
    with trio.fail_after(60):
        async with open_sim(control_token="c" * 32) as sim:
            for command in commands:
                line = command.replace("http://127.0.0.1:8080", sim.url).replace("curl", "curl -sS --fail", 1)
                env = {**os.environ, "NIMBUS_SIM_CONTROL_TOKEN": "c" * 32}
                done = await trio.run_process(["bash", "-c", line], env=env, capture_stdout=True)
                shown.append(json.loads(done.stdout)["plan"]["deliveries"]["lost"])
    assert shown == [0.3, 0.3, 0]


async def test_who_asks_again_too_early_is_told_no_shorter_time_than_is_left(sim: Sim) -> None:
    headers = await sim.token_headers()
    await rest_faults(sim, secondary_limit=1, retry_after_s=2)
    asked_s = time.time()
    await mint(sim, headers)
    await trio.sleep(0.7)
    again = await mint(sim, headers)
    assert time.time() + int(again.headers["retry-after"]) >= asked_s + 2
    assert (await struck(sim))["rest.limit_ignored"] == 1
